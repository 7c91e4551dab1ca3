"""Operators against matrices, closed forms and Pillow; what all of them promise is in tests/contracts."""

import numpy as np
import pytest
import torch
from PIL import Image

from scoreexp.observations import (
    Blur,
    BoxMask,
    CartesianMRI,
    ChannelMix,
    Compose,
    DeadPixels,
    FourierMask,
    FromDeepinv,
    Function,
    GaussianBlur,
    Grayscale,
    LinearFunction,
    Magnitude,
    Mask,
    MotionBlur,
    Operator,
    PerChannel,
    RandomMask,
    Separable,
    Stack,
    SuperResolution,
    require_adjoint,
)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(operator, event_shape):
    """The operator as a matrix, from its columns."""
    unit = torch.eye(torch.Size(event_shape).numel(), dtype=torch.float64).unflatten(1, event_shape)
    return operator(unit).flatten(1).T


@pytest.mark.parametrize(
    ("operator", "event_shape"),
    [
        (RandomMask(size=(5, 6), hole=0.3), (2, 5, 6)),
        (BoxMask(size=6), (1, 6, 6)),
        (DeadPixels(images(2, 4, 5) > 1), (2, 4, 5)),
        (GaussianBlur(0.7, size=(7, 8)), (1, 7, 8)),
        (Blur(images(3, 5, seed=2), size=(7, 8)), (1, 7, 8)),
        (SuperResolution(2, size=(6, 8)), (2, 6, 8)),
        (SuperResolution(3, size=6, filter="lanczos"), (1, 6, 6)),
        (Grayscale(), (3, 3, 4)),
        (FourierMask(torch.arange(42).reshape(6, 7) % 3 == 0), (1, 6, 7)),
        (CartesianMRI(size=8, share=0.5, centre=0.25), (1, 8, 8)),
        (Separable(images(2, 5), images(3, 4)), (1, 5, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operator) else "",
)
def test_pseudo_inverse_and_norm_are_those_of_the_matrix(operator, event_shape):
    dense = matrix(operator, event_shape)
    y = images(2, *operator.output_shape(event_shape))
    expected = (y.flatten(1) @ torch.linalg.pinv(dense).T).unflatten(1, event_shape)
    torch.testing.assert_close(operator.pinv(y), expected, rtol=1e-9, atol=1e-9)
    largest = float(torch.linalg.matrix_norm(dense, 2))
    assert operator.norm(event_shape, iterations=300) == pytest.approx(largest, rel=1e-3)
    torch.testing.assert_close(
        operator.adjoint(y), (y.flatten(1) @ dense).unflatten(1, event_shape), rtol=1e-12, atol=1e-12
    )


def test_singular_values_of_rounding_are_not_measured():
    """Of a matrix of rank one, whose second singular value is 0 but for rounding; the pseudo-inverse leaves it out."""
    rows = torch.outer(images(3), images(3, seed=1))
    operator, x = Separable(rows, torch.eye(2, dtype=torch.float64)), images(1, 1, 3, 2)
    assert int(operator.svd(x).measured.sum()) == 2
    noisy = operator(x) + 1e-3 * images(1, 1, 3, 2, seed=2)
    assert float((operator.pinv(noisy) - operator.pinv(operator(x))).norm()) < 0.1


@pytest.mark.parametrize("border", ["periodic", "valid"])
def test_blur_is_the_sum_over_shifted_pixels(border):
    kernel, x = images(3, 5, seed=1), images(1, 1, 9, 10)
    blur = Blur(kernel, size=(9, 10), border=border)
    shifted = sum(
        kernel[a, b] * x.roll((a - 1, b - 2), (2, 3)) for a in range(3) for b in range(5)
    )  # index c - a back: the true convolution, not the correlation
    expected = shifted if border == "periodic" else shifted[..., 1:-1, 2:-2]
    torch.testing.assert_close(blur(x), expected, rtol=1e-12, atol=1e-12)
    require_adjoint(blur, (1, 9, 10))


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 90.0, 200.0])
def test_a_motion_kernel_is_a_centred_line_of_its_length_and_direction(angle):
    length = 21.0
    kernel = MotionBlur(length, angle, size=64).kernel
    reach = kernel.shape[0] // 2
    row, column = torch.meshgrid(*[torch.arange(-reach, reach + 1.0, dtype=torch.float64)] * 2, indexing="ij")
    assert float(kernel.sum()) == pytest.approx(1)
    assert abs(float((kernel * row).sum())) < 1e-9
    assert abs(float((kernel * column).sum())) < 1e-9
    covariance = torch.tensor(
        [[(kernel * p * q).sum() for q in (column, -row)] for p in (column, -row)]
    )  # x to the right, y upwards
    along = torch.tensor([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    # a uniform line of length L has the variance L^2 / 12; sharing between pixels adds up to 1 / 4
    assert float(along @ covariance @ along) == pytest.approx((length - 1) ** 2 / 12, abs=1.0)
    assert float(covariance.trace() - along @ covariance @ along) < 0.3


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos", "box"])
def test_reduction_is_that_of_pillow(factor, filter):
    height, width = 24 * 2, 24 * 3
    x = images(1, 1, height, width)
    resample = Image.Resampling[filter.upper()]
    image = Image.fromarray(x[0, 0].numpy().astype(np.float32))
    expected = np.asarray(image.resize((width // factor, height // factor), resample))
    found = SuperResolution(factor, size=(height, width), filter=filter)(x)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_gray_is_that_of_pillow_up_to_its_rounding():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    found = Grayscale()(torch.from_numpy(pixels.astype(float)).permute(2, 0, 1)[None])[0, 0]
    assert np.abs(found.numpy() - expected).max() <= 0.51


def test_masks_hide_what_they_say_and_depend_on_the_seed_alone():
    mask = RandomMask(size=(10, 7), hole=0.3, seed=3)
    assert int((~mask.seen).sum()) == 21
    assert torch.equal(mask.seen, RandomMask(size=(10, 7), hole=0.3, seed=3).seen)
    assert not torch.equal(mask.seen, RandomMask(size=(10, 7), hole=0.3, seed=4).seen)
    assert not BoxMask(size=8).seen[2:6, 2:6].any()
    x = images(2, 3, 10, 7)
    assert torch.equal(mask.adjoint(mask(x)), x * mask.seen)


def test_opposite_frequencies_are_averaged():
    """Of a real image each of two opposite frequencies tells the other; noise on both halves in the mean."""
    omega = torch.zeros(8, 8, dtype=torch.bool)
    omega[0, 1] = omega[0, 7] = True
    operator = FourierMask(omega)
    one = FourierMask(omega & (torch.arange(8) < 4))
    assert operator.norm((1, 8, 8)) == pytest.approx(1)
    assert one.norm((1, 8, 8)) == pytest.approx(0.5**0.5)
    x = images(1, 1, 8, 8)
    torch.testing.assert_close(operator.pinv(operator(x)), one.pinv(one(x)))
    noise = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    noise[0, 0, 0, 0] = 1.0
    assert float(operator.pinv(noise).norm()) == pytest.approx(float(one.pinv(noise[:, :, :1]).norm()) / 2)


def test_a_stack_weighs_its_parts_and_bands_of_low_rank_come_back():
    basis = torch.linalg.qr(images(6, 2)).Q
    expand = ChannelMix(basis)
    x = images(1, 2, 4, 4)
    torch.testing.assert_close(expand.pinv(expand(x)), x)
    per_band = PerChannel([Blur(images(3, 3, seed=k), size=4) for k in (1, 2)])
    stack = Stack(
        [per_band, Compose(SuperResolution(2, size=4), ChannelMix(images(1, 2)))], (2, 4, 4), [1.0, 3.0]
    )
    require_adjoint(stack, (2, 4, 4))
    parts = [operator(x) for operator in stack.operators]
    y = images(1, 36)
    residual = (stack(x) - stack.stacked([p + 1 for p in parts])).square().sum()
    assert float(residual) == pytest.approx(32 * 1 + 4 * 9)
    with pytest.raises(ValueError, match=r"\[B, 36\]"):
        stack.adjoint(y[:, :-1])


def test_an_adjoint_is_found_by_differentiation_also_while_gradients_are_off():
    weights = images(5, 3)
    operator = LinearFunction(lambda x: x @ weights.to(x).T, event_shape=(3,))
    require_adjoint(operator, (3,))
    y = images(2, 5)
    with torch.inference_mode():
        torch.testing.assert_close(operator.adjoint(y), y @ weights)
    with pytest.raises(ValueError, match="not linear"):
        LinearFunction(lambda x: x + 1, event_shape=(3,))
    assert torch.equal(Function(torch.abs)(-y), y.abs())


def test_a_physics_of_deepinv_is_taken_by_its_two_methods():
    class Physics:
        def A(self, x):
            return 2 * x

        def A_adjoint(self, y):
            return 2 * y

    require_adjoint(FromDeepinv(Physics()), (3,))
    with pytest.raises(TypeError, match="no A and A_adjoint"):
        FromDeepinv(object())


def test_magnitude_is_that_of_the_complex_number():
    z = torch.view_as_complex(images(1, 4, 4, 2))
    torch.testing.assert_close(
        Magnitude()(torch.view_as_real(z).permute(0, 3, 1, 2))[:, 0], z.abs(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mask(torch.ones(3, 3)), "without a hole: use Identity"),
        (lambda: Mask(torch.zeros(3, 3)), "all hole"),
        (lambda: RandomMask(size=4, hole=1.0), "all hole"),
        (lambda: Mask(torch.ones(3)), r"shape \(3,\)"),
        (lambda: RandomMask(size=4)(torch.zeros(1, 1, 4, 5)), "takes 4 x 4 values here, not 4 x 5"),
        (lambda: RandomMask(size=4).adjoint(torch.zeros(1, 1, 9)), "y has 9 values, but 8"),
        (lambda: GaussianBlur(3.0, size=16), "25 x 25 is larger than the image of 16 x 16"),
        (lambda: Blur(torch.ones(2, 3), size=8), "odd sides"),
        (lambda: Blur(torch.zeros(3, 3), size=8), "kernel is 0"),
        (lambda: SuperResolution(4, size=(30, 64)), "crop the image to 28 x 64, or pad it to 32 x"),
        (lambda: Grayscale()(torch.zeros(1, 1, 4, 4)), "takes 3 channels"),
        (lambda: CartesianMRI(size=8, share=0.1, centre=0.5), "centre=0.5"),
        (lambda: Stack([Grayscale()], (3, 4, 4), [0.0]), "one > 0 for each of the 1"),
        (lambda: GaussianBlur(1.0, size=0), "size=0"),
        (
            lambda: Blur(torch.ones(3, 3), size=8, border="valid").pinv(torch.zeros(1, 1, 6, 6)),
            "no singular value",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
