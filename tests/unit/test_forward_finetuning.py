"""Fine-tuning without gradients: the estimate, its projection, and quantised networks."""

import pytest
import torch

from scoreexp.core.streams import generator
from scoreexp.denoisers import Denoiser, VPrediction
from scoreexp.diagnostics.compression import calibration_set, quantise
from scoreexp.diagnostics.forward_finetuning import finetune, principal_span, zeroth_order_gradient
from scoreexp.networks import MLP
from scoreexp.schedules import VP

NODE = {"_target_": "scoreexp.networks.MLP", "width": 32, "blocks": 1}


def test_on_a_quadratic_the_estimate_is_unbiased_and_its_projection_has_k_of_d_of_the_variance():
    d, k, n = 40, 4, 8_000
    matrix, offset = (
        torch.randn(*s, generator=generator(0, str(s)), dtype=torch.float64) for s in ((d, d), (d,))
    )
    theta = torch.zeros(d, dtype=torch.float64)
    exact = matrix.T @ (matrix @ theta - offset)
    u = torch.randn(n, d, generator=generator(0, "u"), dtype=torch.float64)
    found = u * (u @ exact)[:, None]  # a central difference of a quadratic is exact, as the next lines check
    for row in range(2):
        loss = lambda v: float((matrix @ v - offset).square().sum() / 2)  # noqa: E731
        torch.testing.assert_close(zeroth_order_gradient(loss, theta, u[row], 0.3), found[row])
    others = torch.randn(8, d, generator=generator(0, "others"), dtype=torch.float64)
    iterates = torch.cat(
        [torch.outer(torch.arange(9.0).double(), exact), 0.1 * others[:3]]
    )  # a path and a little noise
    span = principal_span(iterates, k)
    torch.testing.assert_close(span.T @ span, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(
        span @ (span.T @ exact), exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item()
    )
    projected = found @ span @ span.T
    for estimate in (found, projected):
        errors = (estimate.mean(0) - exact) / (estimate.std(0) / n**0.5)
        assert errors.abs().max() < 4.5
    ratio = projected.var(0).sum() / found.var(0).sum()
    assert ratio.item() == pytest.approx((k + 1) / (d + 1), rel=0.08)


@pytest.fixture(scope="module")
def pair():
    """A network with classes and itself in 3 bits."""
    torch.manual_seed(0)
    model = Denoiser(MLP(event_shape=(2,), num_classes=3, width=32, blocks=1), VPrediction(), VP())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.event_shape, model.record = (2,), {"num_classes": 3}
    model = model.eval().requires_grad_(False)
    return model, quantise(model, NODE, calibration_set(model, "random", n=32), bits=3)


@pytest.mark.parametrize("tune", ["scales", "classes"])
def test_a_quantised_network_is_improved_without_gradients(pair, tune):
    model, small = pair
    before = {key: value.clone() for key, value in small.state_dict().items()}
    data = torch.randn(64, 2, generator=generator(1, "x"))
    cond = torch.full((64,), 1)
    with torch.inference_mode():
        found = finetune(small, data, cond, teacher=model, tune=tune, steps=100, lr=2e-2, mu=5e-2)
    assert found.after < 0.95 * found.before
    again = finetune(found.model, data, cond, teacher=model, tune=tune, steps=0)
    assert again.before == pytest.approx(found.after), "what is returned has the loss that is stated"
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    changed = {key for key, value in found.model.state_dict().items() if not torch.equal(value, before[key])}
    if tune == "scales":
        assert all(key.endswith("weight_scale") for key in changed)
        assert not any("class_embedding" in key for key in changed)
    else:
        assert {key.split(".")[-2] for key in changed} == {"class_embedding"}
        rows = [
            (found.model.state_dict()[key] != before[key]).flatten(1 if before[key].ndim > 1 else 0)
            for key in changed
        ]
        touched = [row.any(1) if row.ndim > 1 else row for row in rows]
        assert all(one.nonzero().flatten().tolist() == [1] for one in touched), (
            "labels that no sample has stay"
        )


def test_a_result_that_is_no_better_is_not_kept(pair):
    model, small = pair
    data = torch.randn(64, 2, generator=generator(1, "x"))
    found = finetune(small, data, teacher=model, steps=3, lr=10.0)
    assert found.after == found.before
    state = small.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.model.state_dict().items())


def test_what_cannot_be_tuned_is_said(pair):
    model, small = pair
    data = torch.zeros(2, 2)
    for arguments, said in (
        ((model, data), "MLP is not quantised"),
        ((small, data[:0]), "holds no sample"),
    ):
        with pytest.raises(ValueError, match=said):
            finetune(*arguments)
    with pytest.raises(ValueError, match=r"times=.* must rise"):
        finetune(small, data, times=(0.5, 0.5))
    with pytest.raises(ValueError, match="tune=classes needs"):
        finetune(small, data, tune="classes")
