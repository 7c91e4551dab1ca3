"""What every schedule of conf/ promises with every sampler, objective, parameterisation and law of times.

A pair either works up to both ends of the schedule, where alpha may be 0 and sigma small, or is refused in one line with
the remedy. A new yaml is tested without editing this.
"""

import re

import pytest
import torch
import yaml
from conftest import Blind, OneStream, with_teacher

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.batch import Batch
from scoreexp.core.construct import construct
from scoreexp.core.streams import generator
from scoreexp.denoisers import Denoiser, EDMPrediction, OracleDenoiser
from scoreexp.denoisers.counting import counting
from scoreexp.networks import MLP
from scoreexp.numerics.oracles import Gaussian
from scoreexp.schedules import OUVE

SIZE, DRAWS = 64, 100
MEAN = torch.linspace(-0.6, 0.6, SIZE, dtype=torch.float64)
VARIANCES = torch.linspace(0.1, 0.4, SIZE, dtype=torch.float64)
DATA = Gaussian(MEAN, VARIANCES)
REMEDY = r"^[^\n]*\b(choose|set)\b[^\n]*$"
# what is no chain from the prior to the data
OF_ONE_STEP_SIZE = {
    "auto": "fitted to a model and its schedule before it samples, by descent: seconds each",
    "clamped_euler": "the published script's fixed g",
    "consistency": "of a model that maps to the end of a path, which a posterior mean is not",
    "ddgan": "draws from a generator in the steps it was trained for",
    "langevin": "updates at one noise level",
    "mean_flow": "of a model of two times",
    "metropolis_hastings": "the same",
}


def nodes(group):
    return {
        path.stem: yaml.safe_load(path.read_text()) for path in sorted((conf_dir() / group).glob("*.yaml"))
    }


SCHEDULES = {name: construct(node) for name, node in nodes("schedule").items()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
# to a sampler the learned one is a fifth curve of the variance-preserving kind, at five times the cost
SAMPLED = {name: schedule for name, schedule in SCHEDULES.items() if name != "learned"}


def every(group, without=()):
    found = {name: node for name, node in nodes(group).items() if name not in without}
    return pytest.mark.parametrize("node", found.values(), ids=found)


def or_refused(call):
    """What ``call()`` returns, or None where it is refused in one line with the remedy before a network is asked."""
    with counting() as evaluations:
        try:
            return call()
        except ValueError as error:
            message = str(error)
    assert re.fullmatch(r".*\b(choose|set)\b.*", message)  # the dot does not match a line break
    assert evaluations.rows == 0
    return None


def grows(schedule):
    return schedule.sigma_range[0] < schedule.sigma_range[1]


def reaches_noise_alone(schedule):
    return schedule.at(schedule.t_max)[0] == 0


def samples(node, schedule, draws):
    """Draws of a sampler from the exact marginal at t_max on."""
    streams, (alpha, sigma) = OneStream(), schedule.at(schedule.t_max)
    clean = DATA.sample(draws, generator(0, "data"))
    start = alpha * clean + sigma * streams.normal(clean)
    sampler = construct(node)
    return or_refused(lambda: sampler(OracleDenoiser(DATA, schedule), start, streams=streams).x)


@every("sampler", without=["auto", "mean_flow", "ddgan"])
@pytest.mark.parametrize("schedule", SAMPLED.values(), ids=SAMPLED)
def test_a_sampler_runs_on_its_own_grid_or_refuses(schedule, node):
    x = samples({**node, "grid": {**node["grid"], "steps": 5}}, schedule, draws=4)
    if x is None:
        assert not grows(schedule) or reaches_noise_alone(schedule)
    else:
        assert x.isfinite().all()


@every("sampler", without=OF_ONE_STEP_SIZE)
@pytest.mark.parametrize(
    "schedule",
    [pytest.param(schedule, id=name) for name, schedule in SAMPLED.items() if grows(schedule)],
)
def test_a_sampler_draws_from_the_data(schedule, node):
    # updates in proportion to sigma^2 follow an alpha that grows at small sigma only if there are many
    slow = "updates" in node and isinstance(schedule, OUVE)
    steps, updates = (300, 40) if slow else (100, 10)
    node = {**node, "grid": {"_target_": "scoreexp.samplers.LogSNRGrid", "steps": steps}}
    node |= {"updates": updates} if "updates" in node else {}
    x = samples(node, schedule, DRAWS)
    assert x is not None, "no sampler of the data refuses a schedule whose noise grows"
    slope = ((x.mean(0) * MEAN).sum() / MEAN.square().sum()).item()
    low, high = ((x - MEAN).square().mean(0) / VARIANCES).chunk(2)
    # 100 steps of first order leave up to 13 % of a variance (DDPM on sub-VP), the corrector 12 %, annealed Langevin 17 %
    # of the mean (flow matching: alpha grows where its updates have become small); 100 draws add 8 % at 4.5 deviations
    assert slope == pytest.approx(1, abs=0.25)
    assert low.mean().item() == pytest.approx(1, abs=0.25)
    assert high.mean().item() == pytest.approx(1, abs=0.25)


@every("precond")
@every_schedule
def test_a_parameterisation_is_finite_up_to_both_ends_or_refuses(schedule, node):
    model = or_refused(lambda: Denoiser(network(), construct(node), schedule))
    if model is None:
        assert reaches_noise_alone(schedule)
    else:
        t = ends(schedule)
        for function in (model, model.score, model.eps, model.v):
            assert function(torch.ones(len(t), 2), t).isfinite().all()


@every("objective")
@every_schedule
def test_a_loss_and_its_gradient_are_finite_up_to_both_ends_or_refused(schedule, node):
    objective = construct(with_teacher(node, (2,)))
    model, t = Denoiser(network(), EDMPrediction(), schedule), ends(schedule)
    x = torch.randn(len(t), 2, generator=generator(0, "data")) / 2
    noise = torch.randn(len(t), 2, generator=generator(0, "noise"))
    loss = or_refused(lambda: objective(Blind(model), Batch(x=x), t, noise))
    if loss is None:
        needs_a_largest_level = node["_target_"].endswith(
            (".ConsistencyTraining", ".EasyConsistencyTuning", ".VariationalBound")
        )
        needs_another_network = node["_target_"].endswith((".SDAP", ".DownsampledInvariance", ".MeanFlow"))
        assert (
            not grows(schedule)
            or (reaches_noise_alone(schedule) and needs_a_largest_level)
            or needs_another_network
        )
    else:
        loss.sum().backward()
        assert loss.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every("time_law")
@every_schedule
def test_training_times_lie_in_the_schedule_or_are_refused(schedule, node):
    t = or_refused(lambda: construct(node).sample(1000, schedule, generator(0, "t")))
    if t is None:
        early = node.get("steps", 1) * schedule.t_min > schedule.t_max  # the first of so many times is
        assert reaches_noise_alone(schedule) or early
    else:
        assert t.min() >= schedule.t_min
        assert t.max() <= schedule.t_max
        assert schedule.sigma(t).isfinite().all()


def ends(schedule):
    """Both ends, and times very near them."""
    near = 1e-6 * (schedule.t_max - schedule.t_min)
    times = [schedule.t_min, schedule.t_min + near, schedule.t_max - near, schedule.t_max]
    return torch.tensor(times, dtype=torch.float64)


def network():
    torch.manual_seed(0)
    mlp = MLP(event_shape=(2,), width=16, blocks=1)
    torch.nn.init.normal_(mlp.head.weight)  # it begins at zero
    return mlp
