"""The torch version of the spectral solver against the one in numpy."""

import numpy as np
import pytest
import torch

from scoreexp.numerics.fokker_planck import initial_log_density, mass, solve_log_density
from scoreexp.numerics.spectral_torch import TorchSpectral, cosine_sums

ARGS = {"g": 0.5, "times": np.linspace(0, 1, 11)}


def photographs(side: int = 32) -> np.ndarray:
    from skimage import data
    from skimage.transform import resize

    images = (resize(getattr(data, name)() / 255.0, (side, side)) for name in ("astronaut", "chelsea"))
    return np.stack([initial_log_density(np.clip(image, 0, 1)) for image in images])


def test_cosine_sums_are_the_type_one_transform():
    from scipy.fft import dctn

    x = np.random.default_rng(0).normal(size=(2, 7, 4))
    np.testing.assert_allclose(cosine_sums(torch.from_numpy(x)), dctn(x, type=1, axes=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 8), (16, 3), (33, 33)])
def test_equals_the_numpy_solver_in_double_precision(shape):
    # Both are exact up to round-off of the transforms, some eps sqrt(N) of the largest density, and p >= p_max e^-7
    # for normal draws of log p within 3.5 deviations: 33 * 2.2e-16 * e^7 = 8e-12.
    log_p0 = np.random.default_rng(0).normal(size=(2, 3, *shape)).clip(-3.5, 3.5)
    field = solve_log_density(log_p0, solver=TorchSpectral("cpu"), **ARGS)
    expected = solve_log_density(log_p0, solver="spectral", **ARGS)
    assert field.solver == "spectral_torch"
    np.testing.assert_allclose(field.log_p, expected.log_p, rtol=0, atol=1e-11)
    np.testing.assert_allclose(mass(field.log_p), mass(expected.log_p), rtol=1e-12)


def _single_precision_error(device: str) -> float:
    """Error of log p relative to its own size."""
    log_p0 = photographs()
    field = solve_log_density(log_p0, solver=TorchSpectral(device, "float32"), **ARGS)
    expected = solve_log_density(log_p0, solver="spectral", **ARGS)
    return float(np.abs(field.log_p - expected.log_p).max() / np.abs(expected.log_p).max())


def test_equals_the_numpy_solver_in_single_precision():
    assert 0 < _single_precision_error("cpu") < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equals_the_numpy_solver_on_the_gpu():
    assert _single_precision_error("cuda") < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "abacus"}, "choose auto, cpu or cuda"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        TorchSpectral(**arguments)


def test_what_it_does_not_support_names_who_does():
    start = np.zeros((4, 4))
    with pytest.raises(
        ValueError, match=r"'spectral_torch' does not support boundary='zero': choose.*direct"
    ):
        solve_log_density(start, solver=TorchSpectral("cpu"), boundary="zero", **ARGS)
    with pytest.raises(ValueError, match="with a drift: choose one of factorised"):
        solve_log_density(start, solver=TorchSpectral("cpu"), drift=lambda x, t: -x, **ARGS)
