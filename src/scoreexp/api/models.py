"""What the functions for Python users take as a model, and how its run would use it."""

from pathlib import Path

from scoreexp.core.construct import construct
from scoreexp.denoisers import DenoiserBase
from scoreexp.runs.model import load, require_trusted
from scoreexp.samplers import DDIM, Sampler, UniformGrid, sampler_of_one_level

STEPS = 50


def as_model(model: DenoiserBase | str | Path) -> DenoiserBase:
    """A denoiser, or that of a checkpoint."""
    return model if isinstance(model, DenoiserBase) else load(model)


def usual_sampler(model: DenoiserBase) -> Sampler:
    """One evaluation for a model of one noise level, the sampler of its run, or else DDIM with 50 steps."""
    if (sampler := sampler_of_one_level(model.schedule)) is not None:
        return sampler
    node = model.record.get("config", {}).get("sampler")
    if not node:
        return DDIM(UniformGrid(STEPS))
    require_trusted(node, "sampler", {"scoreexp.samplers"})
    return construct(node, "sampler")
