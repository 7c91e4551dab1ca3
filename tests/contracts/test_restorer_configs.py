"""What every restorer, operator and guidance of conf/ promises; a new yaml is tested without editing this."""

import pytest
import torch
import yaml

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
    RandomMask,
    require_adjoint,
)
from scoreexp.restorers import Restorer
from scoreexp.schedules import VP, FlowMatching

SHAPE = (1, 8, 8)
MODEL = OracleDenoiser(Gaussian(torch.zeros(SHAPE), torch.full(SHAPE, 0.2)), VP())


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
    observation = Observation.simulate(
        torch.zeros(3, *SHAPE), Identity(), GaussianNoise(0.3), ImageStreams(range(3))
    )
    before = observation.y.clone()
    model = MODEL if restorer.needs_model else None
    whole = restorer(observation, model, streams=ImageStreams([5, 6, 7]), keep=2)
    assert whole.x.shape == observation.y.shape
    assert whole.x.isfinite().all()
    assert torch.equal(observation.y, before)
    assert (whole.nfe > 0) == restorer.needs_model
    assert torch.equal(whole.trajectory[-1], whole.x)
    one = Observation(observation.y[1:2], Identity(), GaussianNoise(0.3))
    torch.testing.assert_close(restorer(one, model, streams=ImageStreams([6])).x, whole.x[1:2])
    with pytest.raises(ValueError, match="3 observations for 2 seeds"):
        restorer(observation, model, streams=ImageStreams([0, 1]))


@pytest.mark.parametrize("node", nodes("restorer"))
def test_a_restorer_begins_where_alpha_is_zero(node):
    """Nothing may be divided by alpha at the first time of flow matching; the data are followed from the next one on."""
    restorer = construct(with_steps(node, 40))
    if not restorer.needs_model:
        return
    model = OracleDenoiser(MODEL.oracle, FlowMatching())
    mask = RandomMask(size=8, hole=0.25)
    y = mask(0.4 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)))
    observation = Observation(y, mask, GaussianNoise(0.1))
    restored = restorer(observation, model, streams=ImageStreams(range(3)), keep=50)
    assert all(x.isfinite().all() for x in restored.trajectory)
    assert (mask(restored.x) - y).norm() < 0.6 * y.norm()


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
