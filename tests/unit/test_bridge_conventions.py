"""Conventions of other libraries: what their networks are told and return, against closed forms and their own numbers."""

import json
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

import scoreexp as se
from scoreexp.bridge import (
    Betas,
    Convention,
    DiscreteVP,
    FlowTime,
    LogLevel,
    NegatedEDM,
    SigmaLabel,
    Step,
    TimestepGrid,
    VPTime,
)
from scoreexp.bridge.azula import guidance_weight, noise_levels
from scoreexp.core.streams import ImageStreams

FIXTURES = Path(__file__).parent.parent / "fixtures" / "bridge"
DATA = torch.tensor([1.5, -0.5])  # all data are this point, so every conditional mean is known


class Known(torch.nn.Module):
    """The exact output of one kind for data at one point; checks what it is told of the noise level."""

    event_shape = (2,)

    def __init__(self, kind: str, schedule, told=None) -> None:
        super().__init__()
        self.kind, self.schedule, self.told = kind, schedule, told

    def forward(self, x, c_noise, cond=None):
        alpha, sigma = self.schedule(self.t)
        alpha, sigma = alpha[:, None], sigma[:, None]
        eps = (x - alpha * DATA) / sigma
        if self.told is not None:
            assert c_noise.tolist() == pytest.approx(self.told(self.t).tolist(), rel=1e-9)
        return {
            "epsilon": eps,
            "v": alpha * eps - sigma * DATA,
            "sample": DATA.expand_as(x),
            "flow": eps - DATA,
            "score": -eps / sigma,
            "scaled_score": -eps,
        }[self.kind]


@pytest.mark.parametrize("kind", ["epsilon", "v", "sample", "flow", "score", "scaled_score"])
@pytest.mark.parametrize(
    ("schedule", "label", "told"),
    [
        (se.schedules.VP(), VPTime(), lambda t: 999 * t),
        (se.schedules.EDM(), LogLevel(1.0, unit=0.5), lambda t: (t / 2).log()),
        (se.schedules.EDM(), SigmaLabel(0.5), lambda t: t / 2),
        (se.schedules.FlowMatching(), FlowTime(), lambda t: 1000 * t),
        (se.schedules.FlowMatching(), FlowTime(1.0, from_noise=True), lambda t: 1 - t),
        (DiscreteVP(Betas()), Step(Betas()), lambda t: 1000 * t - 1),
    ],
)
def test_every_prediction_gives_the_posterior_mean(kind, schedule, label, told):
    if kind == "v" and isinstance(schedule, se.schedules.FlowMatching):
        schedule = se.schedules.FlowMatching(t_max=0.9)
    if kind in ("epsilon", "score", "scaled_score") and isinstance(schedule, se.schedules.FlowMatching):
        schedule = se.schedules.FlowMatching(t_max=0.9)
    network = Known(kind, schedule, told)
    model = se.denoisers.Denoiser(network, Convention(kind, label), schedule)
    low, high = max(schedule.t_min, 0.01), min(schedule.t_max, 50.0)
    network.t = torch.linspace(low, high, 5, dtype=torch.float64)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (model(x, network.t) - DATA).abs().max() < 1e-9


def test_the_sign_of_diffusers_v_in_edm():
    scales = torch.ones(1), torch.tensor([0.7])
    ours, theirs = se.denoisers.EDMPrediction(0.5)(*scales), NegatedEDM(0.5)(*scales)
    assert theirs.c_out == -ours.c_out
    assert theirs._replace(c_out=ours.c_out) == ours


STORED = json.loads((FIXTURES / "diffusers.json").read_text())


@pytest.mark.parametrize("key", STORED["cumulative"])
def test_the_betas_of_diffusers(key):
    kind, no_signal = key.split()
    found = Betas(kind, zero_terminal_snr=bool(int(no_signal))).cumulative[STORED["steps"]]
    stored = torch.tensor(STORED["cumulative"][key], dtype=torch.float64)
    assert torch.allclose(found, stored, rtol=2e-6, atol=0)


@pytest.mark.parametrize("key", STORED["timesteps"])
def test_the_timesteps_of_diffusers(key):
    spacing, count = key.split()
    times = TimestepGrid(int(count), spacing)(DiscreteVP(Betas()))
    indices = (1000 * times - 1).round().long().tolist()
    found = {"first": indices[:3], "last": indices[-3:], "sum": sum(indices)}
    assert found == STORED["timesteps"][key]


@pytest.mark.parametrize("no_signal", [False, True])
def test_a_table_is_a_schedule(no_signal):
    schedule = DiscreteVP(Betas("scaled_linear", start=0.00085, end=0.012, zero_terminal_snr=no_signal))
    t = torch.linspace(0.0011, 0.9999, 50, dtype=torch.float64, requires_grad=True)
    alpha, sigma = schedule(t)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-12
    assert (schedule.t_of_sigma(schedule.noise_level(t)) - t).abs().max() < 1e-9
    (slope,) = torch.autograd.grad(schedule._log_alpha(t).sum(), t)
    assert torch.allclose(slope, schedule.drift(t), rtol=1e-9)
    assert (schedule.at(1.0)[0] == 0) == no_signal


def test_noise_prediction_of_a_model_without_terminal_signal_is_refused():
    betas = Betas(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        se.denoisers.Denoiser(torch.nn.Identity(), Convention("epsilon", Step(betas)), DiscreteVP(betas))


def test_a_step_is_rounded_only_where_the_network_wants_it():
    schedule = DiscreteVP(Betas())
    between = schedule(torch.tensor([0.5004], dtype=torch.float64))
    assert Step(Betas())(*between).item() == pytest.approx(499.4)
    assert Step(Betas(), rounded=True)(*between).item() == 499
    assert Step(Betas())(*schedule(torch.tensor([0.5], dtype=torch.float64))).item() == 499


@pytest.mark.parametrize("count", [300, 600])
def test_steps_that_do_not_divide_a_thousand_leave_no_noise(count):
    """diffusers' DDIM goes ``1000 // count`` steps back, which is not where the next step of trailing spacing begins."""
    schedule = DiscreteVP(Betas())
    oracle = se.oracles.Gaussian(torch.zeros(1), 0.25 * torch.ones(1))  # whose flow takes 1 to 1/2
    model = se.denoisers.OracleDenoiser(oracle, schedule)
    grid = TimestepGrid(count, "trailing")
    x = torch.ones(1, 1, dtype=torch.float64)
    ours = se.samplers.DDIM(grid)(model, x, streams=ImageStreams([0])).x

    theirs, back = x, 1000 // count
    for t in grid(schedule):
        n = int((1000 * t).round())
        alpha, sigma = schedule.at(n / 1000)
        after = schedule.at((n - back) / 1000) if n > back else (1.0, 0.0)
        x0_hat = model(theirs, t[None])
        theirs = after[0] * x0_hat + after[1] * (theirs - alpha * x0_hat) / sigma
    assert abs(ours.item() - 0.5) < 6e-3
    assert abs(theirs.item() - 0.5) > 5 * abs(ours.item() - 0.5)


def test_azula_guidance_of_one_is_two_here():
    class Branches(se.denoisers.DenoiserBase):
        schedule, event_shape = se.schedules.VP(), (1,)
        record = MappingProxyType({"num_classes": 2, "config": {"model": {"label_dropout": 0.1}}})

        def __call__(self, x_t, t, cond=None):
            null = torch.ones(len(x_t)) if cond is None else (cond == 2).float()
            return 3.0 - 2.0 * null[:, None]

    positive, null = 3.0, 1.0
    model = se.guidance.ClassifierFree(Branches(), weight=guidance_weight(1.0))
    guided = model(torch.zeros(1, 1), torch.tensor([0.5]), torch.tensor([0]))
    assert guided.item() == positive + 1.0 * (positive - null)


def test_azula_vp_ends_at_a_beta_of_27_63():
    _, high = noise_levels({"name": "VPSchedule"}, Path("a.json"))
    beta_max = 4 * torch.tensor(1000.0, dtype=torch.float64).log().item()
    ours = se.schedules.VP(beta_min=1e-12, beta_max=beta_max)
    assert beta_max == pytest.approx(27.63, abs=0.01)
    assert ours.sigma_range[1] == pytest.approx(high, rel=1e-5)


def test_deepinv_in_both_directions():
    """The posterior mean of a Gaussian in units of [0, 1], where sigma is half of ours."""
    oracle = se.oracles.Gaussian(torch.full((1, 2, 2), 0.4), torch.full((1, 2, 2), 0.09))
    model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    mean, variance, sigma = 0.7, 0.09 / 4, torch.tensor([0.1, 0.3])
    x = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    share = (variance / (variance + sigma**2)).view(2, 1, 1, 1)
    denoiser = se.as_deepinv(model)
    assert torch.allclose(denoiser(x, sigma), mean + share * (x - mean), atol=1e-6)
    assert torch.equal(denoiser(x, 0.1), denoiser(x, torch.tensor([0.1, 0.1])))
    back = se.from_deepinv(denoiser, sigma_max=0.9)
    t = torch.tensor([0.3, 1.2], dtype=torch.float64)
    ours = oracle.posterior_mean(2 * x.double() - 1, torch.ones(2, dtype=torch.float64), t)
    assert torch.allclose(back(2 * x - 1, t).double(), ours, atol=1e-5)
