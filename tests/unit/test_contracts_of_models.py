"""Evaluations counted at the network, objectives with parameters and a teacher, models without a training record."""

import copy

import pytest
import torch
from torch import nn

from scoreexp.core.batch import Batch
from scoreexp.core.kinds import Images, Points, kind_of
from scoreexp.denoisers import Denoiser, DenoiserBase, EDMPrediction, OracleDenoiser, Wrapper
from scoreexp.denoisers.counting import counting
from scoreexp.guidance import ClassifierFree
from scoreexp.lit.module import ScoreModule
from scoreexp.networks import MLP, ExactPosteriorMean, UNet
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import DenoisingScoreMatching, EpsWeighting, Objective, UniformTime
from scoreexp.samplers import DDIM, Heun, KarrasGrid, UniformGrid, draw
from scoreexp.schedules import VP

ORACLE = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())


class Twice(DenoiserBase, wraps=True):
    """Asks its model twice, at once or one after the other."""

    def __init__(self, model, at_once):
        self.model, self.at_once = model, at_once
        self.schedule, self.event_shape = model.schedule, model.event_shape

    def __call__(self, x_t, t, cond=None):
        if self.at_once:
            return self.model(torch.cat([x_t, x_t]), torch.cat([t, t])).chunk(2)[0]
        return (self.model(x_t, t) + self.model(x_t, t)) / 2


class Halved(Wrapper):
    """Asks its model once."""

    def __call__(self, x_t, t, cond=None):
        return self.model(x_t, t, cond) / 2


class HalvedAgain(Halved):
    """A wrapper because its base is one."""

    def __call__(self, x_t, t, cond=None):
        return super().__call__(x_t, t, cond) / 2


class Leaf(DenoiserBase):
    """A network of the user's own that knows nothing of counting."""

    def __init__(self):
        self.schedule, self.event_shape = VP(), (2,)

    def __call__(self, x_t, t, cond=None):
        return 0 * x_t


@pytest.mark.parametrize("at_once", [True, False])
def test_a_wrapper_that_asks_twice_is_reported_so(at_once):
    assert draw(ORACLE, DDIM(UniformGrid(20)), range(5)).nfe == 20
    assert draw(Twice(ORACLE, at_once), DDIM(UniformGrid(20)), range(5)).nfe == 40
    assert draw(Twice(Twice(ORACLE, at_once), False), DDIM(UniformGrid(20)), range(5)).nfe == 80
    assert draw(ORACLE, Heun(KarrasGrid(10)), range(3)).nfe == 19


def test_networks_of_every_kind_are_counted_and_counts_nest():
    network = Denoiser(MLP(width=8, blocks=1, event_shape=(2,)), EDMPrediction(), VP())
    for model in (network, Leaf(), ORACLE):
        with counting() as outer:
            assert draw(model, DDIM(UniformGrid(4)), range(3)).nfe == 4
            model(torch.zeros(7, 2), torch.full((7,), 0.5))
        assert outer.rows == 4 * 3 + 7


@pytest.mark.parametrize("kind", [Halved, HalvedAgain])
def test_what_derives_from_a_wrapper_counts_what_it_asks(kind):
    assert draw(kind(ORACLE), DDIM(UniformGrid(20)), range(5)).nfe == 20


def test_a_wrapper_lies_where_its_model_lies_and_takes_the_same_sides():
    shape = (1, 8, 8)
    unet = UNet(event_shape=shape, channels=16, multipliers=(1, 2, 2), blocks=1, attention_resolutions=())
    of_buffers_alone = ExactPosteriorMean(event_shape=shape)
    for network, factor in ((unet, 4), (of_buffers_alone, 1)):
        model = Denoiser(network.to("meta"), EDMPrediction(), VP())
        model.event_shape = shape
        model.record = {"num_classes": 3, "config": {"model": {"label_dropout": 0.1}}}
        for found in (model, Halved(model), Halved(Halved(model)), ClassifierFree(model)):
            assert (found.device, found.downsampling_factor) == (torch.device("meta"), factor)
            assert (found.schedule, found.event_shape) == (model.schedule, shape)
            assert found.record == model.record
    for found in (ORACLE, Leaf(), Denoiser(nn.Identity(), EDMPrediction(), VP())):
        assert (found.device, found.downsampling_factor) == (torch.device("cpu"), 1)


def test_labels_are_bound_to_the_model_of_a_step():
    seen = []

    class Labelled(Leaf):
        def __call__(self, x_t, t, cond=None):
            seen.append(cond)
            return 0 * x_t

    cond = torch.tensor([3, 1])
    draw(Labelled(), Heun(KarrasGrid(3)), [0, 1], cond=cond)
    assert len(seen) == 5
    assert all(torch.equal(found, cond) for found in seen)


class WithParts(nn.Module, Objective):
    """Learns a weight of its own, and the distance from a teacher."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.teacher = MLP(width=8, blocks=1, event_shape=(2,)).requires_grad_(False)

    def forward(self, model, batch, t, noise):
        distance = (model(batch.x, t) - self.teacher(batch.x, t.float())).square().mean(1)
        return distance + (self.weight - 1) ** 2


def module(objective):
    denoiser = Denoiser(MLP(width=8, blocks=1, event_shape=(2,)), EDMPrediction(), VP())
    return ScoreModule(
        denoiser=denoiser,
        objective=objective,
        time_law=UniformTime(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


def test_an_objective_with_parameters_and_a_teacher_is_trained_and_saved():
    made = module(WithParts())
    optimizer = made.configure_optimizers()
    before = copy.deepcopy(made.state_dict())
    batch, t = Batch(x=torch.ones(4, 2)), torch.full((4,), 0.5)
    made.objective(made.denoiser, batch, t, torch.zeros(4, 2)).mean().backward()
    optimizer.step()
    assert made.objective.weight.item() == pytest.approx(3 - 0.1 * 2 * 2)
    after = made.state_dict()
    own = [key for key in after if key.startswith("objective.")]
    changed = {key.split(".")[1] for key in own if not torch.equal(after[key], before[key])}
    assert changed == {"weight"}, "the teacher stays"
    assert any(key.startswith("objective.teacher.") for key in own)
    other = module(WithParts())
    other.load_state_dict(after)
    assert other.objective.weight.item() == made.objective.weight.item()


def test_an_objective_without_parameters_adds_nothing():
    made = module(DenoisingScoreMatching(EpsWeighting()))
    assert not [key for key in made.state_dict() if key.startswith("objective")]
    (group,) = made.configure_optimizers().param_groups
    assert len(group["params"]) == len(list(made.denoiser.parameters()))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((3, 8, 9), Images(3, 8, 9)), ((2,), Points(2)), ((1, 2), None), (None, None), ((), None)],
)
def test_kinds(shape, kind):
    assert kind_of(shape) == kind


def test_a_model_from_elsewhere_has_an_empty_record():
    assert dict(Leaf().record) == {}
