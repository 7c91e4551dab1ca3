"""MeanFlow on a Gaussian, whose average velocity is known in closed form."""

from functools import partial

import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import Denoiser, DenoiserBase, OracleDenoiser, VPrediction
from scoreexp.denoisers.counting import counting
from scoreexp.guidance import Autoguidance
from scoreexp.networks import MLP, ScoreCNN, TwoTimes, UNet
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import LogNormalNoise, MeanFlow, UniformTime
from scoreexp.samplers import MeanFlowSampler, ProbabilityFlow, UniformGrid
from scoreexp.schedules import VP, FlowMatching

MEAN, VARIANCE = 0.4, 0.3
FLOW = FlowMatching()
DATA = Gaussian(torch.full((1,), MEAN), torch.full((1,), VARIANCE))


def std(t):
    return ((1 - t) ** 2 * VARIANCE + t**2).sqrt()


class Exact(torch.nn.Module, DenoiserBase):
    """``x_t - t u`` of N(MEAN, VARIANCE), with a parameter that moves ``u``, for gradients at the minimum."""

    schedule, event_shape = FLOW, (1,)

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x_t, t, cond=None):
        return self.toward(x_t, t, t)

    def toward(self, x_t, t, s, cond=None):
        t, s = t[:, None].to(x_t), s[:, None].to(x_t)
        centred = x_t - (1 - t) * MEAN
        end = (1 - s) * MEAN + std(s) / std(t) * centred
        v = -MEAN + (t - (1 - t) * VARIANCE) / std(t) ** 2 * centred
        apart = t > s
        average = torch.where(apart, (x_t - end) / torch.where(apart, t - s, 1.0), v)
        return x_t - t * (average + self.gain * (0.5 * x_t + (t - s) + 1))


# x_0 and z of two values each, with the moments of the Gaussians: exact for squared errors of linear maps
X = MEAN + VARIANCE**0.5 * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[:, None]
Z = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
TIMES = [(1.0, 0.001), (0.9, 0.2), (0.6, 0.5), (0.4, 0.4), (0.03, 0.001)]


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_the_exact_average_velocity_is_where_the_loss_is_stationary(t, s):
    model, objective = Exact(), MeanFlow(UniformTime(), p=0.0)
    times = (torch.full((4,), value, dtype=torch.float64) for value in (t, s))
    (objective.error(model, Batch(x=X), *times, Z) ** 2).mean().backward()
    at_minimum = model.gain.grad.item()
    assert abs(at_minimum) < 1e-12
    model.gain.grad = None
    model.gain.data += 0.01
    times = (torch.full((4,), value, dtype=torch.float64) for value in (t, s))
    (objective.error(model, Batch(x=X), *times, Z) ** 2).mean().backward()
    assert model.gain.grad.abs() > 1e-3, "and nowhere near it"


def two_times(network=MLP, shape=(2,), **settings):
    torch.manual_seed(0)
    network = TwoTimes(network=partial(network, **settings), event_shape=shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(network, VPrediction(), FLOW).double()


@pytest.mark.parametrize(
    "model",
    [
        two_times(width=16, blocks=1),
        two_times(UNet, (3, 8, 8), channels=16, multipliers=[1, 2], blocks=1, attention_resolutions=[8]),
    ],
    ids=["mlp", "unet"],
)
def test_the_target_holds_the_derivative_along_the_path(model):
    shape = getattr(model.network.network, "event_shape", (3, 8, 8))
    x, z = (torch.randn(3, *shape, generator=generator(0, name), dtype=torch.float64) for name in ("x", "z"))
    t, s = torch.tensor([[0.3, 0.6, 0.95], [0.1, 0.6, 0.5]], dtype=torch.float64)

    def wide(time):
        return time.reshape(-1, *(1,) * len(shape))

    def u(t):
        x_t = (1 - wide(t)) * x + wide(t) * z
        return (x_t - model.toward(x_t, t, s)) / wide(t)

    with torch.no_grad():
        rate = (u(t + 1e-5) - u(t - 1e-5)) / 2e-5
        expected = u(t) - (z - x - wide(t - s) * rate)
        with counting() as evaluations:
            error = MeanFlow(UniformTime()).error(model, Batch(x=x), t, s, z)
    torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-6)
    assert evaluations.rows == 3 + 2, "one more where the times differ"


def test_the_loss_is_weighted_by_its_own_inverse():
    model, noise, t = (
        two_times(width=8, blocks=1),
        torch.ones(4, 2).double(),
        torch.linspace(0.2, 0.8, 4).double(),
    )
    batch = Batch(x=torch.zeros(4, 2).double())
    square, weighted = (MeanFlow(UniformTime(), p=p, c=0.1)(model, batch, t, noise) for p in (0.0, 0.75))
    torch.testing.assert_close(weighted, square / (square + 0.1) ** 0.75)


def test_pairs_of_times_are_two_draws_in_order_for_a_share_of_the_samples():
    law, n = LogNormalNoise(-0.4, 1.0), 4000
    t = law.sample(n, FLOW, generator(0, "t"))
    noise = torch.randn(n, 2, generator=generator(0, "noise"))
    later, earlier = MeanFlow(law, share=0.25)._two_times(Exact(), t, noise)
    apart = earlier < later
    assert apart.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(later[~apart], t[~apart])
    ours = (later[apart] == t[apart]).double().mean().item()
    assert ours == pytest.approx(0.5, abs=0.07), "either draw may be the later one"
    alone, _ = MeanFlow(law, share=0.25)._two_times(Exact(), t[7:9], noise[7:9])
    assert torch.equal(alone, later[7:9]), "of a sample alone, whatever the batch"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_evaluations_are_the_end_of_the_exact_flow(steps):
    streams, oracle = ImageStreams(range(4)), OracleDenoiser(DATA, FLOW)
    z = streams.normal(torch.zeros(4, 1, dtype=torch.float64))
    grid = UniformGrid(steps, t_end=None if steps == 1 else 0.3)
    few = MeanFlowSampler(grid)(Exact(), z, streams=streams)
    flow = ProbabilityFlow(UniformGrid(2), RK45(1e-11, 1e-11), denoise_last=False)(oracle, z, streams=streams)
    assert few.nfe == steps
    t = grid(FLOW)[-1].item()
    beyond = FLOW.t_min / (t - FLOW.t_min)  # from t_min on to 0 at the average velocity of the last piece
    before = MeanFlowSampler(UniformGrid(steps + 1), denoise_last=False)(Exact(), z, streams=streams).x
    torch.testing.assert_close(before, flow.x, rtol=0, atol=1e-7)
    x_t = (1 - t) * MEAN + std(torch.tensor(t)) * z
    torch.testing.assert_close(few.x, flow.x + beyond * (flow.x - x_t), rtol=0, atol=1e-6)


def test_with_one_time_it_is_flow_matching():
    x = torch.randn(5, 1, generator=generator(0, "x"), dtype=torch.float64)
    t = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(Exact()(x, t), OracleDenoiser(DATA, FLOW)(x, t), rtol=1e-6, atol=1e-7)
    model = two_times(width=8, blocks=1)
    x = torch.cat([x, x], 1)
    assert torch.equal(model(x, t), model.toward(x, t, t))
    assert not torch.equal(model(x, t), model.toward(x, t, t / 2))


def test_a_network_of_two_times_begins_as_one_of_a_single_time_and_knows_the_null_label():
    torch.manual_seed(0)
    network = TwoTimes(network=partial(MLP, width=8, blocks=1), event_shape=(2,), num_classes=3)
    for layer in (network.network.head, network.network.blocks[0].linear2):  # they begin at zero
        torch.nn.init.normal_(layer.weight)
    x, levels = torch.ones(2, 2), torch.tensor([[0.5, -1.0], [0.2, 0.1]])
    assert torch.equal(network(x, levels), network(x, levels[:, 0]))
    assert torch.equal(network(x, levels), network(x, levels, torch.tensor([3, 3])))
    assert not torch.equal(network(x, levels), network(x, levels, torch.tensor([0, 1])))


def test_what_cannot_take_two_times_is_refused_in_a_line():
    x, t = torch.zeros(2, 2), torch.full((2,), 0.5)
    one_time = Denoiser(MLP(event_shape=(2,), width=8, blocks=1), VPrediction(), FLOW)
    for call in (
        lambda: MeanFlow(UniformTime())(one_time, Batch(x=x), t, x),
        lambda: MeanFlowSampler(UniformGrid(1))(one_time, x, streams=ImageStreams([0, 1])),
    ):
        with pytest.raises(UserError, match=r"^MLP takes one time .* choose a network of two times[^\n]*$"):
            call()
    with pytest.raises(UserError, match=r"^ScoreCNN cannot take two times: choose [^\n]*$"):
        TwoTimes(network=ScoreCNN, event_shape=(3, 8, 8))
    with pytest.raises(UserError, match=r"^MLP cannot take two times"):
        TwoTimes(network=partial(MLP, time_conditioning=False), event_shape=(2,))
    for schedule in (VP(), FlowMatching(std=0.5)):
        with pytest.raises(ValueError, match=r"std 1 and the schedule is .*: set schedule=flow_matching"):
            MeanFlow(UniformTime())(OracleDenoiser(DATA, schedule), Batch(x=x), t, x)
    guided = Autoguidance(Exact(), Exact(), 2.0)
    with pytest.raises(UserError, match=r"Autoguidance takes one time .* without guidance"):
        MeanFlowSampler(UniformGrid(1))(guided, x[:, :1], streams=ImageStreams([0, 1]))
