"""Downloads, checked by SHA-256; only ever called when ``download=true``."""

from collections.abc import Sequence
from pathlib import Path

from scoreexp.data.errors import DataError


def download(urls: Sequence[str], sha256: str, folder: Path, script: str | None = None) -> Path:
    """Fetch a file into ``folder`` from the first address that delivers it whole.

    A file of that name that is there already is left alone and returned.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "digits.gz").touch()
    ...     download(["https://example.org/digits.gz"], sha256="0" * 64, folder=Path(folder)).name
    'digits.gz'

    Args:
        urls: addresses of the same file, in order of preference; the file keeps the name at their end.
        sha256: checksum of the file.
        folder: where to put it; created if need be.
        script: module of the repository that makes the data set from a package, named where nothing is delivered.

    Raises:
        DataError: if no address delivers the file with that checksum.
    """
    import pooch  # slow to import, and needed only here

    name = urls[0].rsplit("/", 1)[-1]
    target = folder / name
    if target.exists():
        return target
    reasons = []
    for url in urls:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fetched = pooch.retrieve(
                url, known_hash=f"sha256:{sha256}", fname=name, path=folder, progressbar=False
            )
            return Path(fetched)
        except (OSError, ValueError) as error:  # network trouble; a wrong checksum
            reasons.append(f"{url}: {_in_words(error)}")
    packaged = f", or run python -m {script} {folder} in a clone of scoreexp" if script else ""
    raise DataError(
        f"could not download {name} ({'; '.join(reasons)}): fetch it by other means and put it into {folder} "
        f"(sha256 {sha256}){packaged}"
    )


def _in_words(error: Exception) -> str:
    said = " ".join(str(error).split())
    return "no connection" if "Max retries exceeded" in said else said[:120]
