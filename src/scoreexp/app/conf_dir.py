"""Where the Hydra configuration tree lies: at the root of a checkout, inside the package when installed."""

from pathlib import Path

from scoreexp.core.errors import UserError


def conf_dir() -> Path:
    """The folder that holds ``train.yaml`` and the configuration groups.

    Raises:
        UserError: if the installation has none; names the places where it was looked for.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "conf", package.parent.parent / "conf"]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    places = " and ".join(map(str, candidates))
    raise UserError(
        f"the configuration folder conf/ was not found, looked for at {places}; reinstall scoreexp"
    )
