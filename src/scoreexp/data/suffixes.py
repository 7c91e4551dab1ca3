"""Which image files can be read and written, by their names."""

from pathlib import Path
from typing import Literal

READABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
WRITABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
SCANS = (".dcm", ".nii", ".nii.gz", ".npy")

ScanFormat = Literal["dicom", "nifti", "npy", "tiff"]

_FORMATS: dict[str, ScanFormat] = {".dcm": "dicom", ".nii": "nifti", ".nii.gz": "nifti", ".npy": "npy"}


def suffix_of(path: Path) -> str:
    """The suffix in lower case, ``.nii.gz`` in whole.

    >>> suffix_of(Path("head.NII.gz")), suffix_of(Path("a.b.png"))
    ('.nii.gz', '.png')
    """
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def named_after(path: Path, more: str, suffix: str | None = None) -> Path:
    """The path with ``more`` put before its suffix, and with another suffix where one is given.

    >>> named_after(Path("head.nii.gz"), "_denoised").name, named_after(Path("head.nii.gz"), "", ".json").name
    ('head_denoised.nii.gz', 'head.json')
    """
    own = path.name[len(path.name) - len(suffix_of(path)) :]
    return path.with_name(f"{path.name.removesuffix(own)}{more}{own if suffix is None else suffix}")


def scan_format(path: Path) -> ScanFormat | None:
    """The format of a file of measured values, None for an image; DICOM files are known by their content too.

    >>> scan_format(Path("head.nii.gz")), scan_format(Path("photo.png"))
    ('nifti', None)
    """
    if (known := _FORMATS.get(suffix_of(path))) is not None:
        return known
    if suffix_of(path) in READABLE or not path.is_file():
        return None
    with path.open("rb") as file:
        return "dicom" if file.read(132)[128:] == b"DICM" else None
