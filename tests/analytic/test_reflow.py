"""Reflow of a Gaussian, of which the flow is affine: pairs in closed form, straight paths, one step to the end."""

from types import MappingProxyType

import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import ConsistencyPrediction, Denoiser, DenoiserBase, OracleDenoiser, VPrediction
from scoreexp.denoisers.counting import counting
from scoreexp.networks import MLP
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import DenoisingScoreMatching, FlowWeighting, Reflow
from scoreexp.samplers import DDIM, UniformGrid
from scoreexp.schedules import EDM, ConstantNoise, FlowMatching

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
ROOT = torch.tensor([[0.7, 0.2], [0.2, 0.4]], dtype=torch.float64)  # of the covariance
DATA = Gaussian(MEAN, ROOT @ ROOT)
FLOW = FlowMatching(t_min=1e-4)
INSIDE = DenoisingScoreMatching(FlowWeighting())


def end(z):
    """Of the flow from ``N(0, I)``: ``mu + C^(1/2) z``."""
    return MEAN + z @ ROOT


def reflow(teacher=None, **settings):
    teacher = teacher or OracleDenoiser(DATA, FLOW)
    return Reflow(INSIDE, teacher, RK45(1e-6, 1e-6), **{"pairs": 6, "together": 4, **settings})


class Straight(DenoiserBase):
    """The minimiser on pairs ``(z, end(z))``: ``z`` from ``x_t = (1 - t) end(z) + t z``, then its end."""

    schedule, event_shape = FLOW, (2,)

    def __call__(self, x_t, t, cond=None):
        t = t[:, None, None]
        matrix = (1 - t) * ROOT + t * torch.eye(2, dtype=torch.float64)
        return end(torch.linalg.solve(matrix, (x_t - (1 - t[:, 0]) * MEAN)[..., None])[..., 0])


def noise(n):
    return torch.randn(n, 2, generator=generator(0, "noise"), dtype=torch.float64)


# at EDM's largest level, 80, the mean is not quite 0
@pytest.mark.parametrize(("teacher", "tolerance"), [(FLOW, 2e-5), (EDM(), 0.01)], ids=["flow", "edm"])
def test_pairs_are_the_start_and_the_end_of_the_teachers_flow(teacher, tolerance):
    objective = reflow(OracleDenoiser(DATA, teacher))
    x_0, z = objective.pair([0, 3, 5, 3], noise(1))
    assert torch.equal(z[1], z[3])
    torch.testing.assert_close(z, ImageStreams([0, 3, 5, 3], "reflow").normal(z), rtol=0, atol=0)
    torch.testing.assert_close(x_0, end(z), rtol=0, atol=tolerance)


def test_the_minimiser_is_straight_and_one_step_is_its_flow():
    t = torch.linspace(0.05, 1, 12, dtype=torch.float64)
    objective, batch = reflow(), Batch(x=torch.zeros(12, 2))
    loss = objective(Straight(), batch, t, noise(12))
    independent = objective(OracleDenoiser(DATA, FLOW), batch, t, noise(12))
    assert loss.max() < 1e-6, "no pair crosses another, so the velocity is known at every state"
    assert independent.mean() > 1e-3, "the teacher's own paths are curved"
    z = noise(5)
    one = DDIM(UniformGrid(1))(Straight(), z, streams=ImageStreams(range(5)))
    assert one.nfe == 1
    torch.testing.assert_close(one.x, end(z), rtol=0, atol=1e-12)


def test_pairs_are_drawn_once_when_asked_for_and_a_resumed_run_draws_the_same():
    first, again = reflow(), reflow()
    batch, t = Batch(x=torch.zeros(64, 2)), torch.full((64,), 0.5, dtype=torch.float64)
    with counting() as one:
        loss = first(Straight(), batch, t, noise(64))
    assert one.rows > 64 + 6, "the teacher's evaluations count"
    with counting() as two:
        assert torch.equal(first(Straight(), batch, t, noise(64)), loss)
    assert two.rows == 64, "the teacher is asked no more"
    again.pair([5], noise(1))  # another order
    assert torch.equal(again(Straight(), batch, t, noise(64)), loss)
    assert sum(len(ends) for ends in first._ends.values()) == 6


class Labelled(OracleDenoiser):
    """Its data lie at the class."""

    record = MappingProxyType({"num_classes": 3})

    def __call__(self, x_t, t, cond=None):
        return cond[:, None].expand(-1, 2).to(x_t)


class Recording(Straight):
    def __call__(self, x_t, t, cond=None):
        self.cond = cond
        return x_t


def test_pairs_have_the_classes_of_the_teacher_and_the_null_label_stays():
    objective, model = reflow(Labelled(DATA, FLOW)), Recording()
    cond = torch.tensor([0, 3, 1, 2, 3, 0, 0, 0])
    objective(model, Batch(x=torch.zeros(8, 2), cond=cond), torch.full((8,), 0.5), noise(8))
    assert (model.cond == 3).tolist() == (cond == 3).tolist()
    numbers = [3, 4, 5, 3]
    x_0, _ = objective.pair(numbers, noise(1))
    assert x_0[:, 0].tolist() == [number % 3 for number in numbers]
    assert set(model.cond.tolist()) == {0, 1, 2, 3}


def test_the_teacher_is_saved_and_not_trained_and_stays_in_evaluation():
    network = MLP(event_shape=(2,), width=8, blocks=1)
    network.head.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    modes = []
    objective = reflow(Denoiser(network, VPrediction(), FLOW), pairs=2)
    assert not any(p.requires_grad for p in objective.parameters())
    assert any(key.startswith("teacher.network.") for key in objective.state_dict())
    objective.train().pair([0], torch.zeros(1, 2))
    assert not any(modes)


def test_teachers_that_do_not_fit_are_refused_in_a_line():
    x, t = torch.zeros(2, 3), torch.full((2,), 0.5)
    with pytest.raises(
        ValueError, match=r"samples of shape \(2,\) and the data have \(3,\): choose a teacher"
    ):
        reflow()(Straight(), Batch(x=x), t, x)
    with pytest.raises(ValueError, match=r"teacher's ConstantNoise schedule has noise levels .* choose"):
        reflow(OracleDenoiser(DATA, ConstantNoise(0.2)))
    consistency = Denoiser(MLP(event_shape=(2,), width=8, blocks=1), ConsistencyPrediction(), EDM())
    with pytest.raises(ValueError, match=r"the end of a path and not the posterior mean.*choose a teacher"):
        reflow(consistency)
    with pytest.raises(ValueError, match=r"the data have classes and the teacher has none: choose"):
        reflow()(Straight(), Batch(x=x[:, :2], cond=torch.tensor([0, 1])), t, x[:, :2])
    with pytest.raises(ValueError, match=r"conditioned on images.*set objective=residual"):
        reflow()(Straight(), Batch(x=x[:, :2], cond=x[:, :2]), t, x[:, :2])
