r"""Minibatch optimal transport: which noise of a batch goes to which sample.

Flow matching with noise independent of the data gives curved paths, because pairs ``(x_0, z)`` cross. Pairing the
``B`` samples of a batch with its ``B`` noises at the least cost,

.. math:: \min_\pi \sum_i |x_i - z_{\pi(i)}|^2 \quad \text{over all permutations } \pi,

straightens them. It is the optimal transport between the two empirical measures, and an assignment problem, so its
solution is a permutation: every sample and every noise is used once, and the marginals stay as they are. Drawing pairs
from the transport plan with replacement, as the package torchcfm does, leaves a share of ``1 / e`` of the batch unused
in expectation for large batches, and another share twice.

References: A. Tong, K. Fatras, N. Malkin, G. Huguet, Y. Zhang, J. Rector-Brooks, G. Wolf, Y. Bengio, "Improving and
Generalizing Flow-Based Generative Models with Minibatch Optimal Transport", 2023, https://arxiv.org/abs/2302.00482;
A.-A. Pooladian, H. Ben-Hamu, C. Domingo-Enrich, B. Amos, Y. Lipman, R. T. Q. Chen, "Multisample Flow Matching:
Straightening Flows with Minibatch Couplings", 2023, https://arxiv.org/abs/2304.14772.
"""

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from scoreexp.core.batch import Batch, are_labels
from scoreexp.core.checked import checked
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective


class OptimalTransportCoupling(nn.Module, Objective):
    """``objective`` on noise that is permuted within the batch to the least sum of ``|x_0 - z|^2``.

    Where there are labels, noise is exchanged within a class only: for each class it stays standard normal. With several
    devices each one pairs its own share of the batch.

    The noise is no longer independent of the data, so ``x0_hat`` gives the velocity of a flow from noise to data and not
    the posterior mean of independent noise: sample by the deterministic samplers (ddim, heun). Tweedie's formula does not
    hold, and with it stochastic samplers and restorers.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(1), torch.ones(1)), se.schedules.FlowMatching())
    >>> objective = OptimalTransportCoupling(se.objectives.DenoisingScoreMatching(se.objectives.FlowWeighting()))
    >>> objective(model, Batch(x=torch.randn(8, 1)), torch.full((8,), 0.5), torch.randn(8, 1)).shape
    torch.Size([8])

    Args:
        objective: any objective of Gaussian noise; what it learns is trained.

    Raises:
        ValueError: on a call, for a batch of one, which has nothing to pair, a batch without clean data or with noise of
            another shape, or one conditioned on images, of which no two are alike.
    """

    @checked
    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def prepare(self, size: int, fetch: Callable[[Tensor], Batch]) -> None:
        self.objective.prepare(size, fetch)

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        return self.objective(model, batch, t, coupled_noise(batch, noise))


def coupled_noise(batch: Batch, noise: Tensor) -> Tensor:
    """``noise[B, *]`` in the order that pairs it with ``batch.x`` at the least cost, within each class.

    >>> coupled_noise(Batch(x=torch.tensor([[1.0], [5.0]])), torch.tensor([[0.3], [-0.2]])).flatten()
    tensor([-0.2000,  0.3000])

    Raises:
        ValueError: as for ``OptimalTransportCoupling``.
    """
    x_0, cond = batch.x, batch.cond
    if x_0 is None:
        raise ValueError("the batch has no clean data x: this objective needs a data set that gives them")
    if noise.shape != x_0.shape:
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} for data of shape {tuple(x_0.shape)}: draw as many"
        )
    if len(x_0) < 2:
        raise ValueError(
            f"a batch of {len(x_0)} has nothing to pair by optimal transport: set data.batch_size to 2 or more for each "
            "device, or choose objective=flow_matching"
        )
    if cond is not None and not are_labels(cond):
        raise ValueError(
            "the batch is conditioned on images, and noise is exchanged within a class only: choose objective=flow_matching"
        )
    cost = torch.cdist(x_0.flatten(1).double(), noise.flatten(1).double()).square().cpu()
    order = torch.empty(len(x_0), dtype=torch.long)
    labels = torch.zeros(len(x_0)) if cond is None else cond.cpu()
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        reduced = cost[members[:, None], members]
        reduced = reduced - reduced.amin(1, keepdim=True)  # the same pairs in a half to a third of the time
        rows, columns = linear_sum_assignment((reduced - reduced.amin(0)).numpy())
        order[members[rows]] = members[columns]
    return noise[order.to(noise.device)]
