"""Pictures from and to real files: nothing is lost, and what is not supported is refused in one line."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, JpegImagePlugin

from scoreexp.data.image_io import (
    READABLE,
    WRITABLE,
    ImageError,
    Picture,
    check_writable,
    few_bits,
    list_images,
    read_image,
    read_kind,
    write_image,
)

HEIGHT, WIDTH = 13, 21


def values(channels, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), dtype, endpoint=True
    )


def pillow(array):
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def png16(array, filters=(0,), extra=b""):
    """A 16-bit PNG file whose rows use the given filters in turn (0 none, 1 left, 2 up)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    step = 2 * array.shape[2]
    rows = array.astype(">u2").view(np.uint8).reshape(HEIGHT, -1)
    data = b""
    for i, row in enumerate(rows):
        kind = filters[i % len(filters)]
        left = np.concatenate([np.zeros(step, np.uint8), row[:-step]])
        up = rows[i - 1] if i else np.zeros_like(row)
        data += bytes([kind]) + (row - [0 * row, left, up][kind]).tobytes()
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]], 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def joined(picture):
    """All channels as they are in the file, for comparison with the array that was written."""
    parts = [picture.pixels] + ([] if picture.alpha is None else [picture.alpha[..., None]])
    return np.concatenate(parts, axis=2)


def assert_holds(picture, array, depth):
    scale = {8: 255, 16: 65535, 32: 1}[depth]
    assert picture.bit_depth == depth
    assert picture.pixels.dtype == np.float32
    assert (picture.alpha is None) == (array.shape[2] in (1, 3))
    assert np.array_equal(np.round(joined(picture) * scale).astype(array.dtype), array)


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(suffix, channels) for suffix in (".png", ".tif") for channels in (1, 2, 3, 4)]
    + [(".webp", 3), (".webp", 4), (".bmp", 1), (".bmp", 3)],
)
def test_reads_8_bits(tmp_path, suffix, channels):
    array = values(channels)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    pillow(array).save(tmp_path / f"a{suffix}", **options)
    assert_holds(read_image(tmp_path / f"a{suffix}"), array, 8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("filters", [(0,), (0, 1, 2)])
def test_reads_all_bits_of_16_bit_png(tmp_path, channels, filters):
    array = values(channels, np.uint16)
    (tmp_path / "a.png").write_bytes(png16(array, filters))
    assert_holds(read_image(tmp_path / "a.png"), array, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_16_bit_png(tmp_path, channels):
    array = values(channels, np.uint16)
    key = array[4, 5].astype(">u2").tobytes()
    chunk = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    (tmp_path / "a.png").write_bytes(png16(array, extra=chunk))
    picture = read_image(tmp_path / "a.png")
    assert picture.alpha[4, 5] == 0
    assert np.array_equal(picture.alpha == 0, (array == array[4, 5]).all(-1))
    assert np.array_equal(np.round(picture.pixels * 65535).astype(int), array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_reads_16_bit_tiff(tmp_path, channels, compression, byteorder):
    array = values(channels, np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif",
        array if channels > 1 else array[..., 0],
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression=compression,
        byteorder=byteorder,
    )
    assert_holds(read_image(tmp_path / "a.tif"), array, 16)


def test_reads_tiff_with_separate_planes_and_with_white_as_zero(tmp_path):
    array = values(3, np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(array, -1, 0), photometric="rgb", planarconfig="separate"
    )
    assert_holds(read_image(tmp_path / "a.tif"), array, 16)
    gray = values(1, np.uint16)
    tifffile.imwrite(tmp_path / "b.tif", 65535 - gray[..., 0], photometric="miniswhite")
    assert_holds(read_image(tmp_path / "b.tif"), gray, 16)


def test_alpha_that_is_multiplied_in_is_taken_out(tmp_path):
    colour, alpha = values(3, np.uint16) / 65535, np.full((HEIGHT, WIDTH, 1), 0.5)
    stored = np.round(np.concatenate([colour * alpha, alpha], 2) * 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(picture.pixels, colour, atol=2 / 65535)
    np.testing.assert_allclose(picture.alpha, 0.5, atol=1 / 65535)


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_tiff_keeps_noise_beyond_the_range(tmp_path, channels):
    noisy = 0.5 + 0.5 * np.random.default_rng(0).standard_normal((HEIGHT, WIDTH, channels)).astype(np.float32)
    assert noisy.min() < 0 < 1 < noisy.max()
    write_image(tmp_path / "a.tif", Picture(noisy, bit_depth=32))
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, noisy)
    tifffile.imwrite(
        tmp_path / "b.tif", noisy.squeeze(), photometric="rgb" if channels == 3 else "minisblack"
    )
    assert np.array_equal(read_image(tmp_path / "b.tif").pixels, noisy)


@pytest.mark.parametrize(
    ("scale", "remedy"),
    [
        (255, "divide the counts by their number at white"),
        (99.9, "rescale them"),
        (np.nan, "not finite"),
        (-1, "rescale"),
    ],
)
def test_floating_point_tiff_in_other_units_is_refused(tmp_path, scale, remedy):
    tifffile.imwrite(tmp_path / "a.tif", (values(1)[..., 0] / 255 * scale).astype(np.float32))
    with pytest.raises(ImageError, match=remedy):
        read_image(tmp_path / "a.tif")


def test_palette_black_and_white_and_gif(tmp_path):
    array = values(3)
    palette = pillow(array).quantize(8)
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "p.gif")
    expected = np.asarray(palette.convert("RGB"))
    for name in ("p.png", "p.gif"):
        picture = read_image(tmp_path / name)
        assert_holds(picture, expected, 8)
    assert read_image(tmp_path / "p.png").mode == "P"
    palette.save(tmp_path / "t.png", transparency=int(np.asarray(palette)[0, 0]))
    transparent = read_image(tmp_path / "t.png")
    assert transparent.alpha[0, 0] == 0
    assert np.array_equal(transparent.alpha == 0, np.asarray(palette) == np.asarray(palette)[0, 0])
    bits = values(1) > 127
    Image.fromarray(bits[..., 0]).save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png").pixels, bits.astype(np.float32))


def test_jpeg_gray_and_rgb(tmp_path):
    for channels in (1, 3):
        pillow(values(channels)).save(tmp_path / "a.jpg", quality=95)
        picture = read_image(tmp_path / "a.jpg")
        with Image.open(tmp_path / "a.jpg") as image:
            assert_holds(picture, np.asarray(image).reshape(HEIGHT, WIDTH, channels), 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "deep.tif"])
def test_orientation_is_applied_and_removed(tmp_path, orientation, name):
    upright = values(3)
    inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    methods = [None, 0, 3, 1, 5, 4, 6, 2]  # Pillow's transpositions that undo the orientations 1 to 8
    image = pillow(upright)
    if inverse > 1:
        image = image.transpose(Image.Transpose(methods[inverse - 1]))
    stored = np.asarray(image)
    if name == "deep.tif":
        deep = stored.astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / name, deep, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "maker"
        image.save(tmp_path / name, exif=exif)
    picture = read_image(tmp_path / name)
    assert np.array_equal(np.round(picture.pixels * 255).astype(int), upright)
    left = Image.Exif()
    left.load(picture.exif)
    assert left.get(0x0112, 1) == 1
    if name != "deep.tif":
        assert left[0x010F] == "maker"


# ---------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("depth", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_can_be_written_comes_back(tmp_path, suffix, depth, channels):
    dtype = {8: np.uint8, 16: np.uint16, 32: np.uint16}[depth]
    array = values(channels, dtype)
    unit = (array / np.iinfo(dtype).max).astype(np.float32)
    has_alpha = channels in (2, 4)
    picture = Picture(
        unit[..., :-1] if has_alpha else unit, unit[..., -1].copy() if has_alpha else None, bit_depth=depth
    )
    path = tmp_path / f"new folder/a{suffix}"
    allowed = depth == 8 or suffix == ".png" or suffix.startswith(".tif")
    allowed = allowed and not (depth == 32 and suffix == ".png")
    if not allowed or (has_alpha and suffix in (".jpg", ".jpeg", ".bmp")):
        with pytest.raises(ImageError, match=r"choose \.png|choose \.tif"):
            write_image(path, picture)
        assert os.listdir(tmp_path) == []
        return
    write_image(path, picture)
    assert os.listdir(path.parent) == [path.name]
    back = read_image(path)
    if suffix == ".webp" and channels < 3:  # no gray in this format
        assert np.array_equal(back.pixels, picture.pixels.repeat(3, 2))
    elif suffix in (".jpg", ".jpeg"):
        assert back.pixels.shape == picture.pixels.shape
    elif depth == 32:
        assert back.bit_depth == 32
        assert np.array_equal(joined(back), unit)
    else:
        assert_holds(back, array, depth)


def test_16_bit_png_agrees_with_another_reader(tmp_path):
    """Pillow reads the high byte of each channel, so a file with the bytes swapped shows it the low ones."""
    for channels in (3, 4):
        array = values(channels, np.uint16)
        for shown, stored in ((array >> 8, array), (array & 255, array.byteswap())):
            unit = (stored / 65535).astype(np.float32)
            alpha = unit[..., 3].copy() if channels == 4 else None
            write_image(tmp_path / "a.png", Picture(unit[..., :3], alpha, 16), overwrite=True)
            with Image.open(tmp_path / "a.png") as image:
                assert np.array_equal(np.asarray(image), shown)


def test_jpeg_is_close(tmp_path):
    row, column = np.mgrid[:64, :64] / 64
    smooth = np.stack([row, column, 0.5 + 0 * row], 2).astype(np.float32)
    write_image(tmp_path / "a.jpg", smooth)
    assert np.abs(read_image(tmp_path / "a.jpg").pixels - smooth).max() < 0.03
    with Image.open(tmp_path / "a.jpg") as image:
        assert JpegImagePlugin.get_sampling(image) == 0  # colours in full resolution
        assert max(image.quantization[0]) <= 12  # of the standard's 121, at quality 95


@pytest.mark.parametrize("source", ["a.jpg", "a.png", "deep.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.tif", "b.webp"])
@pytest.mark.parametrize("orientation", [None, 6])
def test_camera_data_and_profile_survive(tmp_path, source, target, orientation):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[271], exif[305], exif[315] = "maker", "software", "artist"
    if orientation is not None:
        exif[274] = orientation
    exif.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    if source == "deep.png":
        picture = Picture(
            np.zeros((HEIGHT, WIDTH, 3), np.float32), None, 16, exif=exif.tobytes(), icc=profile
        )
        write_image(tmp_path / source, picture)
    else:
        pillow(values(3)).save(tmp_path / source, exif=exif.tobytes(), icc_profile=profile)
    picture = read_image(tmp_path / source)
    if picture.bit_depth == 16 and target in ("b.jpg", "b.webp"):
        return
    write_image(tmp_path / target, picture.pixels, like=picture)
    back = read_image(tmp_path / target)
    assert back.icc == profile
    kept = Image.Exif()
    kept.load(back.exif)
    assert (kept[271], kept[305], kept[315]) == ("maker", "software", "artist")
    assert 274 not in kept
    assert back.pixels.shape[:2] == (
        (HEIGHT, WIDTH) if orientation is None else (WIDTH, HEIGHT)
    )  # turned once
    if not (picture.bit_depth == 16 and target == "b.tif"):
        assert kept.get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"


def test_text_and_resolution_of_16_bit_tiff_survive(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        values(1, np.uint16)[..., 0],
        description="0.25 um per pixel",
        resolution=(40000, 20000),
        resolutionunit="CENTIMETER",
        datetime="2024:01:02 03:04:05",
        extratags=[(33432, 2, None, "© Zoe".encode("latin-1"), True)],
        metadata=None,
    )
    picture = read_image(tmp_path / "a.tif")
    write_image(tmp_path / "b.tif", picture)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        tags = {tag.name: tag.value for tag in file.pages[0].tags}
    assert tags["ImageDescription"] == "0.25 um per pixel"
    assert tags["DateTime"] == "2024:01:02 03:04:05"
    assert tags["Copyright"] == "? Zoe"  # the field is ASCII by its definition
    assert (tags["XResolution"], tags["YResolution"]) == ((40000, 1), (20000, 1))
    assert tags["ResolutionUnit"] == 3


def test_shape_note_of_tifffile_does_not_survive(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values(1, np.uint16))
    gray = read_image(tmp_path / "a.tif")
    write_image(tmp_path / "b.tif", gray.pixels.repeat(3, 2), like=gray)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert "ImageDescription" not in file.pages[0].tags


def test_profile_of_other_colours_is_dropped(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    like = Picture(np.zeros((HEIGHT, WIDTH, 3), np.float32), icc=profile)
    write_image(tmp_path / "gray.png", like.pixels[..., :1], like=like)
    assert read_image(tmp_path / "gray.png").icc == b""


def test_limits_of_a_format_are_refused(tmp_path):
    with pytest.raises(ImageError, match="another place or format"):
        write_image(tmp_path / "a.webp", np.zeros((1, 17000, 3)))
    assert os.listdir(tmp_path) == []


def test_like_gives_depth_and_alpha(tmp_path):
    array = values(4, np.uint16)
    (tmp_path / "a.png").write_bytes(png16(array))
    noisy = read_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", 0.25 * noisy.pixels, like=noisy)
    back = read_image(tmp_path / "b.png")
    assert back.bit_depth == 16
    assert np.array_equal(back.alpha, noisy.alpha)
    np.testing.assert_allclose(back.pixels, 0.25 * noisy.pixels, atol=1 / 65535)


def test_arrays(tmp_path):
    gray = values(1)
    for i, array in enumerate([gray, gray[..., 0], gray / 255.0]):
        write_image(tmp_path / f"{i}.png", array)
        assert_holds(read_image(tmp_path / f"{i}.png"), gray, 8)
    write_image(tmp_path / "clipped.png", np.array([[-1.0, 2.0]]))
    assert read_image(tmp_path / "clipped.png").pixels.ravel().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 3), np.nan), "not finite"),
        (np.zeros((4, 4, 2)), r"shape \(4, 4, 2\)"),
        (np.zeros((3, 4, 4, 1)), "no image"),
        (np.zeros((0, 4)), "no image"),
        (np.zeros((4, 4), int), "int64"),
    ],
)
def test_arrays_that_are_no_pictures_leave_nothing(tmp_path, array, message):
    with pytest.raises(ImageError, match=message):
        write_image(tmp_path / "a.png", array)
    assert os.listdir(tmp_path) == []


def test_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def disk_full(self, file, **_):
        file.write_bytes(b"half") if hasattr(file, "write_bytes") else None
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(ImageError, match="No space left"):
        write_image(path, values(3), overwrite=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_check_writable(tmp_path):
    (tmp_path / "old.png").write_bytes(b"old")
    check_writable(tmp_path / "new/deeper/a.png")
    check_writable(tmp_path / "old.png", overwrite=True)
    deep = Picture(np.zeros((1, 1, 3), np.float32), bit_depth=16)
    for path, options, message in [
        (tmp_path / "old.png", {}, "it exists"),
        (tmp_path, {}, "suffix must be one of .png"),
        (tmp_path / "a.gif", {}, "suffix must be one of .png"),
        (tmp_path / "a", {}, "suffix must be one of .png"),
        (tmp_path / "old.png" / "a.png", {}, "old.png is not a folder"),
        (tmp_path / "a.jpg", {"like": deep}, "16 bits per channel and .jpg holds 8 bits; choose .png"),
    ]:
        with pytest.raises(ImageError, match=message):
            check_writable(path, **options)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="it is a folder"):
        check_writable(tmp_path / "folder.png", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["folder.png", "old.png"]


def test_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # permissions do not bind the superuser
    with pytest.raises(ImageError, match="is not writable"):
        check_writable(tmp_path / "a.png")


# ---------------------------------------------------------------------------------------------- refusals


def refusal(path, **options):
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_files_that_are_not_pictures(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.png")
    assert "is a folder" in refusal(tmp_path)
    for suffix in READABLE:
        (tmp_path / f"empty{suffix}").write_bytes(b"")
        assert "0 bytes" in refusal(tmp_path / f"empty{suffix}")
        (tmp_path / f"text{suffix}").write_text("not an image, and longer than the header of any format")
        assert "not an image of a supported kind" in refusal(tmp_path / f"text{suffix}")


@pytest.mark.parametrize("suffix", READABLE)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_truncated_files(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = refusal(path)
    assert "damaged" in message


@pytest.mark.parametrize("name", ["a.png", "a.tif", "compressed.tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_16_bit_files(tmp_path, name, share):
    path, array = tmp_path / name, values(3, np.uint16)
    if name == "a.png":
        path.write_bytes(png16(array))
    else:
        tifffile.imwrite(path, array, photometric="rgb", compression="zlib" if name != "a.tif" else None)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "damaged" in refusal(path)


def test_too_many_pixels(tmp_path):
    pillow(values(3)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", values(3, np.uint16), photometric="rgb")
    for name in ("a.png", "a.tif"):
        assert "has 21 x 13 pixels; at most 100 are allowed" in refusal(tmp_path / name, max_pixels=100)
        read_image(tmp_path / name, max_pixels=21 * 13)


def test_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    for side in (12_000, 60_000):
        data = bytearray(png16(values(3, np.uint16)))
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "a.png").write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "at most 100000000 are allowed" in refusal(tmp_path / "a.png")


def test_several_pictures_in_a_file(tmp_path):
    frames = [pillow(values(3, seed=i)) for i in range(3)]
    for suffix in (".gif", ".webp", ".tif", ".png"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
        assert "holds 3 images" in refusal(tmp_path / f"a{suffix}")
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "phone.jpg").pixels.shape == (HEIGHT, WIDTH, 3)
    with tifffile.TiffWriter(tmp_path / "preview.tif") as file:
        file.write(values(3, np.uint16), photometric="rgb")
        file.write(values(3)[::2, ::2], photometric="rgb", subfiletype=1)
    assert_holds(read_image(tmp_path / "preview.tif"), values(3, np.uint16), 16)


def test_colours_and_types_that_are_not_supported(tmp_path):
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    assert "CMYK" in refusal(tmp_path / "cmyk.jpg")
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.tif")
    assert "CMYK" in refusal(tmp_path / "cmyk.tif")
    tifffile.imwrite(tmp_path / "int32.tif", np.zeros((8, 8), np.int32))
    assert "int32" in refusal(tmp_path / "int32.tif")
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((8, 8, 5), np.uint16), planarconfig="contig")
    assert "5 channels" in refusal(tmp_path / "five.tif")
    pillow(values(1, np.uint16)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    assert_holds(read_image(tmp_path / "lzw.tif"), values(1, np.uint16), 16)


def test_compressed_8_bit_tiff(tmp_path):
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        pillow(values(3)).save(tmp_path / "a.tif", compression=compression)
        assert_holds(read_image(tmp_path / "a.tif"), values(3), 8)


# ---------------------------------------------------------------------------------------------- folders


def test_list_images_in_natural_order(tmp_path):
    names = [
        "a2.png",
        "a10.png",
        "b/1.JPG",
        "b/c/3.tif",
        "B10/x.webp",
        "notes.txt",
        ".hidden/a.png",
        ".a.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a2.png", "a10.png", "b/1.JPG", "b/c/3.tif", "B10/x.webp"]


def test_list_images_refuses(tmp_path):
    with pytest.raises(ImageError, match="holds no images"):
        list_images(tmp_path)
    with pytest.raises(ImageError, match="is not a folder"):
        list_images(tmp_path / "missing")


# --------------------------------------------------------------------------------- one reader for every kind


def grey_tiff(path, array, **options):
    tifffile.imwrite(path, array, photometric="minisblack", **options)


KINDS = {  # all that is read, by what writes it; (channels, alpha, depth)
    "gray8.png": (lambda p: pillow(values(1)).save(p), (1, False, 8)),
    "gray-alpha8.png": (lambda p: pillow(values(2)).save(p), (1, True, 8)),
    "rgb8.png": (lambda p: pillow(values(3)).save(p), (3, False, 8)),
    "rgba8.png": (lambda p: pillow(values(4)).save(p), (3, True, 8)),
    "bits.png": (lambda p: Image.fromarray(values(1)[..., 0] > 127).save(p), (1, False, 8)),
    "palette.png": (lambda p: pillow(values(3)).quantize(8).save(p), (3, False, 8)),
    "gray16.png": (lambda p: p.write_bytes(png16(values(1, np.uint16))), (1, False, 16)),
    "gray-alpha16.png": (lambda p: p.write_bytes(png16(values(2, np.uint16))), (1, True, 16)),
    "rgb16.png": (lambda p: p.write_bytes(png16(values(3, np.uint16))), (3, False, 16)),
    "rgba16.png": (lambda p: p.write_bytes(png16(values(4, np.uint16))), (3, True, 16)),
    "gray.jpg": (lambda p: pillow(values(1)).save(p), (1, False, 8)),
    "rgb.jpg": (lambda p: pillow(values(3)).save(p), (3, False, 8)),
    "rgb.webp": (lambda p: pillow(values(3)).save(p), (3, False, 8)),
    "rgba.webp": (lambda p: pillow(values(4)).save(p), (3, True, 8)),
    "gray.bmp": (lambda p: pillow(values(1)).save(p), (1, False, 8)),
    "palette.gif": (lambda p: pillow(values(3)).quantize(8).save(p), (3, False, 8)),
    **{
        f"{name}-{compression}.tif": (
            lambda p, channels=channels, c=compression: pillow(values(channels)).save(p, compression=c),
            (1 if channels < 3 else 3, channels in (2, 4), 8),
        )
        for channels, name in ((1, "gray"), (2, "gray-alpha"), (3, "rgb"), (4, "rgba"))
        for compression in (
            None,
            "tiff_lzw",
            "tiff_adobe_deflate",
            "tiff_deflate",
            "packbits",
            "zstd",
            "lzma",
        )
    },
    "jpeg.tif": (lambda p: pillow(values(3)).save(p, compression="jpeg"), (3, False, 8)),
    "palette.tif": (lambda p: pillow(values(3)).quantize(8).save(p), (3, False, 8)),
    **{
        f"{compression}.tif": (
            lambda p, c=compression: Image.fromarray(values(1)[..., 0] > 127).save(p, compression=c),
            (1, False, 8),
        )
        for compression in ("group3", "group4", "tiff_ccitt")
    },
    "four-bits.tif": (lambda p: grey_tiff(p, values(1)[..., 0] >> 4, bitspersample=4), (1, False, 8)),
    "lzw16.tif": (lambda p: grey_tiff(p, values(1, np.uint16)[..., 0], compression="lzw"), (1, False, 16)),
    "big.tif": (lambda p: grey_tiff(p, values(1)[..., 0], bigtiff=True), (1, False, 8)),
    "predicted.tif": (
        lambda p: grey_tiff(p, values(1)[..., 0] / np.float32(255), compression="zlib", predictor=3),
        (1, False, 32),
    ),
    "tiles.tif": (
        lambda p: tifffile.imwrite(p, np.tile(values(3), (4, 4, 1)), photometric="rgb", tile=(16, 16)),
        (3, False, 8),
    ),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_is_read_and_its_head_says_what_it_holds(tmp_path, name):
    write, expected = KINDS[name]
    write(tmp_path / name)
    picture, kind = read_image(tmp_path / name), read_kind(tmp_path / name)
    found = (picture.pixels.shape[2], picture.alpha is not None, picture.bit_depth)
    assert found == expected == (kind.channels, kind.alpha, kind.bit_depth)
    assert (kind.height, kind.width) == picture.pixels.shape[:2]
    assert kind.mode == picture.mode


def test_the_values_of_unusual_tiffs(tmp_path):
    grey = values(1)
    KINDS["big.tif"][0](tmp_path / "big.tif")
    assert_holds(read_image(tmp_path / "big.tif"), grey, 8)
    KINDS["predicted.tif"][0](tmp_path / "p.tif")
    assert np.array_equal(read_image(tmp_path / "p.tif").pixels, grey / np.float32(255))
    KINDS["four-bits.tif"][0](tmp_path / "four.tif")
    assert_holds(read_image(tmp_path / "four.tif"), (grey >> 4) * 17, 8)
    KINDS["group4.tif"][0](tmp_path / "fax.tif")
    assert np.array_equal(read_image(tmp_path / "fax.tif").pixels, (grey > 127).astype(np.float32))
    pillow(values(3)).save(tmp_path / "j.tif", compression="jpeg")
    with Image.open(tmp_path / "j.tif") as image:
        assert_holds(read_image(tmp_path / "j.tif"), np.asarray(image), 8)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_uncompressed_8_bit_tiffs(tmp_path, channels, orientation):
    stored = values(channels)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(
        tmp_path / "a.tif", stored.squeeze(), extratags=[(274, 3, 1, orientation, True)], **options
    )
    rows, columns = stored.swapaxes(0, 1), stored
    upright = {
        1: columns, 2: columns[:, ::-1], 3: columns[::-1, ::-1], 4: columns[::-1],
        5: rows, 6: rows[:, ::-1], 7: rows[::-1, ::-1], 8: rows[::-1],
    }[orientation]  # fmt: skip
    assert_holds(read_image(tmp_path / "a.tif"), upright, 8)


def test_the_example_of_a_turned_tiff(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(4, 6) + 10
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(274, 3, 1, 6, True)])
    first = np.round(read_image(tmp_path / "a.tif").pixels[0, :, 0] * 255)
    assert first.tolist() == [28, 22, 16, 10]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_beyond_colour_and_alpha_are_refused_in_every_depth(tmp_path, dtype):
    for bands, photometric in ((4, "rgb"), (6, "rgb"), (2, "minisblack")):
        extra = ["unspecified"] * (bands - (3 if photometric == "rgb" else 1))
        tifffile.imwrite(
            tmp_path / "a.tif", values(bands, dtype), photometric=photometric, planarconfig="contig",
            extrasamples=extra,
        )  # fmt: skip
        assert f"{bands} channels" in refusal(tmp_path / "a.tif")
        assert f"{len(extra)} of them of unknown meaning" in refusal(tmp_path / "a.tif")


def test_stacks_and_signed_values_are_refused(tmp_path):
    stack = np.stack([values(1)[..., 0]] * 5)
    tifffile.imwrite(tmp_path / "ij.tif", stack, imagej=True)
    content = (tmp_path / "ij.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "ij.tif") as file:
        second = file.pages[1].offset
        first = file.pages[0].offset
    next_at = first + 2 + 12 * struct.unpack_from("<H" if content[:2] == b"II" else ">H", content, first)[0]
    one_directory = bytearray(content)
    one_directory[next_at : next_at + 4] = bytes(4)
    assert second
    (tmp_path / "one.tif").write_bytes(one_directory)
    assert "5 images" in refusal(tmp_path / "one.tif")
    assert "5 images" in refusal(tmp_path / "ij.tif")
    tifffile.imwrite(tmp_path / "signed.tif", values(1)[..., 0].astype(np.int8))
    assert "int8" in refusal(tmp_path / "signed.tif")


def test_the_number_of_directories_that_are_read_is_bounded(tmp_path):
    with tifffile.TiffWriter(tmp_path / "many.tif") as file:
        for _ in range(70):
            file.write(values(1)[:2, :2, 0], photometric="minisblack", metadata=None)
    assert "more than 64 images" in refusal(tmp_path / "many.tif")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_value_of_a_png(tmp_path, bits):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    levels = (np.arange(16).reshape(2, 8) % 2**bits).astype(np.uint8)
    flags = np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :]
    rows = np.packbits(flags.reshape(2, -1), axis=1)
    parts = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)),
        chunk(b"tRNS", struct.pack(">H", 1)),
        chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        chunk(b"IEND", b""),
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    picture = read_image(tmp_path / "a.png")
    assert np.array_equal(picture.alpha == 0, levels == 1)
    np.testing.assert_allclose(picture.pixels[..., 0], levels / (2**bits - 1), atol=1e-6)


def test_twelve_bits_in_sixteen(tmp_path):
    array = values(1, np.uint16) >> 4
    grey_tiff(tmp_path / "a.tif", array[..., 0])
    dark = read_image(tmp_path / "a.tif")
    assert f"{array.max()} of 65535" in few_bits(dark)
    picture = read_image(tmp_path / "a.tif", white_level=4095)
    np.testing.assert_allclose(picture.pixels, array / 4095, rtol=1e-6)
    assert few_bits(picture) is None
    write_image(tmp_path / "b.tif", picture)
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), array[..., 0])
    grey_tiff(tmp_path / "c.tif", values(1, np.uint16)[..., 0])
    assert few_bits(read_image(tmp_path / "c.tif")) is None
    assert few_bits(Picture(np.zeros((2, 2, 1), np.float32), bit_depth=16)) is None


def test_linked_folders_are_read_and_none_twice(tmp_path):
    for name in ("in/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pillow(values(1)).save(tmp_path / name)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    found = [path.relative_to(tmp_path / "in").as_posix() for path in list_images(tmp_path / "in")]
    assert found == ["a.png", "link/b.png"]
