"""Scans: units, ranges and all that is not a measured value survive the way through [0, 1]."""

import gzip
import struct
import sys

import numpy as np
import pytest
import tifffile

from scoreexp.core.errors import UserError
from scoreexp.data.scan_io import read_scan

SHAPE = (3, 4, 5)  # slices, rows, columns


def nifti(values, *, order="<", version=1, slope=2.0, intercept=-10.0, extension=b"\1\0\0\0note", **fields):
    """A file of values ``[..., z, y, x]``, with ``fields`` of the header replaced."""
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "u2": 512}
    sides = [values.ndim, *values.shape[::-1], *[1] * (7 - values.ndim)]
    size = 348 if version == 1 else 540
    start = size + len(extension)
    head = bytearray(range(256)) * 3
    head = bytearray(head[:size])
    made = {
        "size": size,
        "sides": sides,
        "kind": codes[values.dtype.str[1:]],
        "start": start,
        "scaling": (slope, intercept),
    }
    made |= {"magic": b"n+1\0" if version == 1 else b"n+2\0\r\n\x1a\n"} | fields
    at = {"size": 0, "magic": 344, "sides": 40, "kind": 70, "start": 108, "scaling": 112}
    types = {"size": "i", "sides": "8h", "kind": "h", "start": "f", "scaling": "2f"}
    if version == 2:
        at = {"size": 0, "magic": 4, "sides": 16, "kind": 12, "start": 168, "scaling": 176}
        types = {"size": "i", "sides": "8q", "kind": "h", "start": "q", "scaling": "2d"}
    for name, value in made.items():
        packed = (
            value if name == "magic" else struct.pack(order + types[name], *np.atleast_1d(value).tolist())
        )
        head[at[name] : at[name] + len(packed)] = packed
    return bytes(head) + extension + values.astype(values.dtype.newbyteorder(order)).tobytes()


def counts(dtype=np.int16, low=-1000, high=1000, shape=SHAPE):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize(
    ("order", "version", "suffix"),
    [("<", 1, ".nii.gz"), (">", 1, ".nii"), ("<", 2, ".nii"), (">", 2, ".nii.gz")],
)
def test_nifti_keeps_header_extensions_scaling_and_values(tmp_path, order, version, suffix):
    values = counts()
    raw = nifti(values, order=order, version=version) + b"after"
    path = tmp_path / f"head{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.values[..., 0], values)
    assert scan.units(scan.low, scan.high) == (2 * values.min() - 10, 2 * values.max() - 10)
    target = tmp_path / "new" / f"head{suffix}"
    scan.write(target, np.stack([scan.page(k) for k in range(3)]))
    written = target.read_bytes()
    assert (gzip.decompress(written) if suffix.endswith("gz") else written) == raw
    half = np.full((3, 4, 5, 1), 0.5, np.float32)
    scan.write(target, half, overwrite=True)
    np.testing.assert_array_equal(read_changed(target), np.rint((values.min() + float(values.max())) / 2))


def read_changed(path):
    from scoreexp.data.scan_nifti import read_nifti

    return read_nifti(path).values


def test_nifti_is_what_nibabel_reads(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = counts(shape=(2, *SHAPE))
    image = nibabel.Nifti1Image(
        np.moveaxis(values, (0, 1, 2, 3), (3, 2, 1, 0)), np.diag([2.0, 3.0, 4.0, 1.0])
    )
    image.header.set_slope_inter(0.5, 3.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.values[..., 0], values.reshape(-1, 4, 5))
    made = np.random.default_rng(1).random(scan.values.shape).astype(np.float32)
    scan.write(tmp_path / "b.nii.gz", made)
    before, after = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "b.nii.gz")
    assert after.header == before.header
    np.testing.assert_array_equal(after.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    expected = 0.5 * scan.stored(made)[..., 0].reshape(2, *SHAPE) + 3
    np.testing.assert_allclose(after.get_fdata().T, expected)


def test_nifti_that_cannot_be_read_as_it_is_meant_is_refused_in_a_line(tmp_path):
    values = counts()
    bad = {
        "four bytes are not": b"\0" * 400,
        r"\.hdr and \.img": nifti(values, magic=b"ni1\0"),
        "type 1792": nifti(values, kind=1792),
        "vectors of 3": nifti(np.zeros((3, 1, 2, 4, 5), np.int16)),
        "cut short": nifti(values)[:-2],
        "has the sides": nifti(values, sides=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
        "start at byte": nifti(values, start=-8.0),
    }
    for text, data in bad.items():
        (tmp_path / "bad.nii").write_bytes(data)
        with pytest.raises(UserError, match=text) as error:
            read_scan(tmp_path / "bad.nii")
        assert "\n" not in str(error.value)
    (tmp_path / "bad.nii.gz").write_bytes(gzip.compress(nifti(values))[:-20])
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_scan(tmp_path / "bad.nii.gz")


def test_values_that_are_no_number_are_kept_and_filled_for_the_denoiser(tmp_path):
    values = np.float32([[[1, np.nan, 3], [np.inf, 5, 6]]])
    (tmp_path / "a.nii").write_bytes(nifti(values, slope=0.0))
    scan = read_scan(tmp_path / "a.nii")
    assert (scan.low, scan.high) == (1, 6)
    assert np.isfinite(scan.page(0)).all()
    made = scan.stored(np.full((1, 2, 3, 1), 7, np.float32))[..., 0]
    np.testing.assert_array_equal(made, np.float32([[[6, np.nan, 6], [np.inf, 6, 6]]]))
    np.testing.assert_array_equal(scan.stored(np.full((1, 2, 3, 1), np.nan, np.float32))[..., 0], values)


def test_a_window_is_in_the_unit_of_the_file_and_values_outside_are_kept(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(np.int16([[[0, 5, 10, 20]]]), slope=2.0, intercept=-10.0))
    scan = read_scan(tmp_path / "a.nii", window=[-1, 11])  # stored values 5 to 10
    np.testing.assert_array_equal(scan.page(0)[..., 0], [[0, 0, 1, 1]])
    np.testing.assert_array_equal(scan.stored(np.ones((1, 1, 4, 1), np.float32))[..., 0], [[[0, 10, 10, 20]]])
    for window in ([500, 600], [3, 1], [1]):
        with pytest.raises(UserError, match="window="):
            read_scan(tmp_path / "a.nii", window=window)


def test_arrays_keep_shape_type_and_values(tmp_path):
    for values in (
        counts(),
        counts(np.uint8, 0, 256),
        counts(np.int32)[0],
        counts(np.uint16, 0, 60000, (6, 5, 3)),
    ):
        np.save(tmp_path / "a.npy", values)
        scan = read_scan(tmp_path / "a.npy")
        scan.write(tmp_path / "b.npy", np.stack([scan.page(k) for k in range(len(scan))]), overwrite=True)
        made = np.load(tmp_path / "b.npy")
        assert made.dtype == values.dtype
        np.testing.assert_array_equal(made, values)
    observed = 0.5 + np.random.default_rng(0).standard_normal((4, 5))
    np.save(tmp_path / "a.npy", observed)
    assert (read_scan(tmp_path / "a.npy").low, read_scan(tmp_path / "a.npy").high) == (0, 1), (
        "in [0, 1] apart from noise"
    )
    for bad in (
        np.array(["a"]),
        np.zeros((2, 2), complex),
        np.zeros((2, 3, 4, 5)),
        np.ones((3, 3), np.int64) * 7,
    ):
        np.save(tmp_path / "bad.npy", bad)
        with pytest.raises(UserError):
            read_scan(tmp_path / "bad.npy")


@pytest.mark.parametrize("imagej", [True, False])
def test_pages_of_tiff_keep_their_description_and_resolution(tmp_path, imagej):
    values = counts(np.uint16, 0, 4096)
    options = (
        {"imagej": True, "metadata": {"axes": "ZYX"}}
        if imagej
        else {"description": "stack of <x>", "metadata": None}
    )
    tifffile.imwrite(tmp_path / "a.tif", values, resolution=(30, 20), photometric="minisblack", **options)
    scan = read_scan(tmp_path / "a.tif", white_level=4095)
    assert scan.high == 4095
    scan.write(tmp_path / "b.tif", np.stack([scan.page(k) for k in range(3)]))
    with tifffile.TiffFile(tmp_path / "a.tif") as before, tifffile.TiffFile(tmp_path / "b.tif") as after:
        np.testing.assert_array_equal(after.asarray(), values)
        assert len(after.pages) == 3
        assert after.is_imagej == before.is_imagej
        assert after.pages[0].description == before.pages[0].description
        assert after.pages[0].tags[282].value == before.pages[0].tags[282].value


def test_pages_that_differ_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for side in (8, 9):
            writer.write(np.zeros((side, 8), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="pages of 2 kinds"):
        read_scan(tmp_path / "a.tif")


# ---------------------------------------------------------------------------------------------------- DICOM


def dicom(path, values, **elements):
    """A CT file of 12 bits with padding, an overlay in the bits above, and a patient."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset

    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = elements.pop("syntax", "1.2.840.10008.1.2.1")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.PatientName, ds.PatientID, ds.Modality = "Secret^Name", "4711", "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.add_new((0x0009, 0x0010), "LO", "PRIVATE")
    ds.add_new((0x0009, 0x1001), "OB", b"\1\2\3\4")
    samples = 3 if values.shape[-1] == 3 else 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = samples, "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.NumberOfFrames, ds.Rows, ds.Columns = len(values), *values.shape[1:3]
    ds.BitsAllocated = 8 * values.dtype.itemsize
    ds.BitsStored = elements.pop("bits", ds.BitsAllocated)
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(values.dtype.kind == "i")
    if values.dtype.itemsize > 1:
        ds.RescaleSlope, ds.RescaleIntercept = "0.5", "-100"
    for name, value in elements.items():
        setattr(ds, name, value)
    order = ">" if ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2" else "<"
    ds.PixelData = elements.get("PixelData", values.astype(values.dtype.newbyteorder(order)).tobytes())
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)
    return pydicom.dcmread(path)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"])
def test_dicom_keeps_all_but_the_measured_values(tmp_path, syntax):
    values = counts(np.uint16, 100, 4000, (2, 4, 6))
    values[:, 0] = 7  # padding
    overlay = (1 << 13) * (np.arange(48).reshape(2, 4, 6) % 2).astype(np.uint16)
    before = dicom(tmp_path / "a.dcm", values + overlay, syntax=syntax, bits=12, PixelPaddingValue=7)
    scan = read_scan(tmp_path / "a.dcm", window=[-50, 1900])  # HU; stored 100 to 4000
    np.testing.assert_array_equal(scan.values[..., 0], values)
    assert (scan.unit, scan.units(4000.0)) == ("HU", (1900.0,))
    assert scan.page(0).min() >= 0
    scan.write(tmp_path / "same.dcm", np.stack([scan.page(k) for k in range(2)]))
    scan.write(tmp_path / "b.dcm", np.ones((2, 4, 6, 1), np.float32))
    import pydicom

    same, after = pydicom.dcmread(tmp_path / "same.dcm"), pydicom.dcmread(tmp_path / "b.dcm")
    assert same.PixelData == before.PixelData, "values, padding and overlay"
    np.testing.assert_array_equal(after.pixel_array[:, 1:], 4000)
    np.testing.assert_array_equal(after.pixel_array[:, 0], 7)
    assert after.file_meta.TransferSyntaxUID == syntax
    changed = {element.keyword for element in after if element != before.get(element.tag)}
    assert changed == {"PixelData", "SOPInstanceUID", "ImageType", "DerivationDescription"}
    assert list(after.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID
    scan.write(tmp_path / "c.dcm", np.ones((2, 4, 6, 1), np.float32))
    assert pydicom.dcmread(tmp_path / "c.dcm").SOPInstanceUID == after.SOPInstanceUID != same.SOPInstanceUID


def test_signed_and_colour_dicom_and_one_without_a_suffix(tmp_path):
    values = counts(np.int16, -900, 900, (1, 3, 5))  # 15 values: an odd number of bytes of 8 bits
    dicom(tmp_path / "IM0001", values)
    scan = read_scan(tmp_path / "IM0001")
    scan.write(tmp_path / "IM0002", scan.page(0)[None])
    np.testing.assert_array_equal(read_scan(tmp_path / "IM0002").values[0, ..., 0], values[0])
    colours = counts(np.uint8, 0, 256, (1, 3, 5, 3))
    dicom(tmp_path / "c.dcm", colours)
    scan = read_scan(tmp_path / "c.dcm")
    assert (scan.low, scan.high) == (0, 255)
    scan.write(tmp_path / "d.dcm", scan.page(0)[None])
    np.testing.assert_array_equal(read_scan(tmp_path / "d.dcm").values, colours)


def test_dicom_that_cannot_be_read_is_refused_without_naming_the_patient(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    values = counts(np.uint16, 0, 4000, (1, 4, 6))
    encapsulated = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7"])
    bad = {
        "JPEG-LS Lossless.*decodes: decompress": {
            "syntax": "1.2.840.10008.1.2.4.80",
            "PixelData": encapsulated,
        },
        "PALETTE COLOR": {"PhotometricInterpretation": "PALETTE COLOR"},
        "cut short": {"PixelData": b"\0\0"},
        "damaged DICOM": {"Rows": None},
    }
    for text, elements in bad.items():
        dicom(tmp_path / "bad.dcm", values, **elements)
        with pytest.raises(UserError, match=text) as error:
            read_scan(tmp_path / "bad.dcm")
        assert not any(word in str(error.value) for word in ("\n", "Secret", "4711"))
    (tmp_path / "none.dcm").write_bytes(b"\0" * 200)
    with pytest.raises(UserError, match="no DICOM file"):
        read_scan(tmp_path / "none.dcm")


def test_without_pydicom_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(UserError, match=r"pip install 'scoreexp\[medical\]'"):
        read_scan(tmp_path / "a.dcm")
