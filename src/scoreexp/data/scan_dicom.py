"""DICOM files: pydicom reads and writes them; of its data set only what describes the pixels is touched.

Reference: DICOM PS3.3, Information Object Definitions, C.7.6 (image pixel), https://www.dicomstandard.org
"""

import copy
import hashlib
import io
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scoreexp.data.image_file import ImageError
from scoreexp.data.scan import Scan, require_size

_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_NEW_UID = "scoreexp denoised"


def read_dicom(path: Path) -> Scan:
    """The frames of an image ``[N, H, W, C]`` as stored, with its rescaling to Hounsfield or other units.

    A file that is written is a derived image: its SOP instance has a UID of its own, made from that of the original and
    the new values, ``ImageType`` begins with DERIVED, and compressed pixels are stored uncompressed, colours as RGB.
    Everything else is as it was. Errors quote no value of the data set, which may tell of a patient.

    Raises:
        ImageError: pydicom is not installed or cannot read or decode the file, or it holds no gray or RGB image.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise ImageError(f"{path} needs the package pydicom: pip install 'scoreexp[medical]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            ds = pydicom.dcmread(path)
            syntax = ds.file_meta.TransferSyntaxUID
            colours, samples = str(ds.PhotometricInterpretation), int(ds.SamplesPerPixel)
            rows, columns, frames = int(ds.Rows), int(ds.Columns), int(ds.get("NumberOfFrames") or 1)
            allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
            odd = int(ds.get("HighBit", stored - 1)) != stored - 1
            has_pixels = "PixelData" in ds
        except InvalidDicomError:
            raise ImageError(f"{path} is no DICOM file: its first 132 bytes do not say DICM") from None
        except Exception:  # of any kind on damaged data; their text may quote the data set
            raise ImageError(
                f"{path} is a damaged DICOM file or holds no image: get a whole copy of it"
            ) from None
        is_gray = samples == 1 and colours in ("MONOCHROME1", "MONOCHROME2")
        if not has_pixels or allocated not in (8, 16, 32) or odd or not (is_gray or samples == 3):
            raise ImageError(
                f"{path} holds pixels of kind {colours} with {allocated} bits; MONOCHROME1, MONOCHROME2, RGB in integers of "
                "8, 16 or 32 bits are supported: convert it first"
            )
        require_size(path, (frames, rows, columns, samples))
        try:
            values = ds.pixel_array
        except Exception:
            is_packed = syntax not in _UNCOMPRESSED
            why = (
                f"is compressed with {syntax.name}, which nothing installed here decodes"
                if is_packed
                else "is cut short"
            )
            remedy = (
                "decompress it (gdcmconv --raw) or install pylibjpeg[all]"
                if is_packed
                else "get a whole copy of it"
            )
            raise ImageError(f"{path} {why}: {remedy}") from None
    values = values.reshape(frames, rows, columns, samples)
    slope, intercept = float(ds.get("RescaleSlope") or 1), float(ds.get("RescaleIntercept") or 0)
    unit = str(ds.get("RescaleType") or ("HU" if ds.get("Modality") == "CT" else ""))
    padding = _padding(ds) if is_gray else None

    def encode(made: np.ndarray) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _encoded(ds, made, values)

    def measured(page: np.ndarray) -> np.ndarray:
        assert padding is not None
        return (page < padding[0]) | (page > padding[1])

    return Scan(path, values, encode, None if padding is None else measured, slope, intercept, unit)


def span_of(scan: Scan) -> tuple[float, float] | None:
    """Of colours the whole range; None for gray values, which have that of the file."""
    if scan.values.shape[-1] == 1:
        return None
    return 0.0, float(np.iinfo(scan.values.dtype).max)


def _padding(ds: Any) -> tuple[int, int] | None:
    """The least and the greatest value of padding, or None."""
    if ds.get("PixelPaddingValue") is None:
        return None
    ends = [int(ds.PixelPaddingValue), int(ds.get("PixelPaddingRangeLimit", ds.PixelPaddingValue))]
    return min(ends), max(ends)


def _encoded(ds: Any, made: np.ndarray, before: np.ndarray) -> bytes:
    """The file with other values ``[N, H, W, C]``; the data set is left as it was."""
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    derived = copy.deepcopy(ds)
    syntax = ds.file_meta.TransferSyntaxUID
    is_plain = syntax in _UNCOMPRESSED
    if not is_plain:
        derived.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    order: Literal["<", ">"] = ">" if is_plain and not syntax.is_little_endian else "<"
    allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    pixels = np.ascontiguousarray(made, made.dtype.newbyteorder(order))
    if is_plain and stored < allocated and made.dtype.kind == "u" and made.shape[-1] == 1:
        raw = np.frombuffer(ds.PixelData, pixels.dtype, made.size).reshape(made.shape)
        pixels = pixels | (raw & ~pixels.dtype.type(2**stored - 1)).astype(
            pixels.dtype
        )  # overlays lie in the bits above
        pixels = pixels.astype(made.dtype.newbyteorder(order))
    data = pixels.tobytes()
    derived.PixelData = data + b"\0" * (len(data) % 2)
    derived["PixelData"].VR = "OB" if allocated == 8 and not syntax.is_implicit_VR else "OW"
    derived["PixelData"].is_undefined_length = False
    if made.shape[-1] == 3:
        derived.PhotometricInterpretation, derived.PlanarConfiguration = "RGB", 0
    for name, value in (("SmallestImagePixelValue", made.min()), ("LargestImagePixelValue", made.max())):
        if name in derived:
            setattr(derived, name, int(value))
    kind = ds.get("ImageType")
    kind = [kind] if isinstance(kind, str) else list(kind or ["", "PRIMARY"])
    derived.ImageType = ["DERIVED", *kind[1:]]
    derived.DerivationDescription = "denoised"
    uid = generate_uid(
        entropy_srcs=[str(ds.get("SOPInstanceUID")), _NEW_UID, hashlib.sha256(data).hexdigest()]
    )
    derived.SOPInstanceUID = derived.file_meta.MediaStorageSOPInstanceUID = uid
    file = io.BytesIO()
    derived.save_as(file)
    return file.getvalue()
