"""Which library wrote a file or folder: decided from names alone, before torch is imported."""

import json
from pathlib import Path
from typing import Any

from scoreexp.bridge.errors import ForeignModelError

FORMATS = (
    "azula",
    "denoising_diffusion_pytorch",
    "diffusers",
    "dncnn",
    "drunet",
    "edm",
    "ffdnet",
    "guided_diffusion",
    "improved_diffusion",
    "k_diffusion",
    "score_sde",
    "torch_export",
)
_TENSOR_FILES = (".pt", ".pth", ".bin", ".safetensors")
_OF_SUFFIX = {".pkl": "edm", ".pt2": "torch_export"}
WEIGHTS = "diffusion_pytorch_model"
"""How diffusers calls its files of weights."""
_LARGEST_JSON = 2**24  # bytes


def recognised(path: str | Path) -> str | None:
    """The format of a model that another library wrote, ``weights`` where only its content can say, or None.

    Beside a file of bare weights, ``NAME.json`` says what the file does not hold: ``{"format": "azula", ...}``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "model_index.json").write_text("{}")
    ...     recognised(folder), recognised("best.ckpt")
    2
    ('diffusers', None)

    Raises:
        ForeignModelError: the JSON file beside it is damaged or names an unknown format.
    """
    path = Path(path)
    if path.is_dir():
        marks = (
            "model_index.json",
            "config.json",
            "refs/main",
            "unet/config.json",
            f"{WEIGHTS}.*",
            f"unet/{WEIGHTS}.*",
        )
        return "diffusers" if any(any(path.glob(mark)) for mark in marks) else None
    if not path.is_file() or path.suffix == ".ckpt":
        return None
    if path.name in ("model_index.json", "config.json", "scheduler_config.json"):
        raise ForeignModelError(f"{path} is part of a diffusers model: give its folder, {path.parent}")
    suffix = path.suffix.lower()
    if suffix not in (*_TENSOR_FILES, *_OF_SUFFIX):
        return None
    stated = sidecar(path)
    if "format" in stated:
        if stated["format"] not in FORMATS:
            raise ForeignModelError(
                f"{path.with_suffix('.json')}: format is {stated['format']!r}: allowed are {', '.join(FORMATS)}"
            )
        return str(stated["format"])
    if isinstance(stated.get("model"), dict) and str(stated["model"].get("type", "")).startswith("image_"):
        return "k_diffusion"
    return _OF_SUFFIX.get(suffix, "weights")


def sidecar(path: Path) -> dict[str, Any]:
    """The JSON object beside a file of weights, empty where there is none."""
    beside = path.with_suffix(".json")
    return read_object(beside) if beside.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ForeignModelError: it is missing, larger than 16 MiB, damaged, or no object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ForeignModelError(f"{path} has {path.stat().st_size} bytes: no configuration is so large")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ForeignModelError(f"{path} does not exist: the model needs it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ForeignModelError(
            f"{path} is not readable JSON ({type(error).__name__}): download it again"
        ) from error
    if not isinstance(found, dict):
        raise ForeignModelError(f"{path} holds no JSON object: download it again")
    return found
