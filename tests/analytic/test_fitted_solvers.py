"""Solvers that are fitted to a model: what a linear multistep method can do exactly, and errors at other starts."""

import json

import pytest
import torch

import scoreexp as se
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.runs.solvers import solver_beside
from scoreexp.samplers import (
    DDIM,
    DEIS,
    Auto,
    DPMSolverPP3M,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    NonStationary,
    ProbabilityFlow,
    QuadraticGrid,
    UniformGrid,
    UniPC,
    UniPCVelocity,
    fit_solver,
    trajectories,
)
from scoreexp.samplers.fitting import _Fit, written_out
from scoreexp.samplers.grids import TimeGrid
from scoreexp.samplers.starts import start_from_prior
from scoreexp.schedules import EDM, VP, ConstantNoise, FlowMatching

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-0.8, 0.0], [0.6, 0.5]]), torch.tensor([0.05, 0.1])
)


def distance(a, b):
    return (a - b).square().sum(1).mean().sqrt().item()


def flow_from(model, count=64):
    """Starts that no solver is fitted on, and the solution from them."""
    streams = ImageStreams(range(count))
    x = start_from_prior(model, model.event_shape, streams, dtype=torch.float64)
    exact = ProbabilityFlow(UniformGrid(2), RK45(1e-9, 1e-9), denoise_last=False)
    return x, exact(model, x, streams=streams).x


@pytest.mark.parametrize("schedule", [VP(), EDM(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_the_flow_of_a_gaussian_of_one_variance_is_a_combination_of_state_and_mean(schedule):
    # x_s = mean + ratio (x_t - mean): a combination of the state and of the mean alone
    model = OracleDenoiser(Gaussian(torch.tensor([0.4, -0.2]), torch.full((2,), 0.3)), schedule)
    reference = trajectories(model, 8, tolerance=1e-9, dtype=torch.float64)
    fitted = fit_solver(model, 1, denoise_last=False, reference=reference, iterations=1)
    x, solution = flow_from(model)
    assert fitted.error < 1e-4
    assert distance(fitted.sampler(model, x, streams=ImageStreams(range(len(x)))).x, solution) < 1e-4


@pytest.mark.parametrize("steps", [4, 8])
def test_a_fitted_solver_is_nearer_to_the_flow_at_other_starts(steps):
    model = OracleDenoiser(MIXTURE, VP())
    reference = trajectories(model, 128, dtype=torch.float64)
    fitted = fit_solver(model, steps, denoise_last=False, reference=reference, iterations=20)
    x, solution = flow_from(model)
    result = fitted.sampler(model, x, streams=ImageStreams(range(len(x))))
    usual = UniPCVelocity(QuadraticGrid(steps + 1), order=3, denoise_last=False)
    other = usual(model, x, streams=ImageStreams(range(len(x))))
    assert result.nfe == other.nfe == steps
    assert distance(result.x, solution) < 0.8 * distance(other.x, solution)  # descent differs by machine
    assert fitted.error == pytest.approx(distance(result.x, solution), rel=2)


METHODS = [
    DDIM(KarrasGrid(6), denoise_last=False),
    DEIS(QuadraticGrid(7), 3, denoise_last=False),
    DPMSolverPP3M(LogSNRGrid(7), denoise_last=False),
    UniPC(LogSNRGrid(7), 3, denoise_last=False),
    UniPCVelocity(QuadraticGrid(7), 2, denoise_last=False),
]


@pytest.mark.parametrize("sampler", METHODS, ids=lambda s: type(s).__name__)
def test_a_multistep_method_written_out_takes_the_same_steps(sampler):
    model, streams = OracleDenoiser(MIXTURE, VP()), ImageStreams([0])
    x = start_from_prior(model, model.event_shape, streams, dtype=torch.float64)
    times, coefficients = written_out(model.schedule, sampler)
    first = model(x, times[:1])[0]  # of the one start: no mean over starts stands for it
    same = NonStationary(times.tolist(), [c.tolist() for c in coefficients], first)
    expected = sampler(model, x, streams=streams).x
    assert distance(same(model, x, streams=streams).x, expected) < 1e-11


def test_a_method_of_two_evaluations_a_time_cannot_be_written_out():
    with pytest.raises(ValueError, match="Heun does not evaluate once at each time but the last"):
        written_out(VP(), Heun(KarrasGrid(4), denoise_last=False))


def test_the_descent_begins_with_the_best_of_the_usual_methods_too():
    model = OracleDenoiser(MIXTURE, VP())
    reference = trajectories(model, 32, dtype=torch.float64)
    fit = _Fit(model, reference, 12, denoise_last=False)
    usual = sorted(fit.error(solver) for solver in fit.usual())
    # with and without a prediction at t_max: two kinds for each method, grid and order
    assert len(usual) == 24
    assert usual[0] < 0.9 * fit.error_of(UniPCVelocity(QuadraticGrid(13), 3, denoise_last=False))


def test_it_has_its_own_times_and_start():
    sampler = NonStationary([1.0, 0.4, 0.001], [[0.5, 0.5], [0.1, 0.2, 0.7]], torch.zeros(2))
    model, x, streams = OracleDenoiser(MIXTURE, VP()), torch.zeros(1, 2), ImageStreams([0])
    with pytest.raises(ValueError, match=r"t_start=0\.5: the solver was fitted from t=1 on"):
        sampler(model, x, streams=streams, t_start=0.5)
    with pytest.raises(ValueError, match="has its own times"):
        sampler(model, x, streams=streams, grid=UniformGrid(3))
    with pytest.raises(ValueError, match=r"3 times with"):
        NonStationary([1.0, 0.4, 0.001], [[0.5, 0.5]], torch.zeros(2))
    with pytest.raises(ValueError, match="choose times that fall"):
        NonStationary([1.0, 1.0, 0.001], sampler.coefficients, torch.zeros(2))


def test_what_cannot_be_fitted_is_refused_by_name():
    model = OracleDenoiser(MIXTURE, VP())
    with pytest.raises(ValueError, match=r"ConstantNoise schedule has the one noise level 0\.2"):
        fit_solver(OracleDenoiser(MIXTURE, ConstantNoise(0.2)), 5)
    reference = trajectories(model, 3, tolerance=1e-2)
    with pytest.raises(ValueError, match="3 reference trajectories: give 4 or more"):
        fit_solver(model, 5, reference=reference)
    with pytest.raises(ValueError, match="200 evaluations: a solver is fitted for at most"):
        fit_solver(model, 200, reference=reference)


@pytest.fixture
def fast(monkeypatch):
    """Fits of a moment, which are counted."""
    from scoreexp.runs import solvers

    fits, reference = [], trajectories(OracleDenoiser(MIXTURE, VP()), 8, tolerance=1e-2)

    def fit(model, steps, **given):
        fits.append(steps)
        return fit_solver(model, steps, reference=reference, iterations=1, **given)

    monkeypatch.setattr(solvers, "fit_solver", fit)
    return fits


def test_it_is_kept_beside_the_checkpoint_and_a_stale_one_is_named(tmp_path, fast):
    model, checkpoint = OracleDenoiser(MIXTURE, VP()), tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    first = solver_beside(checkpoint, model, Auto(3))
    again = solver_beside(checkpoint, model, Auto(3))
    assert (first.path.name, fast) == ("best.auto-3.json", [3])
    drawn = [se.samplers.draw(model, s.sampler, seeds=[0, 1]) for s in (first, again)]
    assert torch.equal(drawn[0].x, drawn[1].x)
    assert drawn[0].nfe == 3
    checkpoint.write_bytes(b"other weights")
    assert "of another checkpoint" in solver_beside(checkpoint, model, Auto(3)).said
    assert "of another guidance" in solver_beside(checkpoint, model, Auto(3), settings={"guidance": {}}).said
    content = json.loads(first.path.read_text())
    first.path.write_text(json.dumps(content | {"times": [1.0]}))
    with pytest.raises(se.core.errors.UserError, match=r"holds no solver .* delete the damaged file"):
        solver_beside(checkpoint, model, Auto(3), settings={"guidance": {}})


def test_a_fit_in_parts_is_that_at_once_and_leaves_the_gradients_of_the_weights(monkeypatch):
    torch.manual_seed(0)
    network = se.networks.MLP(event_shape=(2,), width=8, blocks=1)
    model = se.denoisers.Denoiser(network, se.denoisers.X0Prediction(), VP()).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # a new network returns 0, whose gradients are 0
        weight.grad = torch.ones_like(weight)
    reference, times = trajectories(model, 8, tolerance=1e-3), []
    for values in (6, 24576):  # 3 of the 6 starts at once, or all
        monkeypatch.setattr("scoreexp.samplers.fitting.AT_ONCE", values)
        times.append(fit_solver(model, 2, reference=reference, iterations=2).sampler.times)
    assert times[0] == pytest.approx(times[1], rel=1e-3)
    assert all((weight.grad == 1).all() for weight in model.parameters())


def test_a_fit_that_is_further_from_the_flow_than_no_fit_is_said_and_not_taken(tmp_path, monkeypatch, caplog):
    # many evaluations fitted to three starts, of which one is held out
    model, checkpoint = OracleDenoiser(MIXTURE, VP()), tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    fitted = fit_solver(model, 16, reference=trajectories(model, 4), iterations=1)
    assert fitted.base_error < fitted.error
    assert fitted.better is fitted.base
    monkeypatch.setattr("scoreexp.runs.solvers.fit_solver", lambda *_, **__: fitted)
    auto = Auto(16)
    for said in ("fitted, in", "as fitted before"):
        stored = solver_beside(checkpoint, model, auto)
        assert stored.sampler is auto
        assert stored.error == fitted.base_error
        assert stored.said.startswith(said)
        assert "not taken: over held-out starts its error is" in stored.said
    monkeypatch.setattr("scoreexp.api.sample.fit_solver", lambda *_, **__: fitted)
    drawn = se.sample(model, 2, sampler=Auto(16))
    assert torch.equal(drawn, se.samplers.draw(model, auto, [0, 1]).x)
    assert "the fitted solver was not taken" in caplog.text
    good = fit_solver(model, 4, reference=trajectories(model, 32), iterations=5)
    assert good.better is good.sampler, "and a better one is"


@pytest.mark.parametrize("steps", [1, 5, 19, 20, 21, 30])
@pytest.mark.parametrize("denoise_last", [True, False])
def test_auto_without_a_fit_stays_within_its_evaluations(steps, denoise_last):
    model = OracleDenoiser(MIXTURE, VP())
    nfe = se.samplers.draw(model, Auto(steps, denoise_last), seeds=[0]).nfe
    assert steps - 1 <= nfe <= steps


class Twice(TimeGrid):
    """The same time twice."""

    def __call__(self, schedule, *, t_start=None):
        return torch.tensor([1.0, 0.5, 0.5, 0.1], dtype=torch.float64)


def test_equal_times_and_a_grid_without_a_step_are_refused_by_name():
    model = OracleDenoiser(MIXTURE, VP())
    for sampler in (UniPCVelocity(Twice(4)), se.samplers.DPMSolverPP(Twice(4)), se.samplers.DDPM(Twice(4))):
        with pytest.raises(ValueError, match=r"time 3 of the grid is 0\.5 and the one before 0\.5"):
            se.samplers.draw(model, sampler, seeds=[0])
    with pytest.raises(ValueError, match=r"Heun: one time and denoise_last=False make no step"):
        se.samplers.draw(model, se.samplers.Heun(UniformGrid(1), denoise_last=False), seeds=[0])
