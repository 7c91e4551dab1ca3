"""Restore the user's own damaged images: a task is an operator and a noise model, a restorer undoes it; or speech."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from scoreexp.app.commands.restore_wav import RestoredWav, restore_wav
from scoreexp.app.early_checks import is_speech
from scoreexp.app.picture_files import (
    input_and_output,
    output_folder,
    read_mask,
    require_absent,
    require_none_failed,
    require_writable,
    with_each,
)
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import label_of_pictures, prior_of_pictures, restorer_of
from scoreexp.app.terminal import say_labelled
from scoreexp.core.construct import construct, locate
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import of_255, sigma_to_model, sigma_to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import Picture, few_bits, read_image, write_image
from scoreexp.denoisers import DenoiserBase
from scoreexp.metrics import psnr, ssim
from scoreexp.metrics.functional import WINDOW_SIZE
from scoreexp.observations import (
    Blur,
    ChannelMix,
    GaussianNoise,
    Mask,
    NoiseModel,
    Observation,
    Operator,
    SuperResolution,
)
from scoreexp.restorers import Restorer
from scoreexp.restorers.doubts import doubts_of
from scoreexp.restorers.images import Tiles, as_observed, image_streams, restore_image
from scoreexp.restorers.usual import usual_restorer_of
from scoreexp.runs.directory import shown
from scoreexp.samplers.labels import Label
from scoreexp.system.devices import choose_device
from scoreexp.system.json_files import write_json

DONE = "_restored"  # added to the name of the input

Size = tuple[int, int]


class Restored(NamedTuple):
    """One image's way through the command.

    Attributes:
        source: the input.
        target: the output.
        restorer: its class.
        values: what was measured: evaluations, seconds, the residual, PSNR and SSIM where there is a reference.
    """

    source: Path
    target: Path
    restorer: str
    values: dict[str, float]


class _Task(NamedTuple):
    """What is the same for all images of a call.

    Attributes:
        node: the operator's configuration.
        restorer: None is the one that serves the observation.
        seen: ``[H, W]`` of a mask of the user's own.
        kernel: ``[h, w]`` of the user's own.
    """

    node: dict[str, Any]
    seen: Tensor | None
    kernel: Tensor | None
    noise: NoiseModel
    restorer: Restorer | None
    model: DenoiserBase | None
    label: Label
    cfg: DictConfig

    def operator(self, size: Size) -> Operator:
        """The operator for images of this height and width."""
        cfg = self.cfg
        if self.seen is not None:
            if self.seen.shape != size:
                raise UserError(
                    f"mask={cfg.mask} is {_size(self.seen.shape)}, the image {_size(size)}: give a mask of its size"
                )
            return Mask(self.seen)
        if self.kernel is not None:
            return Blur(self.kernel, size, self.node.get("border", "periodic"))
        takes_size = "size" in inspect.signature(locate(self.node["_target_"])).parameters
        found: Operator = construct(self.node, "task.operator", **({"size": size} if takes_size else {}))
        return found

    def is_of(self, kind: type[Operator]) -> bool:
        """Whether the task's operator is of this kind."""
        target = locate(self.node["_target_"])
        return isinstance(target, type) and issubclass(target, kind)


def restore(cfg: DictConfig) -> list[Restored] | list[RestoredWav]:
    """Restore ``cfg.input``, an image, WAV file or folder, see ``conf/restore.yaml``; one that fails ends no batch."""
    if is_speech(cfg.input):
        return restore_wav(cfg)
    return restore_pictures(cfg)


def restore_pictures(cfg: DictConfig) -> list[Restored]:
    """Restore ``cfg.input``, an image or a folder."""
    source = Path(cfg.input).expanduser()
    pairs = input_and_output(source, cfg.output, DONE)
    for _, target in pairs:
        require_writable(target, cfg.overwrite)
    is_folder = source.is_dir()
    values = (
        output_folder(source, cfg.output, DONE) / "restored.json"
        if is_folder
        else pairs[0][1].with_suffix(".json")
    )
    require_absent(values, cfg.overwrite)
    task = _task(cfg)
    done, failed = with_each(pairs, lambda picture, target: _restore_file(task, picture, target))
    if done:
        write_json(values, _report(cfg, done))
        say_labelled("values", shown(values))
    if len(done) > 1 and (means := _means(done)):
        say_labelled("mean", _quality(means))
    require_none_failed(failed, len(pairs))
    if not cfg.strip:
        say_labelled("try next", "strip=true for a comparison, another restorer (restorer=diffpir)")
    return done


def _task(cfg: DictConfig) -> _Task:
    if cfg.simulate and cfg.reference is not None:
        raise UserError(
            "simulate=true measures against the input itself: leave reference out, or simulate=true"
        )
    if cfg.sigma is not None and cfg.sigma > 1:
        raise UserError(
            f"sigma={cfg.sigma:g} is above the whole range: give it in units of [0, 1]; {of_255(cfg.sigma)}"
        )
    node: Any = OmegaConf.to_container(cfg.task.operator, resolve=True)
    noise: NoiseModel = (
        construct(OmegaConf.to_container(cfg.task.noise, resolve=True), "task.noise")
        if cfg.sigma is None
        else GaussianNoise(sigma_to_model(float(cfg.sigma)))
    )
    restorer = restorer_of(cfg)
    task = _Task(node, None, None, noise, restorer, None, None, cfg)
    for key, kind, example in (("mask", Mask, "task=inpaint"), ("kernel", Blur, "task=deblur")):
        if cfg[key] is not None and not task.is_of(kind):
            raise UserError(f"{key}={cfg[key]} is not used by this task: leave it out, or take {example}")
    if task.is_of(Mask) and cfg.mask is None and not cfg.simulate:
        raise UserError(
            "where the holes of a damaged image lie must be given: add mask=FILE (black is a hole), or simulate=true to "
            "make holes in a clean image"
        )
    task = task._replace(
        seen=None if cfg.mask is None else _mask(cfg.mask),
        kernel=None if cfg.kernel is None else _kernel(cfg.kernel),
    )
    if restorer is not None and not restorer.needs_model:
        return task
    model = prior_of_pictures(cfg)
    return task._replace(model=model, label=label_of_pictures(cfg, model))


def _mask(path: str) -> Tensor:
    """``[H, W]``, true where a pixel is seen."""
    seen = torch.from_numpy(read_mask("mask", path).mean(-1) >= 0.5)
    if seen.all():
        raise UserError(f"mask={path} is without a hole: paint the pixels to be filled black")
    if not seen.any():
        raise UserError(f"mask={path} is all black, so nothing is known: leave what is to be kept white")
    return seen


def _kernel(path: str) -> Tensor:
    """``[h, w]`` with the sum 1."""
    kernel = torch.from_numpy(read_image(Path(path).expanduser()).pixels.mean(-1, dtype=np.float64))
    if not kernel.any():
        raise UserError(f"kernel={path} is all black: give the image of a kernel, white on black")
    return kernel / kernel.sum()


def _restore_file(task: _Task, source: Path, target: Path) -> Restored:
    cfg = task.cfg
    picture = read_image(source, white_level=cfg.white_level)
    if (doubt := few_bits(picture)) is not None:
        say_labelled("warning", f"{source.name}: {doubt} Then give white_level=4095")
    strip = target.with_name(f"{target.stem}_strip.png")
    if cfg.strip:
        require_absent(strip, cfg.overwrite)
    observation, size = _simulated(task, picture) if cfg.simulate else _observed(task, picture)
    reference = _reference(cfg, source, picture)
    if reference is not None and reference.shape[:2] != (frame := _frame(task, picture, size)[1]):
        raise UserError(
            f"the reference is {_size(reference.shape)}, the restored image {_size(frame)}: give one of its size"
        )
    restorer = usual_restorer_of(observation) if task.restorer is None else task.restorer
    with StepProgress(f"restoring {source.name}", part="tile") as progress:
        restored = restore_image(
            restorer,
            task.model,
            observation,
            streams_of=lambda row, column, count: image_streams(cfg.seed, row, column, count),
            label=task.label,
            tiles=Tiles(cfg.tile, cfg.overlap),
            device=choose_device(cfg.device),
            callback=progress.step,
            progress=progress.part_done,
            warn=lambda text: say_labelled("note", text),
        )
    fitted = observation.operator(as_observed(restored.states[-1]))
    residual = observation.y - fitted
    (top, left), (height, width) = _frame(task, picture, size)
    clean = restored.states[-1][top : top + height, left : left + width]
    values = {"nfe": restored.nfe, "seconds": restored.seconds}
    values["residual"] = sigma_to_unit(float(residual.square().mean().sqrt()))
    if reference is not None:
        values |= measured(clean, reference)
    made = dataclasses.replace(picture, pixels=clean)
    if clean.shape != picture.pixels.shape:
        made = Picture(clean, bit_depth=picture.bit_depth, white=picture.white)
    require_writable(target, cfg.overwrite, like=made)
    write_image(target, made, overwrite=cfg.overwrite)
    name = type(restorer).__name__
    say_labelled(
        "restored",
        f"{shown(target)} ({_size(clean.shape)}, {name}, {restored.nfe} evaluations, {restored.seconds:.1f} s)",
    )
    for doubt in doubts_of(restored.states[-1], observation, fitted):
        say_labelled("warning", doubt)
    if reference is not None:
        say_labelled("quality", _quality(values))
    if cfg.strip:
        _write_strip(strip, observation, residual, clean, reference)
        say_labelled("comparison", shown(strip))
    return Restored(source, target, name, values)


# ----------------------------------------------------------------------------------- what is known of an image


def _simulated(task: _Task, picture: Picture) -> tuple[Observation, Size]:
    """What the task makes of a clean image, and the size of that."""
    size = (picture.pixels.shape[0], picture.pixels.shape[1])
    streams = ImageStreams([task.cfg.seed], "observation")
    clean = as_observed(picture.pixels)
    return Observation.simulate(clean, task.operator(size), task.noise, streams), size


def _observed(task: _Task, picture: Picture) -> tuple[Observation, Size]:
    """The image as the task's observation, and the size of what is sought."""
    y = as_observed(picture.pixels)
    height, width = y.shape[-2:]
    size = (height, width)
    if task.is_of(SuperResolution):
        factor = int(task.node["factor"])
        size = (height * factor, width * factor)
    operator = task.operator(size)
    if isinstance(operator, Blur) and operator.border == "valid":
        h, w = operator.kernel.shape
        size = (height + h - 1, width + w - 1)
        operator = task.operator(size)
    if isinstance(operator, ChannelMix) and y.shape[1] != len(operator.matrix):
        raise UserError(
            f"this task observes images of {len(operator.matrix)} channel, and this one has {y.shape[1]}: give such an "
            "image, or simulate=true to make it of this one"
        )
    return Observation(operator(y) if isinstance(operator, Mask) else y, operator, task.noise), size


def _frame(task: _Task, picture: Picture, size: Size) -> tuple[Size, Size]:
    """Corner and size of what is written: without the border that an observed valid blur adds."""
    height, width = picture.pixels.shape[:2]
    if task.cfg.simulate or not task.is_of(Blur):
        return (0, 0), size
    return ((size[0] - height) // 2, (size[1] - width) // 2), (height, width)


def _reference(cfg: DictConfig, source: Path, picture: Picture) -> np.ndarray | None:
    """The clean image that the result is measured against."""
    return picture.pixels if cfg.simulate else reference_of(cfg, source)


def reference_of(cfg: DictConfig, source: Path) -> np.ndarray | None:
    """The pixels of ``cfg.reference``, or of the file there that has the name of ``source`` of ``cfg.input``."""
    if cfg.reference is None:
        return None
    path = Path(cfg.reference).expanduser()
    if path.is_dir():
        root = Path(cfg.input).expanduser()
        path = path / (source.relative_to(root) if root.is_dir() else source.name)
    return read_image(path, white_level=cfg.white_level).pixels


# ------------------------------------------------------------------------------------------ what is said of it


def measured(clean: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """PSNR, and SSIM where the image is large enough for its window."""
    if clean.shape != reference.shape:
        raise UserError(
            f"the reference has {reference.shape[2]} channels, the restored image {clean.shape[2]}: give one of as many"
        )
    pair = [torch.from_numpy(np.moveaxis(a, -1, 0).copy())[None].clamp(0, 1) for a in (clean, reference)]
    values = {"psnr": float(psnr(*pair))}
    if min(clean.shape[:2]) >= WINDOW_SIZE:
        values["ssim"] = float(ssim(*pair))
    return values


def _quality(values: dict[str, float]) -> str:
    return f"PSNR {values['psnr']:.2f} dB" + (f", SSIM {values['ssim']:.4f}" if "ssim" in values else "")


def _means(done: list[Restored]) -> dict[str, float]:
    """Of PSNR and SSIM over the images that have them; empty without a reference."""
    rows = [item.values for item in done]
    means = {}
    for key in ("psnr", "ssim"):
        if found := [row[key] for row in rows if key in row]:
            means[key] = sum(found) / len(found)
    return means


def _report(cfg: DictConfig, done: list[Restored]) -> dict[str, Any]:
    """The values file: what was asked for, and what was measured of each picture."""
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    keys = ("ckpt", "input", "simulate", "reference", "mask", "kernel", "sigma", "label", "seed", "weights")
    return {
        **{key: asked.get(key) for key in (*keys, "task", "restorer", "guidance")},
        "pictures": [
            {"input": str(i.source), "output": str(i.target), "restorer": i.restorer, **i.values}
            for i in done
        ],
        "mean": _means(done),
    }


def _write_strip(
    path: Path, observation: Observation, residual: Tensor, clean: np.ndarray, reference: np.ndarray | None
) -> None:
    from scoreexp.figures.images import comparison  # matplotlib, for those who ask for it

    pictures = [_as_picture(observation.operator, observation.y), clean]
    titles = ["observed", "restored"]
    if reference is not None:
        pictures.append(reference)
        titles.append("reference")
    pictures.append(_as_picture(observation.operator, residual))
    comparison(pictures, [*titles, "residual of the data, gray is 0"], path)


def _as_picture(operator: Operator, y: Tensor) -> np.ndarray:
    """Data ``[1, *]`` as pixels ``[H, W, C]``; holes, where y is none, are gray."""
    image = operator.adjoint(y) if isinstance(operator, Mask) else y
    return np.moveaxis(((image[0] + 1) / 2).clamp(0, 1).numpy(), 0, -1)


def _size(shape: tuple[int, ...] | torch.Size) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
