"""A stream of samples against the same samples one by one."""

import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import ConditionalOracle, Denoiser, OracleDenoiser, VPrediction
from scoreexp.denoisers.counting import counting
from scoreexp.guidance import ClassifierFree, ResidualCFG
from scoreexp.networks import MLP
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.samplers import DDIM, ConstantGrid, KarrasGrid, UniformGrid, stream_batch
from scoreexp.schedules import EDM, VP, FlowMatching

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-0.8, 0.0], [0.6, 0.5]]), torch.tensor([0.05, 0.1])
)
CLASSES = [Gaussian(torch.full((2,), mean), torch.full((2,), 0.1)) for mean in (-0.5, 0.5)]


def network():
    torch.manual_seed(0)
    mlp = MLP(event_shape=(2,), width=16, blocks=1)
    torch.nn.init.normal_(mlp.head.weight)  # it begins at zero
    return Denoiser(mlp, VPrediction(), VP())


@pytest.mark.parametrize(
    ("model", "dtype", "cond"),
    [
        (OracleDenoiser(MIXTURE, EDM()), torch.float64, None),
        (OracleDenoiser(MIXTURE, FlowMatching()), torch.float64, None),
        (ClassifierFree(ConditionalOracle(CLASSES, [0.5, 0.5], VP()), 2.0), torch.float64, torch.tensor([1])),
        (network(), torch.float32, None),
    ],
    ids=["edm", "flow", "guided", "network"],
)
@pytest.mark.parametrize("steps", [1, 5])
def test_the_samples_are_those_of_ddim_to_rounding(model, dtype, cond, steps):
    n, grid = 7, UniformGrid(steps)
    starts = model.schedule.prior_std * ImageStreams(range(n)).normal(torch.zeros(n, 2, dtype=dtype))
    one_by_one = [DDIM(grid)(model, x[None], streams=ImageStreams([0]), cond=cond) for x in starts]
    with counting() as count:
        found = torch.stack(list(stream_batch(model, iter(starts), grid, cond=cond)))
    expected = torch.cat([result.x for result in one_by_one])
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert steps == 1 or found.diff(dim=0).abs().min() > 1e-6, "each start has its own sample"
    assert count.per_sample(n) == one_by_one[0].nfe
    assert count.rows == n * one_by_one[0].nfe


def test_a_start_is_asked_for_when_there_is_room_and_each_call_gives_one_sample():
    asked, calls = [], []

    class Told(OracleDenoiser):
        def __call__(self, x_t, t, cond=None):
            calls.append(len(x_t))
            return super().__call__(x_t, t, cond)

    def camera():
        for i in range(6):
            asked.append(i)
            yield torch.full((2,), float(i))

    stream = stream_batch(Told(MIXTURE, VP()), camera(), KarrasGrid(3), t_start=0.5)
    next(stream)
    assert asked == [0, 1, 2], "the first sample needs as many frames as there are times"
    next(stream)
    assert asked == [0, 1, 2, 3]
    assert len(list(stream)) == 4
    assert calls == [1, 2, 3, 3, 3, 3, 2, 1]


def test_what_a_stream_cannot_do_is_said():
    model = OracleDenoiser(MIXTURE, VP())
    with pytest.raises(ValueError, match="equal times: choose"):
        list(stream_batch(model, [torch.zeros(2)], ConstantGrid(3)))
    with pytest.raises(ValueError, match=r"shape \(3,\) after \(2,\)"):
        list(stream_batch(model, [torch.zeros(2), torch.zeros(3)], UniformGrid(3)))
    with pytest.raises(ValueError, match="cond of 2 for a stream: give one"):
        list(stream_batch(model, [torch.zeros(2)], UniformGrid(3), cond=torch.tensor([0, 1])))
    remembering = ResidualCFG(ConditionalOracle(CLASSES, [0.5, 0.5], VP()))
    with pytest.raises(ValueError, match="remembers earlier times"):
        list(stream_batch(remembering, torch.zeros(2, 2), UniformGrid(3), cond=torch.tensor([0])))
