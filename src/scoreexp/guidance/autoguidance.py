r"""Autoguidance: a model pushed away from a weaker version of itself.

.. math:: \hat x_0 = D_{\text{weak}}(x_t, c) + w\,(D(x_t, c) - D_{\text{weak}}(x_t, c)) .

Where both are wrong alike, the weaker one more so, their difference points away from the error. It needs no labels.

Reference: T. Karras, M. Aittala, T. Kynkäänniemi, J. Lehtinen, T. Aila, S. Laine, "Guiding a Diffusion Model with a Bad
Version of Itself", 2024, https://arxiv.org/abs/2406.02507.
"""

from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.denoisers.product import same_schedule
from scoreexp.guidance.base import finite


class Autoguidance(Wrapper):
    """The model pushed away from a weaker one: two evaluations per call, one where ``w`` is 0 or 1.

    A weaker model is an earlier checkpoint of the same run, or its ``weights=raw``.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model, weak = (OracleDenoiser(Gaussian(torch.ones(2), torch.full((2,), v)), VP()) for v in (0.1, 0.4))
    >>> Autoguidance(model, weak, weight=2.0)(torch.zeros(1, 2), torch.tensor([0.2]))
    tensor([[1.1122, 1.1122]])

    Args:
        model: the model.
        weak: the weaker one; moved to the device of ``model``.
        weight: ``w``, any finite number.

    Raises:
        UserError: the two differ in shape, classes, architecture or schedule.
        ValueError: the weight is not finite.
    """

    @checked
    def __init__(self, model: DenoiserBase, weak: DenoiserBase, weight: float = 2.0) -> None:
        super().__init__(model)
        if different := _differences(model, weak):
            raise UserError(
                f"autoguidance: the weaker model has another {' and '.join(different)}: give a checkpoint of the same run"
            )
        self.weak = weak.to(model.device) if isinstance(weak, nn.Module) else weak
        self.weight = finite(weight)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if self.weight in (0.0, 1.0):
            return (self.model if self.weight else self.weak)(x_t, t, cond)
        weak = self.weak(x_t, t, cond)
        return weak + self.weight * (self.model(x_t, t, cond) - weak)


def _differences(model: DenoiserBase, weak: DenoiserBase) -> list[str]:
    """What two models of one run would share and these do not."""
    mine, other = (one.record.get("config", {}) for one in (model, weak))
    checks = {
        "shape of samples": model.event_shape == weak.event_shape,
        "number of classes": model.record.get("num_classes") == weak.record.get("num_classes"),
        "network": mine.get("network") == other.get("network"),
        "preconditioning": mine.get("precond") == other.get("precond"),
        "schedule": same_schedule(model.schedule, weak.schedule),
    }
    return [name for name, same in checks.items() if not same]
