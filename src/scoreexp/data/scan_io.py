"""Files of measured values to pages and back: DICOM, NIfTI, arrays of numpy, the pages of a TIFF file.

One reader decides everything about a file: pydicom for DICOM, tifffile for TIFF, ``scan_nifti`` for NIfTI, numpy for
its arrays.
"""

from collections.abc import Sequence
from pathlib import Path

from scoreexp.data import scan_arrays, scan_dicom
from scoreexp.data.image_file import ImageError
from scoreexp.data.scan import Scan
from scoreexp.data.scan_nifti import read_nifti
from scoreexp.data.suffixes import READABLE, SCANS, scan_format


def read_scan(
    path: str | Path, *, window: Sequence[float] | None = None, white_level: int | None = None
) -> Scan:
    """The pages of a file.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/counts.npy", np.arange(24, dtype=np.int32).reshape(2, 3, 4))
    ...     scan = read_scan(f"{folder}/counts.npy")
    >>> scan.values.shape, scan.low, scan.high
    ((2, 3, 4, 1), 0.0, 23.0)

    Args:
        path: the file; its suffix is one of ``SCANS`` or TIFF's, or its content is DICOM's.
        window: two values in the unit of the file that become 0 and 1; values outside are kept as they were. None: the
            extremes of the file, but of numpy's and TIFF's unsigned integers the whole range, and of floating point values
            that are in [0, 1] apart from noise 0 and 1.
        white_level: of numpy's and TIFF's values of 16 bits, the one that becomes 1.

    Raises:
        ImageError: the file is missing, of another kind, damaged, or holds nothing to denoise.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path} is no file: give the name of a scan")
    kind = "tiff" if path.suffix.lower() in (".tif", ".tiff") else scan_format(path)
    try:
        if kind == "dicom":
            scan = scan_dicom.read_dicom(path)
            return scan.spanned(scan_dicom.span_of(scan), window)
        if kind == "nifti":
            return read_nifti(path).spanned(None, window)
        if kind in ("npy", "tiff"):
            scan = scan_arrays.read_npy(path) if kind == "npy" else scan_arrays.read_pages(path)
            return scan.spanned(scan_arrays.span_of(scan, white_level), window)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path} needs more memory than there is: crop it first") from None
    except Exception as error:  # decoders raise exceptions of any kind on damaged data
        reason = type(error).__name__ if kind == "dicom" else " ".join(str(error).split())
        raise ImageError(f"{path} is damaged or incomplete ({reason}); get a whole copy of it") from error
    raise ImageError(
        f"{path} has no pages; {', '.join(SCANS)} and TIFF have some, images ({', '.join(READABLE)}) are denoised whole"
    )
