"""Diffusion of observations with the forward model in the denoiser: the exact conditional law of a linear Gaussian model."""

import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import DenoiserBase, Rendered
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import ForwardModelMatching, X0Weighting
from scoreexp.observations import GaussianNoise, Identity, LinearFunction
from scoreexp.samplers import DDIM, UniformGrid
from scoreexp.schedules import FlowMatching

MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.4, 0.1, -0.1], [0.1, 0.3, 0.05], [-0.1, 0.05, 0.2]], dtype=torch.float64)
VIEWS = [torch.tensor(rows, dtype=torch.float64) for rows in ([[1, 0, 0.5], [0, 1, 0]], [[0.0, 0.3, 1]])]
SEEN = torch.tensor([[1.0, -0.5, 0.2]], dtype=torch.float64)  # of the context
NOISE = 0.2
SCHEDULE = FlowMatching()


def operator(matrix):
    return LinearFunction(lambda x: x @ matrix.T.to(x), (3,))


class Exact(DenoiserBase):
    """``E[S | o_t, c]`` of Gaussian signals, from ``A^T o_t`` and the pulled-back context ``B^T c``."""

    def __init__(self, view):
        self.schedule, self.event_shape, self.view = SCHEDULE, (3,), view
        self.gain = COVARIANCE @ SEEN.T / (SEEN @ COVARIANCE @ SEEN.T + NOISE**2)
        self.covariance = COVARIANCE - self.gain @ SEEN @ COVARIANCE  # of S given c

    def mean(self, cond):
        """``E[S | c]``."""
        c = cond @ SEEN.T / (SEEN @ SEEN.T)
        return MEAN + (c - MEAN @ SEEN.T) @ self.gain.T

    def left(self, alpha, sigma):
        """The covariance of S given ``o_t`` and c, and the gain of ``o_t``."""
        a, c = self.view, self.covariance
        gain = (
            alpha
            * c
            @ a.T
            @ torch.linalg.inv(alpha**2 * a @ c @ a.T + sigma**2 * torch.eye(len(a), dtype=c.dtype))
        )
        return c - alpha * gain @ a @ c, gain

    def __call__(self, x_t, t, cond=None):
        o_t = x_t @ torch.linalg.pinv(self.view.T).T
        alpha, sigma = self.schedule.at(t[0].item())
        mean = self.mean(cond)
        return mean + (o_t - alpha * mean @ self.view.T) @ self.left(alpha, sigma)[1].T


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_the_loss_at_the_exact_signal_is_the_variance_of_the_view_that_is_left(view, t):
    n, model = 4000, Exact(view)
    objective = ForwardModelMatching([operator(view)], operator(SEEN), GaussianNoise(NOISE), X0Weighting())
    x = Gaussian(MEAN, COVARIANCE).sample(n, generator(0, "x"))
    noise = torch.randn(n, 3, generator=generator(0, "noise"), dtype=torch.float64)
    times = torch.full((n,), t, dtype=torch.float64)
    loss = objective(model, Batch(x=x), times, noise)
    left = view @ model.left(*SCHEDULE.at(t))[0] @ view.T
    assert loss.mean().item() == pytest.approx(
        left.trace().item() / len(view), abs=4 * loss.std().item() / n**0.5
    )

    class Off(Exact):
        def __call__(self, x_t, t, cond=None):
            return super().__call__(x_t, t, cond) + 0.1 * x_t

    assert objective(Off(view), Batch(x=x), times, noise).mean() > loss.mean()


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_drawn_given_the_context_has_the_exact_law_and_its_signal_the_exact_mean(view):
    # the flow is a deterministic linear map of the noise: mean and covariance from a few draws, without scatter
    model = Exact(view)
    rendered = Rendered(model, operator(view))
    c = torch.tensor([[0.7]], dtype=torch.float64) @ SEEN
    m = len(view)
    z = torch.cat([torch.zeros(1, m), torch.eye(m)]).double()
    cond = c.expand(len(z), 3)
    sampler = DDIM(UniformGrid(2000), denoise_last=False)
    drawn = sampler(rendered, z, streams=ImageStreams(range(len(z))), cond=cond).x
    alpha, sigma = SCHEDULE.at(SCHEDULE.t_min)
    mean, columns = drawn[0], (drawn[1:] - drawn[0]).T
    law = alpha**2 * view @ model.covariance @ view.T + sigma**2 * torch.eye(m, dtype=torch.float64)
    torch.testing.assert_close(mean, alpha * (model.mean(c) @ view.T)[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(columns @ columns.T, law, rtol=0, atol=2e-3)
    signal = model(operator(view).adjoint(drawn), torch.full((len(z),), SCHEDULE.t_min).double(), cond)
    torch.testing.assert_close(signal[:1], model.mean(c), rtol=0, atol=5e-3)
    torch.testing.assert_close(signal @ view.T, drawn / alpha, rtol=0, atol=5e-3)


def test_a_view_is_named_by_the_noise_and_all_come_up():
    seen = []

    class Told(Exact):
        def __call__(self, x_t, t, cond=None):
            seen.append(x_t)
            return torch.zeros_like(x_t)

    views = [operator(view) for view in VIEWS]
    objective = ForwardModelMatching(views, Identity(), GaussianNoise(NOISE), X0Weighting())
    x, t = torch.ones(2, 3, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    noises = [torch.randn(2, 3, generator=generator(k, "noise"), dtype=torch.float64) for k in range(12)]
    losses = [objective(Told(VIEWS[0]), Batch(x=x), t, noise) for noise in noises]
    repeated = [objective(Told(VIEWS[0]), Batch(x=x), t, noise) for noise in noises]
    assert all(torch.equal(a, b) for a, b in zip(losses, repeated, strict=True))
    of_the_second = {
        bool((part[:, 0] == 0).all()) for part in seen
    }  # its adjoint leaves the first entry at 0
    assert of_the_second == {False, True}
    with pytest.raises(ValueError, match="views is empty"):
        ForwardModelMatching([], Identity(), GaussianNoise(NOISE), X0Weighting())
    with pytest.raises(ValueError, match="no clean data x"):
        objective(Told(VIEWS[0]), Batch(y=x), t, noises[0])
