"""U-Nets of other packages as networks ``F(x[B, 3, 32, 32], c_noise[B], cond)``, about 1 and 9 M parameters each.

diffusers' has 35 M too: the network of DDPM on CIFAR-10.

They live in an environment of their own, beside scoreexp: ``pip install --no-deps azula==0.11.1
denoising-diffusion-pytorch==2.3.4 diffusers==0.42.1 deepinv==0.5.0 einops`` and what diffusers imports of
huggingface_hub. Modules that the U-Nets themselves never call (torchvision, accelerate, ...) need not be there: an
import of an absent one gives an empty stand-in.

Each network keeps the form and the defaults of its package and is scaled by width, with one exception: dropout is 0,
since no run here sees a photograph twice. ``c_noise = log(sigma / alpha) / 4`` is handed on in the range that the
package's own embedding is made for: azula and deepinv have one of the logarithm, the two others one of times in
0..1000, onto which -2.5..1.5 is mapped.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor, nn

ABSENT = ("torchvision", "accelerate", "ema_pytorch", "h5py")


class _StandIn(ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns:
    """Finds what no other finder has found: it comes last on ``sys.meta_path``."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in ABSENT else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Peer(nn.Module):
    def __init__(self, network: nn.Module, evaluate: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.evaluate = network, evaluate

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.evaluate(self.network, x, c_noise)


def _thousand(c_noise: Tensor) -> Tensor:
    return (c_noise + 2.5) * 250


def azula(size: str) -> nn.Module:
    """azula's modulated U-Net: adaptive layer norm, no attention, 3 blocks per level by default."""
    from azula.nn.layers import SineEncoding
    from azula.nn.unet import UNet

    widths, blocks = {"1m": ((24, 48, 80), (2, 2, 2)), "9m": ((64, 128, 208), (3, 3, 3))}[size]
    embedding = SineEncoding(64, omega=1e2)
    network = UNet(3, 3, hid_channels=widths, hid_blocks=blocks, mod_features=64, identity_init=True)
    return _Peer(network, lambda net, x, c: net(x, embedding(4 * c)))


def ddpm_pytorch(size: str) -> nn.Module:
    """denoising-diffusion-pytorch's U-Net with linear attention at each level."""
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet

    width, multipliers = {"1m": (20, (1, 2, 4)), "9m": (32, (1, 2, 4, 8))}[size]
    return _Peer(Unet(width, dim_mults=multipliers), lambda net, x, c: net(x, _thousand(c)))


def diffusers(size: str) -> nn.Module:
    """diffusers' UNet2DModel with self-attention at 16 x 16."""
    from diffusers import UNet2DModel

    widths = {"1m": (32, 48, 64), "9m": (64, 128, 192), "35m": (128, 256, 256, 256)}[size]
    plain = len(widths) - 2  # levels below 16 x 16
    network = UNet2DModel(
        sample_size=32,
        layers_per_block=1 if size == "1m" else 2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * plain),
        up_block_types=(*["UpBlock2D"] * plain, "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16 if size == "1m" else 32,
    )
    return _Peer(network, lambda net, x, c: net(x, _thousand(c)).sample)


def deepinv(size: str) -> nn.Module:
    """deepinv's NCSN++, by its inner U-Net: the preconditioning is the benchmark's for all."""
    from deepinv.models import NCSNpp

    width, blocks, embedding = {"1m": (32, 1, 6), "9m": (64, 3, 4)}[size]
    network = NCSNpp(
        img_resolution=32,
        model_channels=width,
        num_blocks=blocks,
        channel_mult=(1, 1, 2) if size == "1m" else (1, 2, 2),
        channel_mult_emb=embedding,
        augment_dim=0,
        dropout=0.0,
        pretrained=None,
    )
    return _Peer(network, lambda net, x, c: net.forward_unet(x, c))


def azula_four(size: str) -> nn.Module:
    """azula's U-Net with four levels and few blocks where pixels are many: faster on CPU than its default shape."""
    from azula.nn.layers import SineEncoding
    from azula.nn.unet import UNet

    widths, blocks = {"1m": ((16, 32, 64, 96), (1, 2, 2, 1)), "9m": ((48, 96, 192, 256), (2, 2, 2, 1))}[size]
    embedding = SineEncoding(64, omega=1e2)
    network = UNet(3, 3, hid_channels=widths, hid_blocks=blocks, mod_features=64, identity_init=True)
    return _Peer(network, lambda net, x, c: net(x, embedding(4 * c)))


PEERS = {
    "azula": azula,
    "azula_four": azula_four,
    "ddpm_pytorch": ddpm_pytorch,
    "diffusers": diffusers,
    "deepinv": deepinv,
}


def build_peer(name: str, size: str) -> nn.Module:
    """The peer ``name`` of ``size`` 1m or 9m, for diffusers also 35m."""
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.meta_path.append(_StandIns())  # type: ignore[arg-type]
    return PEERS[name](size)
