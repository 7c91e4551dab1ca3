"""Chains that cross between the modes of a mixture: denoising MCMC and Metropolis-Hastings, beside Langevin dynamics."""

import pytest
import torch
from conftest import OneStream

from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import Denoiser, OracleDenoiser, VPrediction
from scoreexp.networks import MLP
from scoreexp.numerics.oracles import GaussianMixture
from scoreexp.samplers import (
    ConstantGrid,
    DenoisingMCMC,
    ExactLevels,
    KarrasGrid,
    Langevin,
    MetropolisHastings,
    fit_level_classifier,
    load_level_classifier,
    save_level_classifier,
)
from scoreexp.schedules import EDM, VP, FlowMatching

WEIGHTS, STD, N = torch.tensor([0.2, 0.5, 0.3]), 0.35, 400
MEANS = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, -1.0]], dtype=torch.float64)
DATA = GaussianMixture(WEIGHTS, MEANS, torch.full((3,), STD**2))


def ended(sampler, schedule=None):
    """Shares of the modes and deviation about them, of chains that all start in the first mode at the noise level STD."""
    model, streams = OracleDenoiser(DATA, schedule or EDM()), OneStream()
    y = MEANS[0] + 2**0.5 * STD * streams.normal(torch.zeros(N, 2, dtype=torch.float64))
    t = model.schedule.t_of_sigma(torch.tensor(STD, dtype=torch.float64)).item()
    alpha, _ = model.schedule.at(t)
    result = sampler(model, alpha * y, streams=streams, t_start=t)
    scale = 1.0 if sampler.denoise_last else alpha
    mode = torch.cdist(result.x / scale, MEANS).argmin(1)
    deviation = (result.x / scale - MEANS[mode]).square().mean().sqrt().item()
    return torch.bincount(mode, minlength=3) / N, deviation, result.nfe


@pytest.mark.parametrize("schedule", [EDM(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_denoising_mcmc_finds_the_weights_of_the_modes(schedule):
    sampler = DenoisingMCMC(KarrasGrid(15), updates=200, keep_of=1, ratio=0.5, levels=16)
    shares, deviation, nfe = ended(sampler, schedule)
    print("shares", shares.tolist(), "deviation", deviation)
    torch.testing.assert_close(shares, WEIGHTS, rtol=0, atol=0.08)  # 3 standard deviations of 400 draws
    assert deviation == pytest.approx(STD, rel=0.08)
    assert nfe == 200 + 2 * 14 + 1


def test_the_least_noisy_of_many_states_is_too_far_from_the_data_in_few_dimensions():
    sampler = DenoisingMCMC(KarrasGrid(15), updates=200, keep_of=20, ratio=0.5, levels=16)
    assert 1.05 * STD < ended(sampler)[1] < 1.3 * STD


def test_langevin_at_the_noise_level_of_the_data_stays_in_one_mode():
    shares, deviation, _ = ended(Langevin(ConstantGrid(300), step_size=0.05 * STD**2))
    assert shares[0] > 0.99
    assert deviation == pytest.approx(2**0.5 * STD, rel=0.08)


def test_metropolis_hastings_samples_the_noisy_data():
    shares, deviation, nfe = ended(MetropolisHastings(ConstantGrid(100), step_size=3.0, nodes=24))
    print("shares", shares.tolist(), "deviation", deviation)
    torch.testing.assert_close(shares, WEIGHTS, rtol=0, atol=0.08)
    assert deviation == pytest.approx(2**0.5 * STD, rel=0.08)
    assert nfe == 100 * 24
    with pytest.raises(ValueError, match=r"alpha is 0, sees noise alone: choose"):
        MetropolisHastings(ConstantGrid(2))(
            OracleDenoiser(DATA, FlowMatching()), MEANS, streams=ImageStreams([0, 1, 2])
        )


def test_a_classifier_learns_the_law_of_the_levels(tmp_path):
    data = GaussianMixture(WEIGHTS, MEANS / 3, torch.full((3,), (STD / 3) ** 2))
    x_0 = data.sample(2000, torch.Generator().manual_seed(0)).float()
    law = fit_level_classifier(OracleDenoiser(data, EDM(sigma_min=0.05)), x_0, levels=8, steps=600, width=64)
    k = torch.arange(8).repeat_interleave(200)
    y = data.sample(len(k), torch.Generator().manual_seed(1)).float()
    y = y + law.levels[k, None] * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    exact = ExactLevels(data, law.levels)(y)
    divergence = (exact.exp() * (exact - law(y))).sum(1).mean().item()
    print("KL", divergence)
    assert 0 < divergence < 0.06, "0.88 without any classifier"
    save_level_classifier(law, tmp_path / "levels.pt")
    again = load_level_classifier(tmp_path / "levels.pt")
    assert torch.equal(again(y), law(y))
    assert torch.equal(again.levels, law.levels)
    (tmp_path / "text.pt").write_text("none")
    with pytest.raises(UserError, match=r"is no classifier of noise levels .*save_level_classifier"):
        load_level_classifier(tmp_path / "text.pt")


def test_what_the_chain_cannot_do_is_said():
    network = Denoiser(MLP(event_shape=(2,), width=8, blocks=1), VPrediction(), VP())
    x, streams = torch.zeros(1, 2), ImageStreams([0])
    with pytest.raises(ValueError, match=r"fit one with scoreexp\.samplers\.fit_level_classifier and choose"):
        DenoisingMCMC(KarrasGrid(5))(network, x, streams=streams)
    exact = OracleDenoiser(DATA, EDM())
    with pytest.raises(ValueError, match=r"1 time makes no step .* choose sampler\.grid\.steps >= 2"):
        DenoisingMCMC(KarrasGrid(1))(exact, x, streams=streams)
    with pytest.raises(ValueError, match=r"largest=0\.001 must be above .* choose sampler\.largest"):
        DenoisingMCMC(KarrasGrid(5), largest=1e-3)(exact, x, streams=streams)
    law = ExactLevels(DATA, torch.tensor([1e-6, 1.0]))
    with pytest.raises(ValueError, match=r"noise level sigma/alpha = 1e-06 is outside"):
        DenoisingMCMC(KarrasGrid(5), law=law)(exact, x, streams=streams)
