"""Edit the user's own images: an editor's strip, as files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from scoreexp.app.run_settings import label_of_pictures, model_of_pictures
from scoreexp.app.terminal import say_labelled
from scoreexp.core.construct import construct
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import read_image, write_image
from scoreexp.denoisers import DenoiserBase
from scoreexp.denoisers.counting import counting
from scoreexp.editing import Editor
from scoreexp.figures.images import comparison
from scoreexp.runs.directory import empty_folder, shown
from scoreexp.samplers import labels_for
from scoreexp.system.json_files import write_json


def edit(cfg: DictConfig) -> Path:
    """The strip of ``cfg.editor`` for ``cfg.input``, see ``conf/edit.yaml``; returns the folder that holds it.

    Raises:
        UserError: the images do not suit the model or the editor, or there is nothing to edit.
    """
    editor: Editor = construct(OmegaConf.to_container(cfg.editor, resolve=True), "editor")
    sources = [Path(source).expanduser() for source in (cfg.input, cfg.other) if source is not None]
    if len(sources) != editor.inputs:
        remedy = "add other=PICTURE" if editor.inputs > 1 else "leave other out, or give editor=interpolation"
        raise UserError(f"editor: {type(editor).__name__} takes {editor.inputs} of input and other: {remedy}")
    out = sources[0].with_name(f"{sources[0].stem}_edited") if cfg.out is None else cfg.out
    with empty_folder(out) as folder, counting() as evaluations:
        model = model_of_pictures(cfg)
        images = [_read(source, model).to(model.device) for source in sources]
        cond, target = _labels(cfg, model, editor)
        streams = ImageStreams([cfg.seed])
        strip = editor.strip(model, images, streams=streams, cond=cond, target=target)[:, 0]
        frames = [np.moveaxis(to_unit(x).clamp(0, 1).cpu().numpy(), 0, -1) for x in strip]
        for number, frame in enumerate(frames):
            write_image(folder / f"frame_{number:03d}.png", frame)
        comparison(frames, [f"frame {number}" for number in range(len(frames))], folder / "strip.png")
        meta: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        del meta["run_dir"]
        write_json(folder / "meta.json", {**meta, "evaluations": evaluations.rows})
    say_labelled("images", f"{shown(folder)} ({len(frames)}, {evaluations.rows} network evaluations)")
    say_labelled("overview", shown(folder / "strip.png"))
    return folder


def _read(source: Path, model: DenoiserBase) -> Tensor:
    """The image ``[1, C, H, W]`` in the range of the model, whose size it must have."""
    pixels = torch.from_numpy(np.moveaxis(read_image(source).pixels, -1, 0).copy())
    if tuple(pixels.shape) != tuple(model.event_shape or ()):
        raise UserError(
            f"{source.name} has channels, height and width {tuple(pixels.shape)}, the model {model.event_shape}: crop or "
            "scale it to the size that the model was trained on"
        )
    return to_model(pixels)[None]


def _labels(cfg: DictConfig, model: DenoiserBase, editor: Editor) -> tuple[Tensor | None, Tensor | None]:
    """Those of the image, and those that are wanted."""
    label = label_of_pictures(cfg, model)
    classes = model.record.get("num_classes")
    if editor.inputs == 1 and cfg.to is None:
        raise UserError(
            "an image comes back as it was where no class is wanted: give to=K, with a model of classes"
            if classes is None
            else f"an image comes back as it was where no class is wanted: give to=0 to {classes - 1}"
        )
    cond = labels_for([cfg.seed], model.record, label, device=model.device)
    wanted = None if cfg.to is None else labels_for([cfg.seed], model.record, cfg.to, device=model.device)
    return cond, wanted
