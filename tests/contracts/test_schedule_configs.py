"""What every schedule of conf/ promises; a new yaml is tested without editing this."""

import math

import pytest
import torch
import yaml

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.construct import construct
from scoreexp.denoisers import Denoiser, EDMPrediction

# Parameters at which a schedule is another curve than its yaml's.
VARIANTS = {
    "vp": {"beta_min": 0.5, "beta_max": 0.5, "t_min": 0.01},
    "ddpm": {"beta_start": 1e-3, "beta_end": 0.1, "steps": 50},
    "ve_power": {"sigma": 25.0, "scale": 1.0},
    "sub_vp": {"beta_min": 0.5, "beta_max": 0.5, "t_min": 0.01},
    "cosine": {"offset": 0.1, "t_min": 0.01, "t_max": 0.9},
    "zero_terminal_snr": {"of": {"_target_": "scoreexp.schedules.Cosine"}},
    "edm": {"sigma_min": 0.01, "sigma_max": 5.0},
    "flow_matching": {"std": 0.3},
    "learned": {"gamma_min": -4.0, "gamma_max": 2.0, "units": 3},
}
NODES = {p.stem: yaml.safe_load(p.read_text()) for p in sorted((conf_dir() / "schedule").glob("*.yaml"))}
NODES |= {f"{name}-other": {**NODES[name], **own} for name, own in VARIANTS.items()}


@pytest.fixture(params=NODES)
def schedule(request):
    return construct(NODES[request.param])


def interior_times(schedule):
    """Times at random, and some that are even in the logarithm of the noise level; in order."""
    u = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * u
    low, high = schedule.sigma_range
    if low < high < math.inf:
        levels = torch.linspace(math.log(low), math.log(high), 202, dtype=torch.float64)[1:-1].exp()
        t = torch.cat([t, schedule.t_of_sigma(levels)])
    return t.sort().values


def derivative(function, t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(function(t).sum(), t, allow_unused=True)[0]


def test_drift_and_diffusion_are_the_derivatives_of_the_scales(schedule):
    t = interior_times(schedule)
    alpha, sigma = schedule(t)
    assert ((alpha > 0) & (alpha <= 1) & (sigma > 0)).all()
    rate = derivative(lambda t: schedule.alpha(t).log(), t)
    torch.testing.assert_close(schedule.drift(t), rate, rtol=1e-9, atol=1e-12)
    variance_rate = derivative(lambda t: schedule.sigma(t) ** 2, t)
    g2 = variance_rate - 2 * schedule.drift(t) * sigma**2
    torch.testing.assert_close(schedule.diffusion(t) ** 2, g2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NODES)
def test_a_model_of_shapes_alone_can_be_built_on_it(name):
    # as a checkpoint is, before memory is spent on it
    with torch.device("meta"):
        schedule = construct(NODES[name])
        Denoiser(torch.nn.Identity(), EDMPrediction(), schedule)
    assert 0 <= schedule.t_min < schedule.t_max


def test_noise_levels_grow_and_name_their_times(schedule):
    t = interior_times(schedule)
    alpha, sigma = schedule(t)
    levels = sigma / alpha
    low, high = schedule.sigma_range
    if low == high:
        assert (levels == low).all()
        return
    assert (levels.diff() > 0).all()
    torch.testing.assert_close(schedule.t_of_sigma(levels), t, rtol=1e-9, atol=1e-12)
    ends = schedule.t_of_sigma(torch.tensor([low, high], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
    for bad in (0.99 * low, 1.01 * high) if high < math.inf else (0.99 * low,):
        with pytest.raises(ValueError, match="noise level sigma/alpha"):
            schedule.t_of_sigma(torch.tensor([bad], dtype=torch.float64))


def test_values_have_the_shape_and_dtype_of_t_and_the_accuracy_of_float64(schedule):
    t = interior_times(schedule)[:6].reshape(2, 3).float()
    for function in (schedule.alpha, schedule.sigma, schedule.drift, schedule.diffusion):
        value = function(t)
        assert value.shape == (2, 3)
        assert torch.equal(value, function(t.double()).float())
    assert schedule.at(t[0, 0].item()) == tuple(v[0, 0].item() for v in schedule(t.double()))


def test_ends_may_be_rounded_and_what_lies_outside_is_refused(schedule):
    ends = torch.tensor([schedule.t_min, schedule.t_max])
    assert schedule.sigma(ends).isfinite().all()
    low, high = schedule.sigma_range
    if low < high < math.inf:
        rounded = torch.tensor([low * (1 - 1e-7), high * (1 + 1e-7)], dtype=torch.float64)
        torch.testing.assert_close(schedule.t_of_sigma(rounded), ends.double())
    inside = (schedule.t_min + schedule.t_max) / 2
    for bad in (-0.01, schedule.t_min * 0.99 - 1e-9, schedule.t_max * 1.01, math.nan, math.inf):
        t = torch.tensor([inside, bad], dtype=torch.float64)
        for function in (schedule.alpha, schedule.sigma, schedule.drift, schedule.diffusion, schedule):
            with pytest.raises(ValueError, match=rf"t = .* is outside \[.*{type(schedule).__name__}"):
                function(t)
