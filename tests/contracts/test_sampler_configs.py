"""What every sampler of conf/ and every time grid promises; a new yaml or class is tested without editing this.

Orders, moments and the papers' algorithms are in tests/analytic.
"""

import inspect
import math
from functools import cache

import pytest
import torch
import yaml

from scoreexp import samplers
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.construct import construct
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import Denoiser, DenoiserBase, EpsPrediction, OracleDenoiser
from scoreexp.numerics.oracles import EmpiricalImages, GaussianMixture
from scoreexp.samplers import LevelLaw, TimeGrid, start_from_prior
from scoreexp.schedules import VP, ConstantNoise

STEPS = 5  # divides the 1000 of a discrete grid
# Settings that take another path through a sampler than its yaml does.
VARIANTS = {
    "ddim": {"eta": 0.7},
    "ddpm": {"variance": "beta"},
    "heun": {"s_churn": 2.0, "s_tmax": 1.0},
    "langevin": {"denoise_last": True},
    "pndm": {"form": "S"},
    "predictor_corrector": {"predictor": "euler", "corrections": 2},
}


def nodes(group):
    return {p.stem: yaml.safe_load(p.read_text()) for p in sorted((conf_dir() / group).glob("*.yaml"))}


def with_steps(node, steps=STEPS):
    return {**node, "grid": {**node["grid"], "steps": steps}} if "grid" in node else {**node, "steps": steps}


OF_TWO_TIMES = "mean_flow"  # needs another model than these: tests/analytic/test_mean_flow.py
NODES = {name: with_steps(node) for name, node in nodes("sampler").items() if name != OF_TWO_TIMES}
NODES |= {f"{name}-{next(iter(own.values()))}": {**NODES[name], **own} for name, own in VARIANTS.items()}
MIXTURE = OracleDenoiser(
    GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[-0.8, 0.0], [0.6, 0.5]]), torch.tensor([0.05, 0.1])
    ),
    VP(),
)


@pytest.fixture(params=NODES)
def sampler(request):
    return construct(NODES[request.param])


@cache
def schedules():
    """Those of conf/ whose noise grows and leaves something of the data at the largest time."""
    made = (construct(node) for node in nodes("schedule").values())
    return [s for s in made if s.at(s.t_max)[0] > 0 and s.sigma_range[0] < s.sigma_range[1]]


class Affine(torch.nn.Module):
    """A network with a parameter and labels; not a number below a noise level."""

    def __init__(self, nan_below=-math.inf):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((), 0.5))
        self.nan_below, self.labels = nan_below, []

    def forward(self, x, c_noise, cond=None):
        self.labels.append(cond)
        out = self.weight * x + (0 if cond is None else cond[:, None])
        return torch.where((c_noise < self.nan_below)[:, None], torch.nan, out)


class AnyLevel(LevelLaw):
    """Says nothing, of samples of a network, whose law is not known."""

    levels = torch.tensor([0.1, 1.0], dtype=torch.float64)

    def __call__(self, y):
        return torch.zeros(len(y), 2).log_softmax(1)


def for_a_network(sampler):
    if hasattr(sampler, "law"):
        sampler.law = AnyLevel()
    return sampler


class Twice(DenoiserBase, wraps=True):
    """Asks its model twice."""

    def __init__(self, model):
        self.model, self.schedule, self.event_shape = model, model.schedule, model.event_shape

    def __call__(self, x_t, t, cond=None):
        return (self.model(x_t, t, cond) + self.model(x_t, t, cond)) / 2


def drawn(sampler, seeds, model=MIXTURE, dtype=torch.float64, **given):
    streams = ImageStreams(seeds)
    x = start_from_prior(model, (2,), streams, dtype=dtype)
    return sampler(model, x, streams=streams, **given)


def test_a_seed_names_a_sample_whatever_the_batch(sampler):
    whole = drawn(sampler, range(5)).x
    parts = [drawn(sampler, seeds).x for seeds in ([0], [1, 2], [4, 3])]
    # the noise is bitwise the same; a matrix product may round differently for another batch size
    torch.testing.assert_close(torch.cat(parts), whole[[0, 1, 2, 4, 3]], rtol=0, atol=1e-8)
    assert not torch.equal(whole[0], whole[1])


def test_a_call_changes_neither_its_input_nor_the_sampler(sampler):
    x, before = torch.full((2, 2), 0.3), repr(vars(sampler))
    first, second = (sampler(MIXTURE, x, streams=ImageStreams([0, 1])) for _ in range(2))
    assert torch.equal(x, torch.full((2, 2), 0.3))
    assert torch.equal(first.x, second.x)
    assert first.nfe == second.nfe
    assert repr(vars(sampler)) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_dtype_and_shape_of_the_state(sampler, dtype):
    result = drawn(sampler, range(3), dtype=dtype, keep=3)
    for state in (result.x, *result.trajectory):
        assert state.dtype == dtype
        assert state.shape == (3, 2)
        assert state.isfinite().all()


def test_evaluations_are_counted_at_the_network_and_have_the_labels(sampler):
    network, labels, sampler = Affine(), torch.tensor([0, 1]), for_a_network(sampler)
    model = Denoiser(network, EpsPrediction(), VP())
    for asked, times in ((model, 1), (Twice(model), 2)):
        network.labels.clear()
        result = sampler(asked, torch.full((2, 2), 0.1), streams=ImageStreams([0, 1]), cond=labels)
        assert result.nfe == len(network.labels) >= times
        assert result.nfe % times == 0
        assert all(seen is labels for seen in network.labels)
        assert not result.x.requires_grad


def test_each_step_is_told_and_states_are_kept_evenly(sampler):
    told = []
    result = drawn(sampler, [0, 1], keep=3, callback=lambda *given: told.append(given))
    count = told[-1][1]
    assert [(i, n) for i, n, *_ in told] == [(i, count) for i in range(1, count + 1)]
    assert all(x0_hat.shape == x.shape for _, _, x, x0_hat in told)
    assert torch.equal(told[-1][2], result.x)
    assert torch.equal(result.trajectory[-1], result.x)
    assert len(result.trajectory) == len(result.times) == min(3, count + 1)
    assert result.times.dtype == torch.float64
    assert (result.times.diff() <= 0).all()
    kept = [len(drawn(sampler, [0], keep=keep).trajectory) for keep in (0, 1, 10**6)]
    assert kept == [0, 1, count + 1]
    with pytest.raises(ValueError, match="keep=-1"):
        drawn(sampler, [0], keep=-1)


def test_the_grid_of_a_call_replaces_the_samplers_own(sampler):
    other = type(sampler.grid)(4)
    replaced, own = drawn(sampler, [0, 1], grid=other), sampler.grid
    try:
        sampler.grid = other
        assert torch.equal(drawn(sampler, [0, 1]).x, replaced.x)
    finally:
        sampler.grid = own
    assert replaced.nfe <= drawn(sampler, [0, 1]).nfe


def test_a_grid_of_one_time_is_sampled_or_refused_in_one_line():
    refused = set()
    for node in NODES.values():
        if "grid" in node:
            last = {"denoise_last": False} if "denoise_last" in node else {}
            made = construct(with_steps(node, 1) | last)
            try:
                samplers.draw(MIXTURE, made, [0])
            except ValueError as error:
                refused.add(str(error).partition(": ")[2])
    assert refused == {"one time and denoise_last=False make no step: choose grid.steps >= 2"}


def test_a_network_that_fails_is_reported(sampler):
    model = Denoiser(Affine(nan_below=0.0), EpsPrediction(), VP())
    with pytest.raises(FloatingPointError, match=r"not finite .* t = "):
        for_a_network(sampler)(model, torch.ones(1, 2), streams=ImageStreams([0]), t_start=0.05)


@pytest.mark.parametrize("event_shape", [(2,), (3, 4, 4)])
def test_the_denoised_end_for_one_image_is_that_image_in_every_schedule(sampler, event_shape):
    if not sampler.denoise_last:
        pytest.skip("ends with the state, not with the posterior mean")
    image = torch.rand(1, *event_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for schedule in schedules():
        model = OracleDenoiser(EmpiricalImages(image), schedule)
        x = start_from_prior(model, event_shape, ImageStreams([0, 1]))
        assert torch.equal(sampler(model, x, streams=ImageStreams([0, 1])).x, image.expand_as(x))


def test_an_observation_is_denoised_from_where_the_sampler_starts(sampler):
    y = torch.full((2, 2), 0.4)
    x, t_start = sampler.start(MIXTURE.schedule, y, 0.3)
    assert MIXTURE.schedule.t_min <= t_start <= MIXTURE.schedule.t_max
    assert x.shape == y.shape
    result = sampler(MIXTURE, x, streams=ImageStreams([0, 1]), t_start=t_start, keep=1000)
    assert result.times[0] == t_start
    with pytest.raises(ValueError, match=r"time t = 1\.5|t_start=1\.5"):
        sampler(MIXTURE, x, streams=ImageStreams([0, 1]), t_start=1.5)


def test_one_noise_level_is_sampled_or_refused_by_name(sampler):
    model = OracleDenoiser(MIXTURE.oracle, ConstantNoise(0.4))
    try:
        found = sampler(model, torch.ones(1, 2), streams=ImageStreams([0])).x
    except ValueError as error:
        found, said = None, str(error)
    assert found.isfinite().all() if found is not None else "ConstantNoise" in said and "choose" in said


# ------------------------------------------------------------------------------------------------------------ grids

GRIDS = [
    found
    for _, found in inspect.getmembers(samplers, inspect.isclass)
    if issubclass(found, TimeGrid) and not inspect.isabstract(found)
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)


@every_grid
@pytest.mark.parametrize("share", [None, 0.4567], ids=["whole", "part"])
def test_times_begin_at_the_start_and_do_not_grow(grid, share):
    for schedule in schedules():
        width = schedule.t_max - schedule.t_min
        start = None if share is None else schedule.t_min + share * width
        times = grid(8)(schedule, t_start=start)
        assert times.dtype == torch.float64
        assert times[0] == (schedule.t_max if start is None else start)
        assert (times.diff() < 0).all() or (times == times[0]).all()
        assert times[-1] >= schedule.t_min
        if "t_end" in inspect.signature(grid).parameters:
            assert len(times) == 8
            assert times[-1] == schedule.t_min
            end = schedule.t_min + 0.2 * width
            assert grid(5, t_end=end)(schedule, t_start=start)[-1] == end


@every_grid
def test_a_grid_that_leaves_the_schedule_is_refused(grid):
    with pytest.raises(ValueError, match=r"1\.5"):
        grid(5)(VP(), t_start=1.5)
    with pytest.raises(ValueError, match="steps=0"):
        grid(0)
