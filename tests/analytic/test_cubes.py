"""Cubes of bands: exact answers for what uses the bands together."""

import math

import numpy as np
import pytest
import torch

from scoreexp.core.streams import ImageStreams, generator
from scoreexp.data import Cubes, DataError
from scoreexp.metrics import spectral_angle
from scoreexp.networks import UNet3D
from scoreexp.networks.unet3d import _convolution
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers import HyRes
from scoreexp.restorers.hyres import noise_of_bands, sure_threshold


def rank_three(bands=16, side=32):
    """``[1, D, H, W]`` of three spectra on two shapes and a ground, in [0.1, 0.9] of the range [-1, 1]."""
    t = torch.linspace(0, 1, side, dtype=torch.float64)
    disc, ramp = ((t[:, None] - 0.5) ** 2 + (t - 0.4) ** 2 < 0.06).double(), (t[:, None] + t) / 2
    spectra = torch.rand(3, bands, generator=generator("spectra"), dtype=torch.float64)
    cube = torch.einsum("kd,khw->dhw", spectra, torch.stack([disc, ramp, torch.ones_like(disc)]))[None]
    return 0.2 + 0.6 * cube / cube.max()


def restored(cube, sigma, **options):
    return HyRes(**options)(Observation(cube, Identity(), GaussianNoise(sigma)), streams=ImageStreams([0])).x


def noisy(cube, sigma):
    return cube + sigma * torch.randn(cube.shape, generator=generator("noise"), dtype=cube.dtype)


def test_hyres_commutes_with_rotations_of_the_bands():
    y = noisy(rank_three(), 0.1)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator("rotation"), dtype=torch.float64)).Q

    def rotated(cube):
        return torch.einsum("ed,bdhw->behw", rotation, cube)

    torch.testing.assert_close(
        restored(rotated(y), 0.1, whiten=False), rotated(restored(y, 0.1, whiten=False)), rtol=0, atol=1e-9
    )


def test_the_threshold_has_the_least_stein_risk_and_vanishing_noise_leaves_the_cube():
    w = torch.randn(3, 40, generator=generator("w"), dtype=torch.float64) * torch.tensor(
        [[0.3], [1.0], [4.0]]
    )
    risks = [
        (w.abs().clamp(max=a)).square().sum(1) + 2 * (w.abs() > a).sum(1)
        for a in torch.linspace(0, float(w.abs().max()), 4000).tolist()
    ]
    chosen = sure_threshold(w, 1.0)
    own = (w.abs().minimum(chosen)).square().sum(1) + 2 * (w.abs() > chosen).sum(1)
    assert (own <= torch.stack(risks).min(0).values + 1e-9).all()
    y = noisy(rank_three(), 0.1)
    torch.testing.assert_close(restored(y, 1e-9, whiten=False), y, rtol=0, atol=1e-7)
    flat = torch.full((1, 16, 32, 32), 0.3, dtype=torch.float64)
    assert restored(noisy(flat, 0.2), 0.2, whiten=False).var() < 0.2**2 / 40, "noise alone vanishes"


def test_hyres_keeps_the_spectra_and_tells_the_noise_of_the_bands_from_signal():
    clean = rank_three()
    levels = torch.linspace(0.02, 0.3, 16, dtype=torch.float64)[:, None, None]
    y = clean + levels * noisy(torch.zeros_like(clean), 1.0)
    found = noise_of_bands(y[0].flatten(1))
    assert ((found / levels.flatten())[4:] - 1).abs().max() < 0.1
    sigma = float(levels.square().mean().sqrt())
    white, plain = (restored(y, sigma, whiten=whiten) for whiten in (True, False))
    errors = [float((x - clean).square().mean()) / sigma**2 for x in (white, plain)]
    assert errors[0] < 0.05
    assert errors[0] < errors[1] / 2
    assert spectral_angle(white, clean) < spectral_angle(y, clean) / 5


def test_without_enough_pixels_the_bands_have_one_level():
    assert noise_of_bands(torch.randn(8, 20, dtype=torch.float64)) is None
    same = torch.randn(1, 400, dtype=torch.float64)
    assert noise_of_bands(same.expand(4, -1)) is None, "bands predict one another exactly"


def test_the_spectral_angle_is_that_of_the_spectra_whatever_their_brightness():
    for degrees in (0.0, 1e-4, 30.0, 90.0):
        turn = math.radians(degrees)
        x = torch.tensor([0.8, 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(-1, -1, 3, 2)
        y = 0.3 * torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64).view(1, 2, 1, 1).expand(
            -1, -1, 3, 2
        )
        assert float(spectral_angle(y, x)) == pytest.approx(degrees, rel=1e-9)
    assert float(spectral_angle(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))) == 0
    assert float(spectral_angle(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1))) == 90


# ------------------------------------------------------------------------------------------------- the network


def test_a_factorised_convolution_is_the_full_one_with_the_product_of_its_kernels():
    torch.manual_seed(0)
    pair = _convolution(4, factorised=True, scale=1.0).double()
    full = _convolution(4, factorised=False, scale=1.0).double()
    plane, line = (layer.weight.data for layer in pair)
    full[0].weight.data = torch.einsum("omd,mihw->oidhw", line[..., 0, 0], plane[:, :, 0])
    x = torch.randn(1, 4, 5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(pair(x), full(x))


def test_the_network_convolves_over_bands_of_any_number_and_refuses_one():
    torch.manual_seed(0)
    network = UNet3D(event_shape=(8, 8, 8), widths=(4,), blocks=1).double()
    torch.nn.init.normal_(network.head.weight)
    x = torch.randn(1, 24, 8, 8, dtype=torch.float64, requires_grad=True)
    c = torch.zeros(1, dtype=torch.float64)
    out = network(x, c)
    reach = 6  # stem, two blocks of two convolutions, head
    inner = network(x[:, 3:], c)
    torch.testing.assert_close(out[:, 3 + reach :], inner[:, reach:])
    (gradient,) = torch.autograd.grad(out[0, 12].sum(), x)
    seen = gradient[0].abs().flatten(1).max(1).values > 0
    assert seen.nonzero().flatten().tolist() == list(range(12 - reach, 12 + reach + 1))
    for cubes in (lambda: UNet3D(event_shape=(1, 8, 8)), lambda: network(x[:, :1], c)):
        with pytest.raises(ValueError, match=r"the cube has 1 band.*denoising_unet"):
            cubes()


def test_the_network_learns_more_than_bands_tell_by_themselves():
    """Cubes ``a s`` of one spectrum with white abundances: the posterior mean is ``s s^T y / (|s|^2 + sigma^2)``."""
    torch.manual_seed(0)
    spectrum, sigma = torch.linspace(0.5, 1.5, 6)[:, None, None], 1.0
    network = UNet3D(event_shape=(6, 8, 8), widths=(12,))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    error = torch.tensor(0.0)
    for _ in range(60):
        x = torch.randn(8, 1, 8, 8) * spectrum
        error = (network(x + sigma * torch.randn_like(x), torch.zeros(8)) - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    power = spectrum.square()
    by_bands = float((power * sigma**2 / (power + sigma**2)).mean())
    optimum = float(power.mean() * sigma**2 / (power.sum() + sigma**2))
    assert optimum < error.item() < 0.75 * by_bands


# ---------------------------------------------------------------------------------------------------- the data


def test_blocks_of_one_cube_are_not_in_two_splits_and_keep_their_values(tmp_path):
    rows = np.arange(40, dtype=np.float32)[:, None] / 39
    np.save(tmp_path / "a.npy", np.stack([rows * np.ones((1, 24), np.float32)] * 5))
    data = Cubes(root=str(tmp_path / "a.npy"), size=8, bands=3, crops=50)
    train, val = (data.split(name).values for name in ("train", "val"))
    assert train.shape == (50, 3, 8, 8)
    assert train.dtype == np.float32
    assert train.max() < val.min(), "the lowest rows are held out"
    assert len(np.unique(train[:, 0, 0, 0])) > 15
    again = Cubes(root=str(tmp_path / "a.npy"), size=8, bands=3, crops=50).split("train").values
    np.testing.assert_array_equal(again, train)


def test_cubes_of_a_folder_belong_to_one_split_each_and_bad_ones_are_refused(tmp_path):
    for level in range(10):
        np.save(tmp_path / f"{level}.npy", np.full((4, 16, 16), level / 10) + 0.01 * (np.arange(16) > 7))
    data = Cubes(root=str(tmp_path), size=8, crops=3)
    names = [set(data.split(name).names) for name in ("train", "val", "test")]
    assert sum(map(len, names)) == len(set.union(*names)) == 10
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((6, 16, 16)))
    folder = Cubes(root=str(tmp_path), size=8, crops=1, val_fraction=0.1, test_fraction=0.0)
    with pytest.raises(DataError, match=r"from 4 to 6 bands: give data\.bands=4"):
        folder.split("train")
    for shape, text in (
        ((1, 16, 16), "has one band"),
        ((4, 16, 16, 3), "has colours"),
        ((4, 6, 16), "smaller data.size"),
    ):
        np.save(tmp_path / "bad.npy", np.random.default_rng(0).random(shape))
        with pytest.raises(DataError, match=text):
            Cubes(root=str(tmp_path / "bad.npy"), size=8).split("train")
