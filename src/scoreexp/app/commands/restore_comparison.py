"""Restorers on tasks side by side, with equal network evaluations or equal seconds: quality, seconds and memory."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from omegaconf import DictConfig
from torch import Tensor

from scoreexp.api.restore import restore
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.run_settings import prior_of_pictures
from scoreexp.app.signatures import suggest
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.construct import construct, locate
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import list_images, read_image
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.metrics import psnr, ssim
from scoreexp.metrics.functional import WINDOW_SIZE
from scoreexp.networks import DenoisingUNet
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import GaussianNoise, Identity, LinearOperator, NoiseModel, Observation
from scoreexp.restorers import Restorer
from scoreexp.restorers.exact import exact_posterior_mean
from scoreexp.restorers.images import as_observed
from scoreexp.runs.directory import shown
from scoreexp.schedules import VP
from scoreexp.system.json_files import write_json
from scoreexp.system.peak_memory import peak_memory

EXACT = "exact posterior mean"
LARGEST_STEPS = 1000


class Row(NamedTuple):
    """What a restorer made of the pictures of a task: means over them.

    Attributes:
        restorer: name of conf/restorer.
        task: name of conf/task.
        steps: of the restorer; 0 for the exact posterior mean.
        psnr: in dB, of pixels in [0, 1]; None where the restorer does not serve the task.
        ssim: where the pictures are large enough for its window.
        nfe: evaluations of the network for each picture.
        seconds: for each picture.
        mib: most memory of tensors at once, for the first batch; None where it was not asked for.
        reason: why there are no values.
    """

    restorer: str
    task: str
    steps: int = 0
    psnr: float | None = None
    ssim: float | None = None
    nfe: int = 0
    seconds: float = 0.0
    mib: float | None = None
    reason: str | None = None


# ------------------------------------------------------------------------------------ what is compared


def read_conf(group: str, name: str) -> dict[str, Any]:
    """``conf/GROUP/NAME.yaml``.

    Raises:
        UserError: there is none; the message has those that there are.
    """
    path = conf_dir() / group / f"{name}.yaml"
    if not path.exists():
        known = sorted(one.stem for one in path.parent.glob("*.yaml"))
        raise UserError(f"{group}={name}: allowed are {', '.join(known)}{suggest(name, known)}")
    node: dict[str, Any] = yaml.safe_load(path.read_text())
    return node


def with_steps(node: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A configuration with so many steps wherever it says how many.

    >>> with_steps({"grid": {"steps": 50}, "eta": 0.5}, 10)
    {'grid': {'steps': 10}, 'eta': 0.5}
    """
    inner = {key: with_steps(value, steps) for key, value in node.items() if isinstance(value, Mapping)}
    return {**node, **inner, **({"steps": steps} if "steps" in node else {})}


def configured(name: str, steps: int, **settings: Any) -> Restorer:
    """The restorer of ``conf/restorer/NAME.yaml`` with so many steps and these settings."""
    restorer: Restorer = construct({**with_steps(read_conf("restorer", name), steps), **settings}, "restorer")
    return restorer


def restorers_with_model() -> list[str]:
    """The names of the restorers of conf/ that take any model of images as their prior."""
    names = sorted(path.stem for path in (conf_dir() / "restorer").glob("*.yaml"))
    return [name for name in names if _evaluations(name, 2) is not None]


def steps_for(name: str, nfe: int) -> int:
    """The most steps with which a restorer takes at most so many evaluations, at least 1: they are linear in the steps.

    >>> steps_for("dds", 50), steps_for("stsl", 50)
    (50, 25)
    """
    few, more = (_evaluations(name, steps) for steps in (2, 3))
    if few is None or more is None:
        return 1
    return max(1, min(LARGEST_STEPS, 2 + math.floor((nfe - few) / (more - few)))) if more > few else nfe


def _evaluations(name: str, steps: int) -> int | None:
    """Of an observation that takes no time; None for a restorer that takes no model, or one of a special training."""
    if not locate(read_conf("restorer", name)["_target_"]).needs_model:
        return None
    shape = (1, 4, 4)
    model = OracleDenoiser(Gaussian(torch.zeros(shape), torch.ones(shape)), VP())
    observation = Observation(torch.zeros(1, *shape), Identity(), GaussianNoise(0.1))
    try:
        return configured(name, steps)(observation, model, streams=ImageStreams([0])).nfe or None
    except ValueError:
        return None


def task(name: str, size: tuple[int, int]) -> tuple[LinearOperator, NoiseModel]:
    """Operator and noise of ``conf/task/NAME.yaml`` for images of this height and width."""
    node = read_conf("task", name)
    takes_size = "size" in inspect.signature(locate(node["operator"]["_target_"])).parameters
    operator = construct(node["operator"], "task.operator", **({"size": size} if takes_size else {}))
    return operator, construct(node["noise"], "task.noise")


# ------------------------------------------------------------------------------------------ comparing


class Budget(NamedTuple):
    """What is equal for all restorers; exactly one is given.

    Attributes:
        steps: of each.
        nfe: evaluations of the network for each picture, or as many as whole steps take.
        seconds: for each picture, as measured on two short runs.
    """

    steps: int | None = None
    nfe: int | None = None
    seconds: float | None = None


def compare_restorers(
    model: DenoiserBase,
    images: Sequence[Tensor],
    restorers: Sequence[str],
    tasks: Sequence[str],
    budget: Budget,
    *,
    memory: bool = True,
) -> Iterator[Row]:
    """A row for each restorer and task, as soon as it is known; the exact posterior mean first, where the prior is known.

    Args:
        model: the prior.
        images: batches ``[B, C, H, W]`` of clean images in [-1, 1], each of one size.
        restorers: names of conf/restorer.
        tasks: names of conf/task.
        budget: what is equal.
        memory: whether to measure it, which takes two steps more.

    Raises:
        ValueError: an image does not suit a task, found before anything is measured.
    """
    made = {name: [task(name, (x.shape[-2], x.shape[-1])) for x in images] for name in tasks}
    for name in tasks:
        observed = []
        for x, (operator, noise) in zip(images, made[name], strict=True):
            streams = ImageStreams(range(len(x)), "observation")
            observed.append(Observation.simulate(x, operator, noise, streams))
        started = time.perf_counter()
        try:
            exact = [exact_posterior_mean(model, one) for one in observed]
        except ValueError:
            pass  # the prior is not known
        else:
            seconds = (time.perf_counter() - started) / sum(len(x) for x in images)
            yield _measured(Row(EXACT, name, seconds=seconds), exact, images)
        for restorer in restorers:
            yield _row(model, images, observed, restorer, name, budget, memory)


def _row(
    model: DenoiserBase,
    images: Sequence[Tensor],
    observed: Sequence[Observation],
    restorer: str,
    name: str,
    budget: Budget,
    memory: bool,
) -> Row:
    try:
        _require_channels(model, images)
        steps = _steps(
            budget,
            restorer,
            lambda n: restore(observed[0], model, configured(restorer, n)).seconds,
            observed[0],
        )
        chosen = configured(restorer, steps)
        made = [restore(one, model, chosen) for one in observed]
        few = configured(restorer, min(2, steps))
        most = peak_memory(lambda: restore(observed[0], model, few), model.device) if memory else None
    except (ValueError, FloatingPointError, UserError) as error:
        return Row(restorer, name, reason=str(error))
    return _measured(
        Row(
            restorer,
            name,
            steps,
            nfe=made[0].nfe,
            seconds=sum(one.seconds for one in made) / sum(len(x) for x in images),
            mib=None if most is None else most / 2**20,
        ),
        [one.x.cpu() for one in made],
        images,
    )


def _require_channels(model: DenoiserBase, images: Sequence[Tensor]) -> None:
    """Refuse pictures of other channels, unless the network itself takes them as the bundled prior takes grey ones."""
    found = {x.shape[1] for x in images}
    if isinstance(getattr(model, "network", None), DenoisingUNet):
        found -= {1}
    if model.event_shape is not None and (other := found - {known := model.event_shape[0]}):
        raise UserError(f"a model of {known} channels, pictures of {min(other)}: give pictures of {known}")


def _steps(budget: Budget, restorer: str, seconds: Callable[[int], float], first: Observation) -> int:
    if budget.steps is not None:
        return budget.steps
    if budget.nfe is not None:
        return steps_for(restorer, budget.nfe)
    assert budget.seconds is not None
    seconds(1)  # a warm-up
    few, more = (seconds(n) / len(first.y) for n in (2, 6))
    each = max((more - few) / 4, 1e-6)
    return max(1, min(LARGEST_STEPS, 2 + math.floor((budget.seconds - few) / each)))


def _measured(row: Row, made: Sequence[Tensor], images: Sequence[Tensor]) -> Row:
    pairs = [(to_unit(a).clamp(0, 1), to_unit(b).clamp(0, 1)) for a, b in zip(made, images, strict=True)]
    large = min(side for x in images for side in x.shape[-2:]) >= WINDOW_SIZE
    return row._replace(
        psnr=float(torch.cat([psnr(*pair) for pair in pairs]).mean()),
        ssim=float(torch.cat([ssim(*pair) for pair in pairs]).mean()) if large else None,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: a block of rows for each task.

    >>> print(table([Row("dds", "inpaint", 10, 25.0, 0.8, 10, 0.5, 12.0), Row("ddrm", "mri", reason="no decomposition")]))
    | task | restorer | PSNR, dB | SSIM | NFE | s/image | MiB |
    | --- | --- | ---: | ---: | ---: | ---: | ---: |
    | inpaint | dds | 25.00 | 0.800 | 10 | 0.500 | 12.0 |
    | mri | ddrm | – | – | – | – | – |
    """
    lines = [
        "| task | restorer | PSNR, dB | SSIM | NFE | s/image | MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        known = row.psnr is not None
        cells = [
            f"{row.psnr:.2f}" if known else "–",
            "–" if row.ssim is None else f"{row.ssim:.3f}",
            str(row.nfe) if known else "–",
            f"{row.seconds:.3f}" if known else "–",
            "–" if row.mib is None else f"{row.mib:.1f}",
        ]
        lines.append(f"| {row.task} | {row.restorer} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ the command


def _priors(given: str | Sequence[str] | None) -> list[tuple[str, str | None]]:
    """What rows of a model are called beside their restorer, and its checkpoint; by file names where those tell them apart.

    >>> _priors(["runs/a.ckpt", "ffdnet.pth"]), _priors(None)
    ([(', a.ckpt', 'runs/a.ckpt'), (', ffdnet.pth', 'ffdnet.pth')], [('', None)])
    """
    if given is None or isinstance(given, str):
        return [("", given)]
    if not given or len(set(given)) < len(given):
        raise UserError(f"ckpt={list(given)}: give at least one, each once")
    names = [Path(path).name for path in given]
    shortened = names if len(set(names)) == len(names) else list(given)
    return [(f", {name}", path) for name, path in zip(shortened, given)]


def compare(cfg: DictConfig) -> list[Row]:
    """Compare ``cfg.restorers`` on ``cfg.tasks``; see ``conf/compare_restorers.yaml``.

    Raises:
        UserError: not exactly one of nfe and seconds is given, or a name is not one of conf/.
    """
    if (cfg.nfe is None) == (cfg.seconds is None):
        raise UserError(
            "give one of nfe=N, equal network evaluations, and seconds=S, equal seconds for each picture"
        )
    if not (names := list(cfg.restorers)):
        raise UserError("restorers=[] names none: give some, such as restorers=[dds,ddrm]")
    for group, given in (("restorer", names), ("task", cfg.tasks)):
        for name in given:
            read_conf(group, name)
    if without := [name for name in names if not locate(read_conf("restorer", name)["_target_"]).needs_model]:
        raise UserError(
            f"restorers: {', '.join(without)} take no model, and so no evaluations: leave them out"
        )
    source = Path(cfg.input).expanduser()
    paths = list_images(source) if source.is_dir() else [source]
    images = [as_observed(read_image(path).pixels) for path in paths[: cfg.count]]
    say_labelled("pictures", f"{len(images)}, each damaged by {len(cfg.tasks)} tasks")
    rows: list[Row] = []
    for suffix, ckpt in _priors(cfg.ckpt):
        model = prior_of_pictures(DictConfig({**cfg, "ckpt": ckpt}))
        budget = Budget(nfe=cfg.nfe, seconds=cfg.seconds)
        for row in compare_restorers(model, images, names, list(cfg.tasks), budget):
            rows.append(row._replace(restorer=f"{row.restorer}{suffix}"))
            if row.reason:
                say_labelled("note", f"{rows[-1].restorer} does not serve {row.task}: {row.reason}")
    rows.sort(key=lambda row: list(cfg.tasks).index(row.task))  # blocks, each in the order of the models
    for line in table(rows).splitlines():
        say(line)
    folder = Path(cfg.run_dir)
    write_json(folder / "restorers.json", {"rows": [row._asdict() for row in rows]})
    say_labelled("values", shown(folder / "restorers.json"))
    return rows
