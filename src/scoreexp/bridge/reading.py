"""From the path of a foreign model to what it is in our terms."""

from pathlib import Path

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.foreign import ForeignModel
from scoreexp.bridge.inert import read_weights
from scoreexp.bridge.recognise import sidecar


def read_foreign(path: str | Path, kind: str, raw: bool = False) -> ForeignModel:
    """Read a model of another library; nothing that its files hold is run.

    Args:
        path: a file or a folder.
        kind: its format, see ``recognised``.
        raw: where a file holds weights and their average, take the weights.

    Raises:
        ForeignModelError: it cannot be read; the message names what is missing or not supported.
    """
    path = Path(path)
    if kind == "diffusers":
        from scoreexp.bridge.diffusers import read_diffusers

        return read_diffusers(path)
    if kind == "torch_export":
        from scoreexp.bridge.exported import read_exported

        return read_exported(path, sidecar(path))
    held, stated = read_weights(path), sidecar(path)
    kind = _kind_of(held, path) if kind == "weights" else kind
    if kind == "denoising_diffusion_pytorch":
        from scoreexp.bridge.denoising_diffusion import read_denoising_diffusion

        return read_denoising_diffusion(held, stated, path, raw)
    if kind == "k_diffusion":
        from scoreexp.bridge.k_diffusion import read_k_diffusion

        return read_k_diffusion(held, stated, path, raw)
    if kind == "azula":
        from scoreexp.bridge.azula import read_azula

        return read_azula(held, stated, path)
    if kind == "edm":
        from scoreexp.bridge.edm import read_edm

        return read_edm(held, path)
    if kind in ("guided_diffusion", "improved_diffusion"):
        from scoreexp.bridge.openai import read_openai

        return read_openai(held, stated, path, kind)
    if kind == "score_sde":
        from scoreexp.bridge.score_sde import read_score_sde

        return read_score_sde(held, stated, path, raw)
    from scoreexp.bridge.gaussian_denoisers import read_gaussian_denoiser

    return read_gaussian_denoiser(held, stated, path, kind)


def _kind_of(held: object, path: Path) -> str:
    """The format of a file that nothing but its content names."""
    names = set(held) if isinstance(held, dict) else set()
    if "scoreexp" in names:
        raise ForeignModelError(f"{path} is a checkpoint of scoreexp: name it {path.stem}.ckpt")
    inner = held.get("model") if isinstance(held, dict) else None
    if {"model", "ema"} <= names and isinstance(inner, dict) and "alphas_cumprod" in inner:
        return "denoising_diffusion_pytorch"
    average = held.get("ema") if isinstance(held, dict) else None
    if "model" in names and isinstance(average, dict) and "shadow_params" in average:
        return "score_sde"
    if {"time_embed.0.weight", "input_blocks.0.0.weight"} <= names:
        return "guided_diffusion"
    text = [str(name).removeprefix("module.") for name in names]
    if {"m_head.weight", "m_tail.weight"} <= set(text):
        return "drunet"
    if any("intermediate_dncnn" in name for name in text):
        return "ffdnet"
    if any(name.startswith(("down_blocks.", "mid_block.")) for name in text):
        raise ForeignModelError(
            f"{path} holds the weights of a diffusers model without config.json: give its folder"
        )
    raise ForeignModelError(
        f"{path} does not say what it is: write {path.with_suffix('.json').name} beside it with a format, see docs/bridge.md"
    )
