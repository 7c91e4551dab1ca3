"""Training on noisy images alone: blind spots, their optimum by stride, and the score of noisy data."""

import pytest
import torch
from torch import nn

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import Denoiser, EDMPrediction, ScorePrediction, X0Prediction
from scoreexp.networks import BlindSpot, ScoreCNN
from scoreexp.networks.blind_spot import from_lattices, to_lattices
from scoreexp.objectives import ARDAE, SDAP, DownsampledInvariance
from scoreexp.objectives.blind_spot import sub_images
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers import Noise2Score
from scoreexp.schedules import ConstantNoise

LEVEL = ConstantNoise(0.2)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "noisy images"), dtype=torch.float64)


def model_of(network, precond=None):
    return Denoiser(network, precond or X0Prediction(), LEVEL)


def at(x):
    return torch.full((len(x),), 0.5, dtype=torch.float64)


def test_lattices_are_every_nth_pixel_and_come_back():
    x = normal(2, 3, 6, 9)
    parts = to_lattices(x, 3).unflatten(0, (2, 9))
    for k in range(9):
        assert torch.equal(parts[:, k], x[..., k // 3 :: 3, k % 3 :: 3])
    assert torch.equal(from_lattices(parts.flatten(0, 1), 3), x)


def sees(function, x, place):
    """The gradient of a pixel of the output with respect to the image, summed over channels."""
    x = x.clone().requires_grad_()
    function(x)[(slice(None), slice(None), *place)].sum().backward()
    return x.grad.abs().sum((0, 1))


@pytest.mark.parametrize("place", [(0, 0), (4, 5), (11, 0), (7, 11), (1, 1)])
def test_a_blind_network_does_not_see_the_pixel_itself_and_the_other_does(place):
    torch.manual_seed(0)
    network = BlindSpot(event_shape=(2, 12, 12), channels=24, blocks=3, stride=1, centre=True).double()
    x = normal(1, 2, 12, 12)
    blind = sees(network.blind, x, place)
    assert blind[place] == 0
    assert (blind > 0).sum() > 30
    assert sees(lambda x: network(x, torch.zeros(1)), x, place)[place] > 0
    lattices = BlindSpot(event_shape=(2, 12, 12), channels=24, blocks=3, stride=2).double()
    seen = sees(lambda x: lattices(x, torch.zeros(1)), x, place)
    assert seen[place] == 0
    rows, columns = (torch.arange(12) % 2 == n % 2 for n in place)
    assert (seen[~rows] == 0).all(), "other lattices tell nothing"
    assert (seen[:, ~columns] == 0).all()


def test_sub_images_hold_each_pixel_once_in_all_orders():
    y = torch.arange(2 * 3 * 6 * 8).reshape(2, 3, 6, 8).double()
    parts = sub_images(y, normal(2, 3, 6, 8), 2)
    assert parts.shape == (4, 2, 3, 3, 4)
    cells = to_lattices(y, 2).unflatten(0, (2, 4)).transpose(0, 1)
    assert torch.equal(parts.sort(0).values, cells.sort(0).values)
    assert torch.equal(parts[:, :, 1], parts[:, :, 0] + 48), "the same order in all channels"
    first = sub_images(
        torch.arange(4.0).reshape(1, 1, 2, 2).repeat(1, 1, 100, 100), normal(1, 1, 200, 200), 2
    )[0]
    shares = torch.bincount(first.flatten().long(), minlength=4) / first.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.02)


# the optimum on Gaussian fields


def fields(length, blur, size=120, many=6, seed=0):
    """Periodic Gaussian fields: a signal of unit variance, its noise of variance 0.25, and their covariance functions."""
    place = torch.minimum(torch.arange(size), size - torch.arange(size)).double()
    squares = place[:, None] ** 2 + place**2
    of_signal = torch.exp(-squares / (2 * length**2))
    of_noise = torch.exp(-squares / (2 * blur**2)) if blur else (squares == 0).double()
    drawn = []
    for number, shape in enumerate((of_signal, 0.25 * of_noise)):
        power = torch.fft.fft2(shape).real.clamp(min=0)
        white = torch.fft.fft2(normal(many, 1, size, size, seed=seed + number))
        drawn.append(torch.fft.ifft2(power.sqrt() * white).real)
    return drawn[0], drawn[1], of_signal, 0.25 * of_noise


OFFSETS = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if (i, j) != (0, 0)]


def blind_optimum(of_signal, of_noise, stride):
    """The best linear predictor of a noisy pixel from the 24 around it on its lattice, and its error against the signal."""
    covariance = of_signal + of_noise
    at = lambda table, i, j: table[i % len(table), j % len(table)]  # noqa: E731
    apart = torch.tensor(
        [
            [float(at(covariance, (a[0] - b[0]) * stride, (a[1] - b[1]) * stride)) for b in OFFSETS]
            for a in OFFSETS
        ]
    ).double()
    with_target = torch.stack([at(covariance, i * stride, j * stride) for i, j in OFFSETS])
    with_signal = torch.stack([at(of_signal, i * stride, j * stride) for i, j in OFFSETS])
    weights = torch.linalg.solve(apart, with_target)
    error = of_signal[0, 0] - 2 * weights @ with_signal + weights @ apart @ weights
    return weights, float(error)


class LinearBlind(nn.Module):
    """A kernel of 5 x 5 weights without its centre, periodic at the borders; seen whole it has its centre."""

    centre = True

    def __init__(self):
        super().__init__()
        self.weights, self.own = nn.Parameter(torch.zeros(24).double()), nn.Parameter(torch.zeros(1).double())

    def blind(self, x, c_noise=None, cond=None):
        return sum(w * x.roll((-i, -j), (-2, -1)) for w, (i, j) in zip(self.weights, OFFSETS, strict=True))

    def forward(self, x, c_noise, cond=None):
        return (1 - self.own) * self.blind(x) + self.own * x


class NoScale(X0Prediction):
    def __call__(self, alpha, sigma):
        return super().__call__(alpha, sigma)._replace(c_in=torch.ones_like(alpha))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_blind_loss_has_the_exact_predictor_of_a_gaussian_field_as_its_optimum(stride):
    signal, noise, of_signal, of_noise = fields(length=8.0, blur=0.8, size=60, many=30)
    weights, error = blind_optimum(of_signal, of_noise, stride)
    network = LinearBlind()
    model = model_of(network, NoScale())
    objective = DownsampledInvariance(
        stride=stride, ramp=1000, window=None
    )  # r is 0 at first: the blind loss alone
    y = signal + noise
    with torch.no_grad():
        network.weights.copy_(weights)
    loss = objective(model, Batch(y=y), at(y), normal(*y.shape, seed=9)).mean()
    (slope,) = torch.autograd.grad(loss, [network.weights])
    with torch.no_grad():
        network.weights.zero_()
    objective.calls.zero_()
    loss = objective(model, Batch(y=y), at(y), normal(*y.shape, seed=9)).mean()
    (elsewhere,) = torch.autograd.grad(loss, [network.weights])
    assert slope.norm() < 0.04 * elsewhere.norm()
    with torch.no_grad():
        network.weights.copy_(weights)
        said = from_lattices(network.blind(to_lattices(y, stride)), stride)
    assert float((said - signal).square().mean()) == pytest.approx(error, rel=0.05)


def test_sub_sampling_helps_only_where_the_signal_is_smoother_than_the_stride():
    *_, of_signal, of_noise = fields(length=8.0, blur=0.8)
    smooth = [blind_optimum(of_signal, of_noise, stride)[1] for stride in (1, 2, 5)]
    assert smooth[1] < 0.7 * smooth[0], "neighbours with the same noise are left behind"
    assert smooth[2] > smooth[1], "and then those that tell of the pixel"
    *_, of_signal, of_noise = fields(length=2.0, blur=0.8)
    rough = [blind_optimum(of_signal, of_noise, stride)[1] for stride in (1, 2)]
    assert rough[1] > rough[0]


def lattice_optimum(of_signal, of_noise, stride=1):
    """Error of the best predictor of a signal's pixel from all other noisy ones of its lattice, and with the pixel itself.

    On a torus both are filters of the spectra; the weights of the first are those of the precision, which is blind to 0.
    """
    s, n = (torch.fft.fft2(part[::stride, ::stride]).real.clamp(min=0) for part in (of_signal, of_noise))
    precision = 1 / (s + n)
    blind = 1 - precision / precision.mean()
    return float(((1 - blind) ** 2 * s + blind**2 * n).mean()), float((s * n * precision).mean())


def test_a_window_of_24_neighbours_nears_the_optimum_of_all_and_the_pixel_itself_adds_its_precision():
    *_, of_signal, of_noise = fields(length=3.0, blur=0.0, many=1)
    blind, seeing = lattice_optimum(of_signal, of_noise)
    window = blind_optimum(of_signal, of_noise, 1)[1]
    assert blind < window < 1.5 * blind
    assert seeing == pytest.approx(1 / (1 / blind + 1 / 0.25), rel=1e-9)


def test_the_optimum_on_a_lattice_is_that_of_lengths_divided_by_the_stride():
    """So sub-sampling makes noise whiter and the signal rougher alike: it helps where the second does not matter yet."""
    for stride in (2, 3, 5):
        errors = []
        for length in (0.8 * stride, 1.6 * stride):
            *_, of_signal, of_noise = fields(length, 0.8, many=1)
            whole, sparse = (lattice_optimum(of_signal, of_noise, k)[0] for k in (1, stride))
            *_, of_signal, of_noise = fields(length / stride, 0.8 / stride, 120 // stride, many=1)
            assert sparse == pytest.approx(lattice_optimum(of_signal, of_noise)[0], rel=1e-3)
            errors.append(sparse / whole)
        assert errors[0] > 1.5, "a signal as smooth as the stride times the correlation loses"
        assert errors[1] < 0.8, "one of twice that length gains"


def test_sdaps_loss_pairs_each_sub_image_with_the_next():
    y, order = normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=1)
    network = LinearBlind()
    with torch.no_grad():
        network.weights[OFFSETS.index((0, 1))] = 1.0  # the right neighbour
    loss = SDAP(stride=2, window=None)(model_of(network, NoScale()), Batch(y=y), at(y), order)
    parts = sub_images(y, order, 2)
    expected = (
        sum((parts[j].roll(-1, -1) - parts[(j + 1) % 4]).abs().flatten(1).mean(1) for j in range(4)) / 4
    )
    torch.testing.assert_close(loss, expected)


def test_what_sees_its_centre_gains_from_it_where_the_noise_is_white():
    """The posterior of a pixel is its blind prediction, of the variance v - 0.25, together with the pixel itself."""
    signal, noise, of_signal, of_noise = fields(length=3.0, blur=0.0, size=60, many=20)
    weights, blind = blind_optimum(of_signal, of_noise, 1)
    network = LinearBlind()
    with torch.no_grad():
        network.weights.copy_(weights)
        network.own.fill_(blind / (blind + 0.25))
        found = float((network(signal + noise, None) - signal).square().mean())
    exact = 1 / (1 / blind + 1 / 0.25)
    assert found == pytest.approx(exact, rel=0.05)
    assert exact < 0.9 * blind


class LinearSeeing(LinearBlind):
    """A blind kernel, and one of 5 x 5 weights with its centre that shares none of them."""

    def __init__(self):
        super().__init__()
        self.whole = nn.Parameter(torch.zeros(25).double())

    def forward(self, x, c_noise=None, cond=None):
        return sum(w * x.roll((-i, -j), (-2, -1)) for w, (i, j) in zip(self.whole, WINDOW, strict=True))


WINDOW = [*OFFSETS, (0, 0)]


def invariance_optimum(of_signal, of_noise, blind, cell, weight):
    """The kernel that minimises C-BSN's loss beyond its blind part, its error against the signal, ``y - g`` and ``D``.

    Residuals are Gaussian, so that means of magnitudes are standard deviations: with ``b`` what the blind function says on a
    lattice of every ``cell``-th pixel, ``sd(f y - y) + weight sd(f y - b)``. Its optimum lies between ``y`` itself and the
    best prediction ``g`` of ``b`` from the window, whose error has the variance ``E``. With ``D = Var(y - g y)`` the share
    ``a`` of ``y`` is that of ``(1 - a) sqrt(D) + weight sqrt(E + a^2 D)`` without slope: ``a^2 = E / (D (weight^2 - 1))``.
    """
    covariance = of_signal + of_noise
    at = lambda table, i, j: table[i % len(table), j % len(table)]  # noqa: E731
    among = torch.stack(
        [torch.stack([at(covariance, a[0] - b[0], a[1] - b[1]) for b in WINDOW]) for a in WINDOW]
    )
    sparse = [(cell * i, cell * j) for i, j in OFFSETS]
    with_blind = sum(
        w * torch.stack([at(covariance, a[0] - i, a[1] - j) for a in WINDOW])
        for w, (i, j) in zip(blind, sparse, strict=True)
    )
    of_blind = sum(
        v * w * at(covariance, a[0] - b[0], a[1] - b[1])
        for v, a in zip(blind, sparse, strict=True)
        for w, b in zip(blind, sparse, strict=True)
    )
    own = torch.zeros(25).double()
    own[-1] = 1
    guess = torch.linalg.solve(among, with_blind)
    left = of_blind - guess @ with_blind
    apart = (own - guess) @ among @ (own - guess)
    kernel = guess + (left / (apart * (weight**2 - 1))).sqrt() * (own - guess)
    with_signal = torch.stack([at(of_signal, i, j) for i, j in WINDOW])
    error = float(of_signal[0, 0] - 2 * kernel @ with_signal + kernel @ among @ kernel)
    return kernel, error, own - guess, apart


@pytest.mark.parametrize(("blur", "stride"), [(0.0, 1), (0.8, 2)])
def test_the_full_invariance_loss_has_the_exact_optimum_of_a_gaussian_field(blur, stride):
    """Of sub-samples that are one lattice; those of a random pixel in each cell mix Gaussian laws."""
    signal, noise, of_signal, of_noise = fields(length=4.0, blur=blur, size=60, many=20)
    y = signal + noise
    blind, of_the_blind = blind_optimum(of_signal, of_noise, stride)
    kernel, error, away, apart = invariance_optimum(of_signal, of_noise, blind, cell=2, weight=2.0)
    network, objective = LinearSeeing(), DownsampledInvariance(stride=stride, ramp=1, window=None)
    objective.calls.fill_(1)
    order = torch.arange(3600).reshape(60, 60).double().expand_as(y)  # the first pixel of each cell
    slopes = []
    for weights, whole in ((blind, kernel), (torch.zeros(24), torch.zeros(25))):
        with torch.no_grad():
            network.weights.copy_(weights)
            network.whole.copy_(whole)
        loss = objective(model_of(network, NoScale()), Batch(y=y), at(y), order).mean()
        slopes.append(torch.autograd.grad(loss, [network.weights, network.whole]))
    for at_optimum, elsewhere in zip(*slopes, strict=True):
        assert at_optimum.norm() < 0.06 * elsewhere.norm()
    of_one_term = (2 / torch.pi * apart).sqrt()  # of the two whose slopes towards y cancel
    assert abs(slopes[0][1] @ away) < 0.05 * of_one_term
    with torch.no_grad():
        network.whole.copy_(kernel)
        found = float((network(y) - signal).square().mean())
    assert found == pytest.approx(error, rel=0.08)
    assert (error < of_the_blind) == (blur > 0), (
        "of white noise the loss leaves more than the blind function does"
    )


def test_the_invariance_loss_is_that_of_the_module():
    y, order = normal(2, 1, 12, 12), normal(2, 1, 12, 12, seed=1)
    network = LinearBlind()
    with torch.no_grad():
        network.weights[OFFSETS.index((0, 1))] = 1.0  # the right neighbour
        network.own.fill_(0.25)
    objective = DownsampledInvariance(stride=3, cell=2, weight=2.0, ramp=4, window=None)
    objective.calls.fill_(2)
    loss = objective(model_of(network, NoScale()), Batch(y=y), at(y), order)
    lattices = (y.roll(-3, -1) - y).abs()  # the right neighbour on a lattice of every third pixel
    whole = 0.75 * y.roll(-1, -1) + 0.25 * y
    held = sub_images(whole, order, 2)[0]
    said = sub_images(y, order, 2)[0].roll(-1, -1)
    expected = [part.flatten(1).mean(1) for part in (lattices, (whole - y).abs(), (held - said).abs())]
    torch.testing.assert_close(loss, expected[0] + 0.5 * (expected[1] + 2 * expected[2]))


def test_the_ramp_goes_on_in_a_resumed_run_and_evaluations_do_not_move_it():
    objective = DownsampledInvariance(stride=1, ramp=4, window=None)
    shares = [objective.progress() for _ in range(2)]
    objective.eval()
    assert objective.progress() == 1.0
    resumed = DownsampledInvariance(stride=1, ramp=4, window=None)
    resumed.load_state_dict(objective.state_dict())
    assert [*shares, resumed.progress(), resumed.progress(), resumed.progress()] == [
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    ]


def test_a_window_is_a_square_of_the_image_and_of_its_noise():
    y = torch.arange(400.0).reshape(1, 1, 20, 20)
    part, noise = SDAP(stride=5, window=13).in_window(y, y.clone(), 5)
    assert part.shape == (1, 1, 10, 10)
    assert torch.equal(part, noise)
    assert (part.diff(dim=-1) == 1).all()
    assert (part.diff(dim=-2) == 20).all()


def test_what_is_not_blind_is_refused():
    x = torch.zeros(2, 1, 12, 12)
    plain = model_of(ScoreCNN(event_shape=(1, 12, 12), widths=(4,)))
    with pytest.raises(
        ValueError, match="SDAP needs a blind-spot network, and ScoreCNN sees the pixel itself: set "
    ):
        SDAP(stride=3)(plain, Batch(x=x), at(x), x)
    network = BlindSpot(event_shape=(1, 12, 12), channels=4, blocks=1)
    with pytest.raises(ValueError, match=r"EDMPrediction adds the pixel itself .* set precond=x0"):
        SDAP(stride=3)(model_of(network, EDMPrediction()), Batch(x=x), at(x), x)
    with pytest.raises(
        ValueError, match=r"this network is blind to it: set network\.centre=true network\.stride=1"
    ):
        DownsampledInvariance(stride=3)(model_of(network), Batch(x=x), at(x), x)
    with pytest.raises(
        ValueError, match="stride=2: a network that sees the centre sees all pixels, set stride=1"
    ):
        BlindSpot(event_shape=(1, 12, 12), centre=True)
    with pytest.raises(
        ValueError, match=r"12 pixels hold no two cells of stride=7 a side: give objective\.stride=6"
    ):
        SDAP(stride=7)(model_of(network), Batch(x=x), at(x), x)
    with pytest.raises(
        ValueError, match="trains on many noisy images, and the training set has 1: denoise a single one"
    ):
        SDAP().prepare(1, lambda elements: None)


# the score of noisy data


class Linear(nn.Module):
    """``R(y) = slope y``, as a score at the level of the schedule: the preconditioning divides by sigma."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope]).double())

    def forward(self, x, c_noise, cond=None):
        return 0.2 * self.slope * x * (1 + 0.2**2) ** 0.5  # c_in is 1 / sqrt(1 + sigma^2)


def test_the_best_linear_score_is_that_of_the_module_and_tends_to_the_data_score():
    variance, delta = 0.5, 0.3
    y, u = variance**0.5 * normal(4000, 100), normal(4000, 100, seed=1)
    objective = ARDAE(largest=delta, smallest=delta)
    gradients = []
    for slope in (-1 / (variance + 3 * delta**2), -1 / variance):
        model = model_of(Linear(slope), ScorePrediction())
        torch.testing.assert_close(model.score(y[:3], at(y[:3])), slope * y[:3])
        loss = objective(model, Batch(y=y), at(y), u).mean()
        gradients += torch.autograd.grad(loss, [model.network.slope])
    assert gradients[0].abs() < 0.1 * gradients[1].abs()


def test_what_was_learned_from_noisy_data_is_between_them_and_the_best_of_clean_ones():
    """The score of noisy Gaussian data is learned as -1 / (v + s^2 + 3 delta^2), so too little is taken off."""
    variance, sigma = 0.7, 0.2
    y, u = (variance + sigma**2) ** 0.5 * normal(1000, 100), normal(1000, 100, seed=1)
    errors = []
    for delta in (0.3, 0.1):
        objective, slopes = ARDAE(largest=delta, smallest=delta), (-2.0, -1.0, 0.0)
        with torch.no_grad():
            losses = [
                float(objective(model_of(Linear(s), ScorePrediction()), Batch(y=y), at(y), u).mean())
                for s in slopes
            ]
        left, middle, right = losses  # of a parabola
        best = -1.0 + (left - right) / (2 * (left - 2 * middle + right))
        assert best == pytest.approx(-1 / (variance + sigma**2 + 3 * delta**2), rel=0.02)
        observation = Observation(y[:8], Identity(), GaussianNoise(sigma))
        made = Noise2Score()(
            observation, model_of(Linear(best), ScorePrediction()), streams=ImageStreams(range(8))
        ).x
        torch.testing.assert_close(made, (1 + sigma**2 * best) * y[:8])
        kept = 1 + sigma**2 * best
        errors.append((1 - kept) ** 2 * variance + kept**2 * sigma**2)
    wiener = variance * sigma**2 / (variance + sigma**2)
    assert sigma**2 > errors[0] > errors[1] > wiener
    assert errors[1] - wiener < 0.1 * (errors[0] - wiener)


def test_the_scale_falls_geometrically():
    seen = []

    class Seen(nn.Module):
        def forward(self, x, c_noise, cond=None):
            seen.append(float(x.std()) * (1 + 0.2**2) ** 0.5)
            return 0 * x

    objective, y = ARDAE(largest=0.4, smallest=0.1, ramp=2), torch.zeros(500, 2).double()
    for _ in range(3):
        objective(model_of(Seen(), ScorePrediction()), Batch(x=y), at(y), normal(500, 2, seed=2))
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([0.4, 0.2, 0.1]), rtol=0.1, atol=0)
    with pytest.raises(ValueError, match=r"smallest=0.2 must be at most largest=0.1"):
        ARDAE(largest=0.1, smallest=0.2)
