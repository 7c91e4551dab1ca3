"""Small networks in files of their own: tensors and plain data, whole or not at all."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from scoreexp.core.errors import UserError
from scoreexp.system.atomic import atomic_write
from scoreexp.system.untrusted import require_stored

Network = TypeVar("Network", bound=nn.Module)


def write_network(path: str | Path, kind: str, network: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Write a network, whole or not at all.

    Args:
        path: of the file.
        kind: names it in the file.
        network: whose weights they are.
        sizes: plain data from which it is built.
    """
    with atomic_write(Path(path)) as temporary:
        torch.save({kind: dict(sizes), "state_dict": network.state_dict()}, temporary)


def read_network(
    path: str | Path, kind: str, build: Callable[..., Network], what: str, remedy: str
) -> Network:
    """Read what ``write_network`` wrote, for evaluation; tensors and plain data only are read.

    >>> import tempfile
    >>> layer = nn.Linear(2, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_network(f"{folder}/a.pt", "layer", layer, {"in_features": 2, "out_features": 3})
    ...     read = read_network(f"{folder}/a.pt", "layer", nn.Linear, "layer", "write one")
    >>> torch.equal(read.weight, layer.weight)
    True

    Args:
        path: of the file.
        kind: as it was written.
        build: makes the network of its sizes.
        what: it is, for the error.
        remedy: for the error.

    Raises:
        UserError: the file is missing, or holds another thing.
    """
    try:
        require_stored(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
        network = build(**content[kind])
        network.load_state_dict(content["state_dict"])
    except (OSError, zipfile.BadZipFile, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is no {what} ({type(error).__name__}): {remedy}") from error
    return network.eval().requires_grad_(False)
