"""What every restorer, operator and guidance of conf/ promises; a new yaml is tested without editing this."""

import pytest
import torch
import yaml
from conftest import Blind

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.construct import construct, locate
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import (
    GaussianNoise,
    Identity,
    LinearOperator,
    Observation,
    PoissonNoise,
    RandomMask,
    require_adjoint,
)
from scoreexp.restorers import Conditioned, Exposure, Restorer
from scoreexp.schedules import VP, FlowMatching

SHAPE = (1, 8, 8)
PRIOR = Gaussian(torch.zeros(SHAPE), torch.full(SHAPE, 0.2))
MODEL = Blind(OracleDenoiser(PRIOR, VP()))


def nodes(group):
    return [
        pytest.param(yaml.safe_load(path.read_text()), id=path.stem)
        for path in sorted((conf_dir() / group).glob("*.yaml"))
    ]


def with_steps(node, steps):
    """The node with so many steps, wherever it says how many."""
    inner = {key: with_steps(value, steps) for key, value in node.items() if isinstance(value, dict)}
    return {**node, **inner, **({"steps": steps} if "steps" in node else {})}


@pytest.mark.parametrize("node", nodes("restorer"))
def test_a_restorer_denoises_repeats_itself_and_does_not_touch_the_data(node):
    restorer = construct(with_steps(node, 3))
    assert isinstance(restorer, Restorer)
    noise = PoissonNoise(30.0) if isinstance(restorer, Exposure) else GaussianNoise(0.3)
    observation = Observation.simulate(torch.zeros(3, *SHAPE), Identity(), noise, ImageStreams(range(3)))
    before = observation.y.clone()
    model = MODEL if restorer.needs_model else None
    whole = restorer(observation, model, streams=ImageStreams([5, 6, 7]), keep=2)
    assert whole.x.shape == observation.y.shape
    assert whole.x.isfinite().all()
    assert torch.equal(observation.y, before)
    assert (whole.nfe > 0) == restorer.needs_model
    assert torch.equal(whole.trajectory[-1], whole.x)
    one = Observation(observation.y[1:2], Identity(), noise)
    torch.testing.assert_close(restorer(one, model, streams=ImageStreams([6])).x, whole.x[1:2])
    with pytest.raises(ValueError, match="3 observations for 2 seeds"):
        restorer(observation, model, streams=ImageStreams([0, 1]))


@pytest.mark.parametrize("node", nodes("restorer"))
def test_a_restorer_begins_where_alpha_is_zero(node):
    """Nothing may be divided by alpha at the first time of flow matching; the data are followed from the next one on."""
    restorer = construct(with_steps(node, 40))
    if not restorer.needs_model:
        return
    model = Blind(OracleDenoiser(PRIOR, FlowMatching()))
    mask = RandomMask(size=8, hole=0.25)
    x = (0.4 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    y, noise = mask(x), PoissonNoise(30.0) if isinstance(restorer, Exposure) else GaussianNoise(0.1)
    streams = ImageStreams(range(3))
    try:
        restored = restorer(Observation(y, mask, noise), model, streams=streams, keep=50)
    except ValueError:  # for denoising alone
        observation = Observation.simulate(x, Identity(), noise, ImageStreams(range(3)))
        restored = restorer(observation, model, streams=streams, keep=50)
    else:
        is_conditioned = isinstance(restorer, Conditioned)  # on an image at which this model does not look
        assert is_conditioned or (mask(restored.x) - y).norm() < 0.6 * y.norm()
    assert all(x.isfinite().all() for x in restored.trajectory)


@pytest.mark.parametrize("node", nodes("operator"))
def test_an_operator_that_is_linear_passes_the_adjoint_test_and_has_the_decomposition_it_gives(node):
    operator = construct({**node, "size": 16} if "size" in node else node)
    assert isinstance(operator, LinearOperator)
    event_shape = (3, 16, 16)
    require_adjoint(operator, event_shape)
    x = torch.randn(2, *event_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = operator(x)
    assert y.shape[1:] == operator.output_shape(event_shape)
    assert operator(x.float()).dtype == operator.adjoint(y.float()).dtype == torch.float32
    torch.testing.assert_close(operator(x[:1]), y[:1])  # sample by sample
    try:
        singular, vt, v, ut = operator.svd(x)
    except ValueError:
        assert "svd" not in vars(type(operator))
        return
    torch.testing.assert_close(v(vt(x)), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ut(y), singular * vt(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(operator.adjoint(y), v(singular * ut(y)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(operator(operator.pinv(y)), y, rtol=1e-6, atol=1e-6)
    assert float(singular.max()) == pytest.approx(operator.norm(event_shape), rel=0.02)


@pytest.mark.parametrize("node", nodes("guidance"))
def test_a_guidance_is_a_denoiser_around_one(node):
    assert issubclass(locate(node["_target_"]), DenoiserBase)
