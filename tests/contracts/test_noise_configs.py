"""What every noise model of conf/ promises; a new yaml is tested without editing this."""

import pytest
import torch
import yaml

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.construct import construct
from scoreexp.core.streams import ImageStreams
from scoreexp.observations import NoiseModel, NoiseProxy, save_proxy

N, SIDE = 60, 16
X = torch.linspace(-0.9, 0.9, SIDE, dtype=torch.float64).expand(N, 1, SIDE, SIDE)
NODES = [
    pytest.param(yaml.safe_load(path.read_text()), id=path.stem)
    for path in sorted((conf_dir() / "noise").glob("*.yaml"))
]


@pytest.fixture(autouse=True)
def proxy_file(tmp_path, request):
    """The file that the learned noise asks for."""
    node = request.node.callspec.params["node"]
    if "proxy" in node:
        save_proxy(NoiseProxy(gain=0.02, pixel=0.05, row=0.01, frame=0.0005), tmp_path / "proxy.pt")
        node["proxy"]["path"] = str(tmp_path / "proxy.pt")


@pytest.mark.parametrize("node", NODES)
def test_samples_have_the_mean_the_variance_and_the_seed(node):
    noise = construct(node)
    assert isinstance(noise, NoiseModel)
    y = noise.sample(X, ImageStreams(range(N)))
    assert y.shape == X.shape
    assert y.dtype == X.dtype
    columns = (y - X).transpose(1, 3).flatten(0, 1)  # values of equal x, those of a column, in rows
    samples = columns.reshape(N, SIDE, -1).transpose(0, 1).flatten(1)
    variance = noise.variance(X)[0, 0, 0]
    assert (
        samples.mean(1).abs() < 6 * (variance / samples.shape[1]).sqrt() * 2
    ).all()  # 2: correlated values
    assert ((samples.var(1) / variance - 1).abs() < 0.35).all()
    torch.testing.assert_close(noise.sample(X[3:5], ImageStreams([3, 4])), y[3:5])
    assert noise.sample(X.float(), ImageStreams(range(N))).dtype == torch.float32


@pytest.mark.parametrize("node", NODES)
def test_the_likelihood_is_that_of_a_density_whose_mean_slope_is_zero(node):
    """E[d log p(y|x) / dx] = 0 and its variance is minus the mean curvature: what wrong constants or scales break."""
    noise = construct(node)
    x = X.clone().requires_grad_()
    y = noise.sample(X, ImageStreams(range(N)))
    value = noise.log_likelihood(y, x)
    assert value.shape == (N,)
    (slope,) = torch.autograd.grad(value.sum(), x)
    total = slope.flatten(1).sum(1)
    assert total.mean().abs() < 5 * total.std() / N**0.5
    step = 1e-3
    curvature = (
        sum(s * noise.log_likelihood(y, X + d * step) for s, d in ((1, 1), (-2, 0), (1, -1))) / step**2
    )
    assert float(total.var() / -curvature.mean()) == pytest.approx(1, abs=6 * (2 / N) ** 0.5)


@pytest.mark.parametrize("node", NODES)
def test_a_stabilised_variance_is_near_one_and_the_inverse_unbiased(node):
    noise = construct(node)
    x = torch.linspace(-0.6, 0.9, 7, dtype=torch.float64)[:, None].expand(7, 40000)
    y = noise.sample(x[:, None, :, None], ImageStreams(range(7)))[
        :, 0, :, 0
    ]  # rows of one pixel share nothing
    try:
        z = noise.stabilise(y)
    except ValueError:
        assert "stabilise" not in vars(type(noise))
        return
    assert ((z.var(1) - 1).abs() < 0.12).all()
    back = noise.unstabilise(z.mean(1))
    assert ((back - x[:, 0]).abs() < 6 * (noise.variance(x)[:, 0] / x.shape[1]).sqrt()).all()
