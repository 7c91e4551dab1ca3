"""From plain configuration to objects, and from a checkpoint back to a model."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.reading import read_foreign
from scoreexp.bridge.recognise import recognised
from scoreexp.core.construct import construct, locate
from scoreexp.core.errors import UserError
from scoreexp.core.moves import current_name
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.runs.checkpoint_file import FORMAT, read_checkpoint
from scoreexp.runs.checkpoint_path import CheckpointError

MODEL_PARTS = {
    "schedule": "scoreexp.schedules",
    "precond": "scoreexp.denoisers",
    "network": "scoreexp.networks",
}  # and the package whose classes it is built from
FOREIGN = "scoreexp.bridge"  # and that of networks and conventions of other libraries


def model_record(
    config: Mapping[str, Any], event_shape: Sequence[int], num_classes: int | None
) -> dict[str, Any]:
    """What a checkpoint says of its model: plain data, enough to rebuild it.

    >>> record = model_record({"seed": 7}, event_shape=(3, 32, 32), num_classes=None)
    >>> record["config"], record["event_shape"]
    ({'seed': 7}, [3, 32, 32])

    Args:
        config: resolved run configuration.
        event_shape: shape of one sample, from the data.
        num_classes: number of classes, or None.
    """
    return {
        "format": FORMAT,
        "config": dict(config),
        "event_shape": [int(n) for n in event_shape],
        "num_classes": num_classes,
    }


def build_denoiser(record: Mapping[str, Any]) -> Denoiser:
    """The untrained model that ``record`` describes.

    >>> config = {
    ...     "network": {"_target_": "scoreexp.networks.MLP", "width": 8},
    ...     "precond": {"_target_": "scoreexp.denoisers.VPrediction"},
    ...     "schedule": {"_target_": "scoreexp.schedules.VP"},
    ... }
    >>> model = build_denoiser(model_record(config, event_shape=(2,), num_classes=None))
    >>> model(torch.zeros(1, 2), torch.tensor([0.5])).shape
    torch.Size([1, 2])
    """
    config = record["config"]
    network = construct(
        config["network"],
        "network",
        event_shape=tuple(record["event_shape"]),
        num_classes=record["num_classes"],
    )
    denoiser = Denoiser(
        network, construct(config["precond"], "precond"), construct(config["schedule"], "schedule")
    )
    denoiser.event_shape = tuple(record["event_shape"])
    return denoiser


def require_trusted(node: Any, where: str, trust: Collection[str]) -> None:
    """Refuse a configuration that names anything but classes of the model's packages and those of ``trust``.

    >>> require_trusted({"_target_": "os.system"}, "network", trust=())
    Traceback (most recent call last):
    scoreexp.runs.checkpoint_path.CheckpointError: the checkpoint's network is built by 'os.system', outside ...
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            require_trusted(value, f"{where}.{key}", trust)
        if "_target_" in node:
            require_trusted_target(str(node["_target_"]), where, trust)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            require_trusted(value, f"{where}[{i}]", trust)
    elif isinstance(node, str) and "${" in node:  # it could make up any text, and read the environment
        raise CheckpointError(
            f"the checkpoint's {where} is {node!r}: interpolations are resolved when a checkpoint is written, "
            "so it was not written by scoreexp"
        )


def require_trusted_target(target: str, where: str, trust: Collection[str]) -> None:
    admitted = {*MODEL_PARTS.values(), FOREIGN, *trust}
    package, target = target.split(".")[0], current_name(target)
    found = target
    if _is_in(target, admitted):  # what the name leads to may lie elsewhere: modules import others
        made = locate(target)
        found = f"{getattr(made, '__module__', '?')}.{getattr(made, '__qualname__', '?')}"
    if not _is_in(found, admitted) or (package == "scoreexp" and not isinstance(made, type)):
        remedy = f"if you trust the file, add trust=[{package}], in Python trust=[{package!r}]"
        raise CheckpointError(
            f"the checkpoint's {where} is built by {target!r}, outside the trusted {', '.join(sorted(admitted))}: "
            + (
                "if the name is of another version of scoreexp, load it with that one, otherwise do not use the file"
                if package == "scoreexp"
                else remedy
            )
        )


def foreign_packages(config: Mapping[str, Any]) -> list[str]:
    """The packages besides scoreexp whose classes a run's model and sampler are made of.

    >>> foreign_packages({"network": {"_target_": "mine.Net"}, "schedule": {"_target_": "scoreexp.schedules.VP"}})
    ['mine']
    """

    def targets(node: Any) -> Iterator[str]:
        if isinstance(node, Mapping):
            if "_target_" in node:
                yield str(node["_target_"])
            for value in node.values():
                yield from targets(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                yield from targets(value)

    parts = (config.get(part) for part in (*MODEL_PARTS, "sampler"))
    packages = dict.fromkeys(target.split(".")[0] for part in parts for target in targets(part))
    return [package for package in packages if package != "scoreexp"]


def _is_in(name: str, packages: Collection[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


def _strip(key: str) -> str:
    """The key as an eager, single-device run writes it."""
    for wrapper in ("_orig_mod.", "module."):
        key = key.replace(wrapper, "")
    return key


def model_weights(
    checkpoint: Mapping[str, Any], weights: Literal["averaged", "raw"] = "averaged"
) -> dict[str, Any]:
    """The denoiser's weights in a checkpoint; ``averaged`` falls back to raw where there is no average.

    >>> state = {"denoiser.network.w": torch.zeros(1), "averaged.network.w": torch.ones(1)}
    >>> model_weights({"state_dict": state}), model_weights({"state_dict": state}, "raw")
    ({'network.w': tensor([1.])}, {'network.w': tensor([0.])})
    """
    state = {_strip(key): value for key, value in checkpoint["state_dict"].items()}
    prefix = (
        "averaged."
        if weights == "averaged" and any(k.startswith("averaged.") for k in state)
        else "denoiser."
    )
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _require_shapes(record: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Fit the weights to a model without memory first: a configuration may name sizes that no machine has room for."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing is copied
        build_denoiser(record).load_state_dict(weights)


def load(
    path: str | Path,
    *,
    weights: Literal["averaged", "raw"] = "averaged",
    trust: Collection[str] = (),
    device: str = "cpu",
) -> Denoiser:
    """The whole model of a checkpoint, or of another library's file or folder, in evaluation mode.

    Nothing in the file is executed: tensors and plain data only are read, and only classes of scoreexp are built from
    its configuration unless ``trust`` admits another package. ``model.record`` holds the run's configuration.

    >>> import tempfile
    >>> from scoreexp.runs.checkpoint_file import write_checkpoint
    >>> config = {
    ...     "network": {"_target_": "scoreexp.networks.MLP", "width": 8},
    ...     "precond": {"_target_": "scoreexp.denoisers.VPrediction"},
    ...     "schedule": {"_target_": "scoreexp.schedules.VP"},
    ... }
    >>> record = model_record(config, event_shape=(2,), num_classes=None)
    >>> trained = {f"denoiser.{key}": value for key, value in build_denoiser(record).state_dict().items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_checkpoint({"state_dict": trained, "scoreexp": record}, Path(folder, "best.ckpt"))
    ...     model = load(f"{folder}/best.ckpt")
    >>> model.event_shape, model.training
    ((2,), False)

    Args:
        path: a ``.ckpt`` file of a run directory, or a model of another library (docs/bridge.md).
        weights: ``averaged`` (what validation reported; raw if the run kept no average) or ``raw``.
        trust: further top-level packages whose classes the file may name.
        device: where to put the model.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or of another architecture.
    """
    if weights not in ("averaged", "raw"):
        raise UserError(f"weights is {weights!r}: allowed are 'averaged' and 'raw'")
    if (kind := recognised(path)) is not None:
        return _foreign(path, kind, weights == "raw", trust).to(device)
    checkpoint = read_checkpoint(path)
    record = checkpoint["scoreexp"]
    try:
        for part in MODEL_PARTS:
            require_trusted(record["config"].get(part), part, trust)
        stored = model_weights(checkpoint, weights)
        if not trust:  # foreign classes may need memory to be built
            _require_shapes(record, stored)
        denoiser = build_denoiser(record)
        denoiser.load_state_dict(stored)
    except UserError:
        raise
    except Exception as error:  # a changed class, a missing key, a wrong shape
        reason = str(error).strip().splitlines()
        detail = (
            (reason[1] if len(reason) > 1 and "size mismatch" not in reason[0] else reason[0])[:160]
            if reason
            else ""
        )
        raise CheckpointError(
            f"{path} does not fit the architecture that its configuration names ({type(error).__name__}: {detail.strip()}): "
            "load it with the version of scoreexp that wrote it (see manifest.json of its run)"
        ) from error
    denoiser.record = record
    return denoiser.to(device).eval().requires_grad_(False)


def _foreign(path: str | Path, kind: str, raw: bool, trust: Collection[str]) -> Denoiser:
    """The model of another library, matched by name and shape before memory is spent on it."""
    record, weights = read_record(path, kind, raw)
    for part in MODEL_PARTS:
        require_trusted(record["config"][part], part, trust)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = build_denoiser(record).state_dict()
        require_same_weights(expected, weights, str(path))
        denoiser = build_denoiser(record)
    except UserError:
        raise
    except Exception as error:  # whatever a class of another library refuses
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise ForeignModelError(
            f"{path} is not a model that its configuration describes ({type(error).__name__}: {reason}): download it again"
        ) from error
    denoiser.load_state_dict(weights)
    denoiser.record = record
    return denoiser.eval().requires_grad_(False)


def read_record(path: str | Path, kind: str, raw: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Record and weights of a model of another library, as a checkpoint of ours holds them.

    Raises:
        ForeignModelError: it cannot be read, or its configuration has values of types that none has.
    """
    try:
        found = read_foreign(path, kind, raw)
        record = model_record(found.config(), found.event_shape, found.num_classes)
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise ForeignModelError(
            f"{path}, or the configuration beside it, states what no model of its format has ({type(error).__name__}: "
            f"{reason}): download it again"
        ) from error
    return record, {f"network.{name}": tensor for name, tensor in found.weights.items()}


def require_same_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights whose names or shapes are not those of the network, naming the first five.

    >>> require_same_weights({"w": torch.zeros(2)}, {"w": torch.zeros(3), "v": torch.zeros(1)}, "a.pt")
    Traceback (most recent call last):
    scoreexp.bridge.errors.ForeignModelError: a.pt does not fit its network in 2 places: v is unexpected; w is [3] ...
    """
    wrong = []
    for name in sorted({*expected, *found}):
        if name not in found:
            wrong.append(f"{name} is missing")
        elif name not in expected:
            wrong.append(f"{name} is unexpected")
        elif expected[name].shape != found[name].shape:
            wrong.append(f"{name} is {list(found[name].shape)} for {list(expected[name].shape)}")
    if wrong:
        raise ForeignModelError(
            f"{where} does not fit its network in {len(wrong)} places: {'; '.join(wrong[:5])}: give the configuration that "
            "it was trained with"
        )
