"""Inversion and interpolation with exact denoisers: what comes back, and the laws that the noise has."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import ConditionalOracle, DenoiserBase, OracleDenoiser
from scoreexp.denoisers.counting import counting
from scoreexp.editing import DDPMInversion, Interpolation, encode
from scoreexp.editing.interpolation import mixed
from scoreexp.guidance import Adaptive, ClassifierFree
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.samplers import DDIM, KarrasGrid, UniformGrid
from scoreexp.schedules import EDM, VP, Cosine, FlowMatching

MIXTURE = GaussianMixture(
    torch.tensor([0.2, 0.5, 0.3]),
    0.5 * torch.eye(3, 16, dtype=torch.float64),
    torch.tensor([0.02, 0.04, 0.1]),
)
MODEL = OracleDenoiser(MIXTURE, VP())
X_0 = MIXTURE.sample(50, torch.Generator().manual_seed(0))
STREAMS = range(50)


def inverted(model=MODEL, x_0=X_0, steps=30, **given):
    editing = DDPMInversion(UniformGrid(steps), **given)
    return editing, editing.invert(model, x_0, streams=ImageStreams(STREAMS[: len(x_0)]))


# ------------------------------------------------------------------------------- inversion


@pytest.mark.parametrize("schedule", [VP(), Cosine(), EDM(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_the_replay_of_an_inversion_is_the_image(schedule):
    model = OracleDenoiser(MIXTURE, schedule)
    editing, inversion = inverted(model)
    found = editing.replay(model, inversion)
    print(f"{type(schedule).__name__}: {(found - X_0).abs().max():.1e}")
    assert (found - X_0).abs().max() < 1e-12
    assert editing.replay(model, inversion._replace(maps=inversion.maps.flip(0))).sub(X_0).abs().max() > 0.1
    single = DDPMInversion(UniformGrid(30)).invert(model, X_0.float(), streams=ImageStreams(STREAMS))
    assert single.maps.dtype == torch.float32
    assert (editing.replay(model, single) - X_0).abs().max() < 1e-3


def test_the_maps_have_a_larger_deviation_than_noise_and_neighbours_are_opposed():
    """As the paper says; the maps that a chain draws itself have deviation 1 and no correlation."""
    _, inversion = inverted(steps=50)
    maps = inversion.maps.flatten(1)
    adjacent = torch.stack([torch.corrcoef(torch.stack(both))[0, 1] for both in pairwise(maps)])
    print(f"deviation {maps.std():.2f}, correlation of neighbours {adjacent.mean():.2f}")
    assert maps.std() > 1.5
    assert adjacent.mean().item() == pytest.approx(-0.5, abs=0.05)
    assert (maps.std(1) > 1).float().mean() > 0.9


def test_every_state_is_a_draw_of_the_forward_process_by_itself():
    schedule = VP()
    x_0 = torch.full((2000, 2), 0.5, dtype=torch.float64)
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), schedule)
    editing = DDPMInversion(UniformGrid(6), t_start=0.6)
    inversion = editing.invert(model, x_0, streams=ImageStreams(range(2000)))
    alpha, sigma = schedule.at(0.6)
    torch.testing.assert_close(inversion.x_t.mean().item(), alpha * 0.5, rtol=0, atol=0.05)
    torch.testing.assert_close(inversion.x_t.std().item(), sigma, rtol=0.03, atol=0)
    assert inversion.times[0] == 0.6
    assert inversion.maps.shape == (5, 2000, 2)
    with counting() as count:
        editing.replay(model, inversion)
    assert count.per_sample(2000) == 6


class Smoothing(DenoiserBase):
    """A denoiser that commutes with shifts of a periodic image."""

    schedule, event_shape = VP(), (1, 8, 8)

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in self.schedule(t))
        smooth = avg_pool2d(pad(x_t, (1, 1, 1, 1), mode="circular"), 3, stride=1)
        return alpha * (x_t - sigma * (x_t - smooth)).tanh()


def test_shifting_the_maps_shifts_the_image():
    x_0 = 2 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    editing, inversion = inverted(Smoothing(), x_0)
    shifted = inversion._replace(
        **{name: getattr(inversion, name).roll((2, 3), (-2, -1)) for name in ("x_t", "maps", "rest")}
    )
    assert (editing.replay(Smoothing(), shifted) - x_0.roll((2, 3), (-2, -1))).abs().max() < 1e-12


def test_another_label_moves_the_image_towards_its_class():
    means = 0.5 * torch.tensor([[-1.0, 0.2], [1.0, 0.2]], dtype=torch.float64)
    classes = [Gaussian(mean, torch.full((2,), 0.02)) for mean in means]
    model = ConditionalOracle(classes, [0.5, 0.5], VP())
    x_0 = classes[0].sample(40, torch.Generator().manual_seed(0))
    zeros, ones = torch.zeros(40, dtype=torch.long), torch.ones(40, dtype=torch.long)
    editing = DDPMInversion(UniformGrid(40))
    inversion = editing.invert(model, x_0, streams=ImageStreams(range(40)), cond=zeros)
    edited = editing.replay(model, inversion, cond=ones)
    torch.testing.assert_close(edited.mean(0), means[1], rtol=0, atol=0.1)
    kept = torch.corrcoef(torch.stack([edited[:, 1], x_0[:, 1]]))[0, 1]
    assert kept > 0.8, "what the classes share stays"
    for guidance in (ClassifierFree(model, 2.0), Adaptive(model, 2.0, threshold=0.999)):
        same = editing.invert(guidance, x_0, streams=ImageStreams(range(40)), cond=zeros)
        assert (editing.replay(guidance, same, cond=zeros) - x_0).abs().max() < 1e-12


# --------------------------------------------------------------------------- interpolation


def test_the_noise_is_mixed_at_its_level_and_the_signal_at_its_share():
    """For states l = alpha x + sigma n: variance of the noise and weights of the signals that each formula keeps."""
    alpha, sigma, x_1, x_2 = 0.6, 0.8, 0.7, -0.4
    random = torch.Generator().manual_seed(0)
    n_1, n_2 = (sigma * torch.randn(1, 200_000, generator=random, dtype=torch.float64) for _ in range(2))
    stds = {how: mixed(n_1, n_2, 0.5, how).std().item() for how in ("linear", "slerp")}
    assert stds["linear"] == pytest.approx(sigma / math.sqrt(2), rel=0.01)
    assert stds["slerp"] == pytest.approx(sigma, rel=0.01)
    slerped = mixed(alpha * x_1 + n_1, alpha * x_2 + n_2, 0.5, "slerp").mean().item()
    assert slerped / alpha / ((x_1 + x_2) / 2) > 1.3, (
        "slerp of states weighs the signals as it does the noise"
    )

    class Identity(DenoiserBase):
        """Gives the state that it is asked for."""

        schedule, event_shape = VP(), (200_000,)

        def __call__(self, x_t, t, cond=None):
            return x_t

    first, second = (torch.full((1, 200_000), value, dtype=torch.float64) for value in (x_1, x_2))
    level = sigma / alpha
    for fresh in (0.0, 0.5):
        corrected = Interpolation(DDIM(UniformGrid(1)), level=level, states="noised", fresh=fresh)
        (state,) = corrected(Identity(), first, second, [0.3], streams=ImageStreams([0]))
        assert state.std().item() == pytest.approx(sigma, rel=0.01)
        assert state.mean().item() == pytest.approx(alpha * (0.7 * x_1 + 0.3 * x_2), abs=0.01)


@pytest.mark.parametrize("how", ["linear", "slerp", "corrected"])
def test_the_ends_of_a_strip_are_the_images(how):
    first, second = X_0[:8], X_0[8:16]
    errors = []
    for steps in (50, 200):
        edit = Interpolation(DDIM(KarrasGrid(steps)), how=how, level=3.0, steps=steps)
        strip = edit(MODEL, first, second, [0.0, 0.5, 1.0], streams=ImageStreams(range(8)))
        errors.append(max((strip[0] - first).abs().max().item(), (strip[2] - second).abs().max().item()))
    assert errors[1] < 0.4 * errors[0]
    assert errors[1] < 0.02
    assert strip.shape == (3, 8, 16)
    one = edit(MODEL, first[3:4], second[3:4], [0.5], streams=ImageStreams([3]))
    torch.testing.assert_close(one[0, 0], strip[1, 3])


def log_density(x):
    ones = torch.ones(len(x), dtype=torch.float64)
    return MIXTURE.log_prob(x, ones, 1e-2 * ones).mean().item()


def test_corrected_mid_points_of_unlikely_inputs_are_likelier_than_those_of_slerp():
    random = torch.Generator().manual_seed(1)
    first, second = (x + 0.5 * torch.randn(x.shape, generator=random).double() for x in (X_0[:25], X_0[25:]))
    found = {}
    for name, how, more in (
        ("linear", "linear", {}),
        ("slerp", "slerp", {}),
        ("corrected", "corrected", {"clip": 2.0, "fresh": 0.6}),
    ):
        edit = Interpolation(DDIM(KarrasGrid(60)), how=how, level=1.5, **more)
        found[name] = log_density(edit(MODEL, first, second, [0.5], streams=ImageStreams(range(25)))[0])
    print({name: round(value, 2) for name, value in found.items()})
    assert found["corrected"] > found["slerp"] + 1


def test_the_flow_upwards_meets_its_exact_solution():
    variance, schedule = 0.2, VP()
    model = OracleDenoiser(Gaussian(torch.zeros(3), torch.full((3,), variance)), schedule)
    x_0 = torch.tensor([[0.5, -0.2, 0.1]], dtype=torch.float64)
    alpha, sigma = schedule.at(0.7)
    alpha_0, sigma_0 = schedule.at(schedule.t_min)
    ratio = math.sqrt((alpha**2 * variance + sigma**2) / (alpha_0**2 * variance + sigma_0**2))
    errors = [
        (encode(model, x_0, 0.7, steps=n) - ratio * alpha_0 * x_0).abs().max().item() for n in (50, 100)
    ]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (torch.full((1, 1, 8, 8), 200.0), r"values in \[200, 200\]; images must be in \[-1, 1\]"),
        (torch.full((1, 1, 8, 8), float("nan")), "must be floating point and finite"),
        (torch.zeros((1, 1, 8, 8), dtype=torch.uint8), "torch.uint8 must be floating point"),
        (torch.zeros(1, 3, 8, 8), r"shape \(3, 8, 8\), the model \(1, 8, 8\)"),
    ],
)
def test_what_is_no_image_of_the_model_is_refused(bad, match):
    good, streams = torch.zeros(1, 1, 8, 8), ImageStreams([0])
    with pytest.raises(ValueError, match=match) as error:
        DDPMInversion(UniformGrid(5)).invert(Smoothing(), bad, streams=streams)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"the second image.*{match}"):
        Interpolation(DDIM(UniformGrid(5)))(Smoothing(), good, bad, [0.5], streams=streams)


def test_wrong_settings_are_one_line():
    edit, streams = Interpolation(DDIM(UniformGrid(5))), ImageStreams([0])
    with pytest.raises(ValueError, match=r"shares=\[1\.5\]: give at least one, each in \[0, 1\]"):
        edit(MODEL, X_0[:1], X_0[1:2], [1.5], streams=streams)
    with pytest.raises(ValueError, match="how='slerp' takes no fresh noise"):
        Interpolation(DDIM(UniformGrid(5)), how="slerp", fresh=0.5)
    with pytest.raises(ValueError, match="noise level sigma/alpha = 1e"):
        Interpolation(DDIM(UniformGrid(5)), level=1e6)(MODEL, X_0[:1], X_0[1:2], [0.5], streams=streams)
    with pytest.raises(ValueError, match="keeps one label for the whole strip"):
        edit.strip(MODEL, [X_0[:1], X_0[1:2]], streams=streams, target=torch.tensor([1]))
    with pytest.raises(ValueError, match="alpha is 0"):
        encode(OracleDenoiser(MIXTURE, FlowMatching()), X_0[:1], 1.0)
