"""Convert between checkpoints and the formats of other libraries."""

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from scoreexp.api.export import to_diffusers, to_onnx, to_torch_export
from scoreexp.app.terminal import say_labelled
from scoreexp.bridge.recognise import recognised
from scoreexp.core.errors import UserError
from scoreexp.denoisers import Denoiser
from scoreexp.runs.checkpoint_file import write_checkpoint
from scoreexp.runs.directory import ANOTHER, new_folder, shown
from scoreexp.runs.model import load

_ENDING = {"scoreexp": ".ckpt", "diffusers": "_diffusers", "onnx": ".onnx", "torch_export": ".pt2"}


def convert(cfg: DictConfig) -> Path:
    """Write the model of ``cfg["in"]`` or ``cfg.ckpt`` as ``cfg.to``, see ``conf/convert.yaml``; returns that."""
    source = Path(cfg["in"] or cfg.ckpt).expanduser()
    out = Path(cfg.out).expanduser() if cfg.out else source.with_name(f"{source.stem}{_ENDING[cfg.to]}")
    if cfg.to == "scoreexp" and recognised(source) is None:
        raise UserError(
            f"{source} is a checkpoint of scoreexp already: give to=diffusers, to=onnx or to=torch_export"
        )
    if out.exists() and (cfg.to == "diffusers" or not cfg.overwrite):
        remedy = (
            "give another out"
            if cfg.to == "diffusers"
            else "add overwrite=true to replace it, or give another out"
        )
        raise UserError(f"out={out} exists: {remedy}")
    model = load(source, weights=cfg.weights, trust=tuple(cfg.trust))
    record: dict[str, Any] = dict(model.record)
    if record["config"]["network"].get("_target_") == "scoreexp.bridge.ExportedNetwork":
        raise UserError(
            f"{source} is a program and stays the file that it is: give it to commands as ckpt={source}"
        )
    if cfg.to == "scoreexp":
        _write_ours(model, record, source, out)
    elif cfg.to == "diffusers":
        with new_folder(out, ANOTHER):
            to_diffusers(model, record, out)
    else:
        (to_onnx if cfg.to == "onnx" else to_torch_export)(model, record, out)
    say_labelled("written", f"{shown(out)} ({cfg.to})")
    ours = {
        "scoreexp": f"ckpt={shown(out)} of sample, denoise, restore and evaluate",
        "diffusers": "",
        "onnx": "",
    }
    if use := ours.get(cfg.to, f"ckpt={shown(out)}"):
        say_labelled("try next", use)
    return out


def _write_ours(model: Denoiser, record: dict[str, Any], source: Path, out: Path) -> None:
    """A checkpoint with its provenance: format, file and checksum."""
    origin = {**record["config"]["source"], "file": source.name, "sha256": _checksum(source)}
    weights = {f"denoiser.{name}": tensor for name, tensor in model.state_dict().items()}
    config = {**record["config"], "source": origin}
    write_checkpoint({"state_dict": weights, "scoreexp": {**record, "config": config}}, out)


def _checksum(source: Path) -> str:
    """SHA-256 of a file; of a folder, that of its files' checksums in the order of their names."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(bytes.fromhex(_checksum(file)) for file in files)).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
