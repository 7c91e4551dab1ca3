"""The Haar transform is an orthonormal basis, and a discriminator that begins with it tells noise from structure."""

import pytest
import torch
import torch.nn.functional as F

from scoreexp.networks import WaveletDiscriminator
from scoreexp.numerics.haar import haar, inverse_haar
from scoreexp.objectives.adversarial import discriminator_losses


def test_the_haar_transform_is_orthonormal_and_its_inverse_exact():
    basis = torch.eye(32, dtype=torch.float64).view(32, 2, 4, 4)
    matrix = haar(basis).flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(32, dtype=torch.float64))
    x = torch.randn(3, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inverse_haar(haar(x)), x, rtol=0, atol=1e-15)


def test_each_band_is_its_pattern_of_two_by_two_pixels():
    rows, columns = torch.meshgrid(*[torch.arange(4) % 2 * -2.0 + 1] * 2, indexing="ij")
    patterns = torch.stack([torch.ones(4, 4), columns, rows, rows * columns])
    expected = 2 * torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2)
    torch.testing.assert_close(haar(patterns[:, None]), expected)


@pytest.mark.parametrize(("call", "shape"), [(haar, (1, 1, 3, 4)), (inverse_haar, (1, 3, 2, 2))])
def test_sizes_without_squares_are_refused(call, shape):
    with pytest.raises(ValueError, match=r"the shape \(1, .*: give \[B"):
        call(torch.zeros(shape))


def test_the_wavelet_discriminator_separates_white_from_low_pass_noise_in_a_few_steps():
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    def pairs(n):
        white, other = (torch.randn(n, 1, 8, 8, generator=random) for _ in range(2))
        smooth = F.avg_pool2d(F.pad(other, (1, 1, 1, 1), mode="circular"), 3, 1)
        return smooth / smooth.std(), white

    model = WaveletDiscriminator(event_shape=(1, 8, 8), channels=8, multipliers=(1,), embedding_channels=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def logits(x):
        return model(x, torch.zeros_like(x), torch.zeros(len(x)))

    for _ in range(40):
        smooth, white = pairs(48)
        optimizer.zero_grad()
        discriminator_losses(logits(smooth), logits(white)).mean().backward()
        optimizer.step()
    smooth, white = pairs(200)
    with torch.no_grad():
        right = torch.cat([logits(smooth) > 0, logits(white) < 0]).double().mean()
    print("told apart", round(right.item(), 3))
    assert right > 0.97
