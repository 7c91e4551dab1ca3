"""Which device a command runs on."""

import torch

from scoreexp.core.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` is a CUDA device if there is one, then Apple's GPU, then the CPU; anything else is taken at its word.

    >>> choose_device("cpu")
    device(type='cpu')

    Raises:
        UserError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here: use device=auto or device=cpu") from error
    return device
