"""Denoising diffusion GANs: the posterior of a step, the losses at their known optimum, and sampling by exact draws."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import Denoiser, OracleDenoiser, X0Prediction
from scoreexp.networks import MLP, Generator, ScoreCNN
from scoreexp.numerics.oracles import GaussianMixture
from scoreexp.objectives.adversarial import (
    discriminator_losses,
    generator_losses,
    gradient_penalties,
    step_of,
)
from scoreexp.samplers import DDGAN, DDIM, DDPM, DiscreteGrid, UniformGrid, draw
from scoreexp.schedules import VE, VP


@pytest.mark.parametrize("schedule", [VP(), VE()], ids=["vp", "ve"])
def test_the_posterior_of_a_step_is_gaussian_conditioning(schedule):
    t = schedule.t_max * torch.arange(1, 5, dtype=torch.float64) / 4
    step = step_of(schedule, t, steps=4)
    zero, one = torch.zeros(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    x_t, x_0 = 0.7 * one, -0.4 * one
    # x_s and x_t given x_0 are jointly Gaussian with the covariance alpha_t / alpha_s sigma_s^2
    covariance = step.alpha_t / step.alpha_s * step.sigma_s**2
    mean = step.alpha_s * -0.4 + covariance / step.sigma_t**2 * (0.7 - step.alpha_t * -0.4)
    variance = step.sigma_s**2 - covariance**2 / step.sigma_t**2
    found = step.backwards(x_t, x_0, zero)
    torch.testing.assert_close(found[:, 0], mean)
    torch.testing.assert_close((step.backwards(x_t, x_0, one) - found)[:, 0] ** 2, variance)
    assert step.backwards(x_t, x_0, one)[0].item() == -0.4, "the first step ends at clean data"
    # forwards: the marginal law of x_t
    parts = [
        step.forwards(*part)[1][:, 0] for part in ((one, zero, zero), (zero, one, zero), (zero, zero, one))
    ]
    torch.testing.assert_close(parts[0], step.alpha_t)
    torch.testing.assert_close((parts[1] ** 2 + parts[2] ** 2).sqrt(), step.sigma_t)


def test_the_gradient_penalty_and_its_gradient():
    a = torch.tensor(1.5, requires_grad=True)
    x, b = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).requires_grad_(), torch.tensor([0.3, -0.7])
    penalties = gradient_penalties(a * x.square().sum(1) / 2 + x @ b, x)
    gradient = 1.5 * x.detach() + b
    torch.testing.assert_close(penalties, gradient.square().sum(1))
    penalties.sum().backward()
    torch.testing.assert_close(a.grad, 2 * (gradient * x.detach()).sum())


def test_the_best_discriminator_of_two_gaussians_is_their_log_ratio():
    mean = 1.2
    x = torch.linspace(-9, 10, 801, dtype=torch.float64)
    of_data, of_drawn = (Normal(m, 1.0).log_prob(x).exp() * (x[1] - x[0]) for m in (mean, 0.0))

    def expected(parameters):
        logits, nothing = parameters[0] * x + parameters[1], torch.full_like(x, -1e4)
        losses = of_data * discriminator_losses(logits, nothing) + of_drawn * discriminator_losses(
            -nothing, logits
        )
        return losses.sum()

    best = torch.tensor([mean, -(mean**2) / 2], dtype=torch.float64)
    gradient = torch.func.grad(expected)
    assert gradient(best).abs().max() < 1e-7  # softplus is linear beyond 20
    assert gradient(torch.zeros_like(best)).abs().max() > 0.1
    # the loss is convex in the logits, and there it is 2 log 2 - 2 JS
    mixed = (of_data + of_drawn) / 2
    js = sum((p * (p / mixed).log()).nansum() for p in (of_data, of_drawn)) / 2
    torch.testing.assert_close(expected(best), 2 * torch.tensor(2.0, dtype=torch.float64).log() - 2 * js)


def test_the_generators_gradient_does_not_vanish_where_the_discriminator_is_sure():
    logits = torch.tensor([-30.0, 0.0, 30.0], requires_grad=True)
    generator_losses(logits).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-1.0, -0.5, 0.0]))


class ExactDraws(nn.Module):
    """x_0 = 1 with probability 0.3 and else -1, drawn from its law given x_t of a VP schedule, by one normal number."""

    latent_channels, event_shape = 1, (1,)

    def forward(self, x, c_noise, cond=None):
        level = (4 * c_noise).exp()[:, None]  # sigma / alpha
        alpha = (1 + level**2).rsqrt()
        log_odds = 2 * x / (alpha * level**2) + torch.tensor(0.3 / 0.7).log()
        return torch.where(Normal(0.0, 1.0).cdf(cond) < log_odds.sigmoid(), 1.0, -1.0)


def test_exact_draws_give_exact_samples_in_any_number_of_steps_and_means_do_not():
    model, n = Denoiser(ExactDraws(), X0Prediction(), VP()), 1000
    for steps in (1, 4):
        result = draw(model, DDGAN(steps), range(n))
        assert result.nfe == steps
        assert (result.x.abs() == 1).all()
        assert (result.x == 1).double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)
    means = torch.tensor([[-1.0], [1.0]])
    oracle = OracleDenoiser(GaussianMixture(torch.tensor([0.7, 0.3]), means, torch.full((2,), 1e-8)), VP())
    of_means = draw(oracle, DDGAN(2), range(500)).x
    assert ((of_means.abs() - 1).abs() > 0.1).double().mean() > 0.5, "Gaussian steps cannot reach two points"
    assert torch.equal(of_means, draw(oracle, DDPM(DiscreteGrid(2, 2)), range(500)).x)


def generator(**given):
    torch.manual_seed(0)
    network = Generator(
        network=partial(MLP, width=16, blocks=1), event_shape=(2,), latent_channels=3, **given
    )
    for weights in network.parameters():  # blocks start as the identity
        nn.init.normal_(weights, 0, 0.3)
    return Denoiser(network, X0Prediction(), VP()).eval()


def test_the_latent_is_a_samples_own_and_moves_it():
    model = generator()
    alone, beside = draw(model, DDGAN(4), [7]).x, draw(model, DDGAN(4), [3, 7]).x
    torch.testing.assert_close(alone[0], beside[1])
    x, t = torch.zeros(2, 2), torch.ones(2)
    first, second = model(x, t, torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]]))
    assert (first - second).norm() > 1e-3


def test_what_a_generator_cannot_do_is_one_line():
    model = generator()
    with pytest.raises(
        UserError, match=r"draws x_0 from 3 random numbers and has no posterior mean: .*sampler=ddgan"
    ):
        draw(model, DDIM(UniformGrid(4)), [0])
    with pytest.raises(ValueError, match=r"10 classes: a generator takes none, set data\.classes=false"):
        generator(num_classes=10)
    with pytest.raises(ValueError, match=r"ScoreCNN has no vector that conditions it .*choose MLP, UNet"):
        Generator(network=partial(ScoreCNN, widths=(4,)), event_shape=(1, 16, 16))
    model.record = {"config": {"time_law": {"steps": 4}}}
    with pytest.raises(UserError, match=r"not those of the 4 steps .*sampler\.steps=4"):
        draw(model, DDGAN(8), [0])
    with pytest.raises(UserError, match=r"the times 0\.6, 0\.5, 0\.25 are not"):
        DDGAN(4)(model, torch.zeros(1, 2), streams=ImageStreams([0]), t_start=0.6)
    assert DDGAN(4)(model, torch.zeros(1, 2), streams=ImageStreams([0]), t_start=0.5).nfe == 2
