"""Data sets are written here in their true on-disk formats, byte by byte, and read back to known pixels."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from scoreexp.core.ranges import to_uint8, to_unit
from scoreexp.data import CIFAR10, FFHQ, MNIST, CelebA, DataError, FashionMNIST, Folder, Photo, SwissRoll
from scoreexp.data.image_io import Picture, write_image
from scoreexp.data.photo import photographs
from scoreexp.data.resize import resized

PER_BATCH = 3


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width, seed=0):
    """A colour picture without high frequencies, which JPEG keeps nearly as it is."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def all_bytes(data, split):
    """Every sample of a split as 0..255."""
    opened = data.split(split)
    return to_uint8(to_unit(opened.samples(np.arange(len(opened))))).numpy()


# ------------------------------------------------------------------------------------------- writers


def cifar_arrays():
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {name: (pixels(PER_BATCH, 3, 32, 32, seed=i), [i, 9, 0]) for i, name in enumerate(names)}


def python2_pickle(images, labels):
    """The opcodes that Python 2's cPickle wrote for CIFAR-10 (protocol 2, byte strings as keys)."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    rows = images.reshape(len(images), -1)
    size = b"K" + bytes([len(rows)])
    # fmt: off
    array = b"".join((
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85", text(b"b"), b"\x87R(K\x01",
        size, b"M\x00\x0c\x86cnumpy\ndtype\n", text(b"u1"), b"K\x00K\x01\x87R(K\x03", text(b"|"),
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T", struct.pack("<i", rows.size), rows.tobytes(), b"tb",
    ))
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = (text(b"batch_label"), text(b"one"), text(b"labels"), numbers, text(b"data"), array)
    # fmt: on
    return b"\x80\x02}(" + b"".join(items) + b"u."


def cifar_files(version):
    for name, (images, labels) in cifar_arrays().items():
        if version == "python":
            yield f"cifar-10-batches-py/{name}", python2_pickle(images, labels)
        else:
            rows = np.concatenate(
                [np.array(labels, np.uint8)[:, None], images.reshape(len(images), -1)], axis=1
            )
            yield f"cifar-10-batches-bin/{name}.bin", rows.tobytes()
    yield f"cifar-10-batches-{version[:2]}/readme.html", b"<meta>"


def write_cifar(root, version="python", packed=True):
    root.mkdir(parents=True, exist_ok=True)
    if packed:
        with tarfile.open(root / f"cifar-10-{version}.tar.gz", "w:gz") as archive:
            for name, content in cifar_files(version):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in cifar_files(version):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def mnist_arrays(part):
    seed = 0 if part == "train" else 1
    return pixels(5, 28, 28, seed=seed), np.array([0, 9, 4, 1, seed], np.uint8)


def write_mnist(root, end=".gz", dot="-"):
    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        for kind, array in zip((f"images{dot}idx3", f"labels{dot}idx1"), mnist_arrays(part)):
            content = gzip.compress(idx(array)) if end else idx(array)
            (root / f"{part}-{kind}-ubyte{end}").write_bytes(content)


CELEBA_SPLIT = [0, 0, 0, 1, 2, 0]


def celeba_pictures():
    return {
        f"{i:06d}.jpg": encoded(smooth(218, 178, seed=i), "JPEG", quality=95)
        for i in range(1, len(CELEBA_SPLIT) + 1)
    }


def write_celeba(root, packed=True, change=None):
    root.mkdir(parents=True, exist_ok=True)
    pictures = {**celeba_pictures(), **(change or {})}
    lines = [f"{i:06d}.jpg {split}" for i, split in enumerate(CELEBA_SPLIT, 1)]
    (root / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    write_tree(root, "img_align_celeba", pictures, packed)


def write_tree(root, name, files, packed):
    root.mkdir(parents=True, exist_ok=True)
    if packed:
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/", b"")
            for file, content in files.items():
                archive.writestr(f"{name}/{file}", content)
    else:
        for file, content in files.items():
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            (root / name / file).write_bytes(content)


def write_ffhq(root, source="thumbnails128x128", packed=True):
    side = int(source.split("x")[-1])
    numbers = [0, 1, 59_999, 60_000, 69_999] if side < 1024 else [0, 60_000]
    files = {
        f"{n // 1000 * 1000:05d}/{n:05d}.png": encoded(smooth(side, side, seed=n), compress_level=1)
        for n in numbers
    }
    write_tree(root, source, {**files, "LICENSE.txt": b"text"}, packed)


def write_folder(root, count=12):
    for i in range(count):
        path = root / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(smooth(20, 24, seed=i)))


# ------------------------------------------------------------------------------------------ CIFAR-10


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar_versions_hold_the_same_pixels_and_labels(tmp_path, version, packed):
    write_cifar(tmp_path, version, packed)
    data = CIFAR10(root=str(tmp_path))
    arrays = cifar_arrays()
    train = np.concatenate([arrays[f"data_batch_{i}"][0] for i in range(1, 6)])
    labels = [label for i in range(1, 6) for label in arrays[f"data_batch_{i}"][1]]
    assert np.array_equal(all_bytes(data, "train"), train)
    assert data.split("train").labels.tolist() == labels
    assert np.array_equal(all_bytes(data, "test"), arrays["test_batch"][0])
    # red comes first, row by row; model units are 2 k / 255 - 1
    sample = data.split("train").samples(np.array([4]))[0]
    row = train[4].reshape(-1)
    assert float(sample[1, 7, 5]) == pytest.approx(2 * row[1024 + 7 * 32 + 5] / 255 - 1, abs=1e-6)


def test_cifar_root_may_be_the_unpacked_folder(tmp_path):
    write_cifar(tmp_path, packed=False)
    assert len(CIFAR10(root=str(tmp_path / "cifar-10-batches-py")).split("train")) == 5 * PER_BATCH


def test_a_pickle_that_names_foreign_classes_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    write_cifar(tmp_path, packed=False)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({b"data": Payload(), b"labels": []}, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_3 .*names (posix|nt)\.mkdir"):
        CIFAR10(root=str(tmp_path)).split("train")
    assert not trace.exists()


def test_pickles_written_by_python_3_are_read(tmp_path):
    write_cifar(tmp_path, packed=False)
    images, labels = pixels(2, 3072), [1, 2]
    for protocol in (2, 5):
        content = pickle.dumps({b"data": images, b"labels": labels}, protocol=protocol)
        if protocol == 5 and b"_frombuffer" in content:
            continue  # an in-band buffer is another constructor; CIFAR-10 has none
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
        (tmp_path / ".scoreexp-cache" / "cifar10-test.cache").unlink(missing_ok=True)
        assert np.array_equal(all_bytes(CIFAR10(root=str(tmp_path)), "test").reshape(2, -1), images)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: b"<html>quota exceeded</html>", "not a tar.gz"),
        (lambda data: b"", "cut short"),
    ],
)
def test_a_damaged_cifar_archive_is_one_line(tmp_path, damage, message):
    write_cifar(tmp_path)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DataError, match=message) as error:
        CIFAR10(root=str(tmp_path)).split("train")
    assert "download it again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x00" * 100, "not a multiple of 3073"), (b"\x0a" + b"\x00" * 3072, "labels that are not 0..9")],
)
def test_a_wrong_binary_batch_is_refused(tmp_path, content, message):
    write_cifar(tmp_path, "binary", packed=False)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        CIFAR10(root=str(tmp_path)).split("test")


def test_a_missing_cifar_batch_is_named(tmp_path):
    write_cifar(tmp_path, packed=False)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4 is missing"):
        CIFAR10(root=str(tmp_path)).split("train")


# --------------------------------------------------------------------------------------------- MNIST


@pytest.mark.parametrize(
    ("end", "dot", "folder"), [(".gz", "-", "."), ("", "-", "MNIST/raw"), ("", ".", ".")]
)
def test_mnist_is_read_from_idx_files(tmp_path, end, dot, folder):
    write_mnist(tmp_path / folder, end, dot)
    data = MNIST(root=str(tmp_path))
    for split, part in (("train", "train"), ("test", "t10k")):
        images, labels = mnist_arrays(part)
        assert np.array_equal(all_bytes(data, split)[:, 0], images)
        assert data.split(split).labels.tolist() == labels.tolist()


def test_mnist_is_padded_with_black(tmp_path):
    write_mnist(tmp_path)
    padded = all_bytes(MNIST(root=str(tmp_path), size=32), "train")[:, 0]
    assert np.array_equal(padded[:, 2:30, 2:30], mnist_arrays("train")[0])
    assert padded.sum(dtype=int) == mnist_arrays("train")[0].sum(dtype=int)


def test_a_download_that_fails_names_the_script_that_takes_the_set_from_a_package(tmp_path, monkeypatch):
    import pooch

    def refuse(url, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    for corpus, script in ((MNIST, "mnist"), (CIFAR10, "cifar10")):
        folder = tmp_path / script
        with pytest.raises(
            DataError, match=rf"no route to host.* run python -m benchmarks\.data\.{script} .*{script}"
        ):
            corpus(root=str(folder), download=True).split("test")


def test_fashion_mnist_never_downloads_digits(tmp_path):
    with pytest.raises(
        DataError, match=r"no train-images-idx3-ubyte .*benchmarks.data.fashion.*nothing is downloaded"
    ):
        FashionMNIST(root=str(tmp_path), download=True).split("train")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx(pixels(5, 28, 28)))[:-20], "cut short"),
        (idx(pixels(5, 28, 28))[:-1], "header says 3920"),
        (idx(pixels(5)), "3 dimension"),
        (b"<html>", "3 dimension"),
        (idx(pixels(4, 28, 28)), "not one label per"),
        (idx(pixels(5, 28, 20)), "not one label per"),
        (b"", "3 dimension"),
    ],
)
def test_a_wrong_idx_file_is_refused(tmp_path, content, message):
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        MNIST(root=str(tmp_path)).split("train")


# ---------------------------------------------------------------------------------- CelebA and FFHQ

CROPS = {  # left, upper, right, lower in the 178 x 218 picture, as the papers state them
    "score_sde_crop140": ((178 - 140) // 2, (218 - 140) // 2, (178 + 140) // 2, (218 + 140) // 2),
    "vae_crop148": ((178 - 148) // 2, (218 - 148) // 2, (178 + 148) // 2, (218 + 148) // 2),
    "dcgan_crop108": ((178 - 108) // 2, (218 - 108) // 2, (178 + 108) // 2, (218 + 108) // 2),
    "ddim_crop128": (89 - 64, 121 - 64, 89 + 64, 121 + 64),
}


@pytest.mark.parametrize("recipe", CROPS)
def test_celeba_recipes_are_pillow_crops_and_antialiased_resizing(tmp_path, recipe):
    write_celeba(tmp_path)
    data = CelebA(root=str(tmp_path), recipe=recipe, size=64)
    expected = [
        np.asarray(
            Image.open(io.BytesIO(content)).crop(CROPS[recipe]).resize((64, 64), Image.Resampling.BILINEAR)
        )
        for content, split in zip(celeba_pictures().values(), CELEBA_SPLIT)
        if split == 0
    ]
    assert np.array_equal(all_bytes(data, "train"), np.stack(expected).transpose(0, 3, 1, 2))


def test_celeba_splits_follow_the_partition_and_zip_equals_folder(tmp_path):
    write_celeba(tmp_path / "zip", packed=True)
    write_celeba(tmp_path / "folder", packed=False)
    packed, unpacked = (CelebA(root=str(tmp_path / kind)) for kind in ("zip", "folder"))
    names = {"train": [1, 2, 3, 6], "val": [4], "test": [5]}
    for split, numbers in names.items():
        assert list(packed.split(split).names) == [f"{n:06d}.jpg" for n in numbers]
        assert np.array_equal(all_bytes(packed, split), all_bytes(unpacked, split))


def test_celeba_bad_pictures_stop_or_are_left_out(tmp_path, caplog):
    good = celeba_pictures()["000003.jpg"]
    write_celeba(tmp_path, packed=False, change={"000002.jpg": b"", "000003.jpg": good[: len(good) // 2]})
    with pytest.raises(DataError, match=r"00000[23]\.jpg .*on_bad_image=skip"):
        CelebA(root=str(tmp_path)).split("train")
    assert not list((tmp_path / ".scoreexp-cache").glob("*.cache"))
    skipping = CelebA(root=str(tmp_path), on_bad_image="skip")
    assert list(skipping.split("train").names) == ["000001.jpg", "000006.jpg"]
    assert "2 unreadable image(s)" in caplog.text
    assert "000002.jpg" in caplog.text
    assert "000003.jpg" in caplog.text
    with pytest.raises(DataError, match=r"prepared without 2 unreadable"):
        CelebA(root=str(tmp_path)).split("train")


def test_celeba_archive_faults_are_named(tmp_path):
    write_celeba(tmp_path)
    archive = tmp_path / "img_align_celeba.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"not a whole zip archive; download it again"):
        CelebA(root=str(tmp_path)).split("train")
    archive.write_bytes(b"<!DOCTYPE html><p>Google Drive - Quota exceeded")
    with pytest.raises(DataError, match="a web page"):
        CelebA(root=str(tmp_path)).split("train")
    position = whole.index(b"000002.jpg") + 500
    archive.write_bytes(whole[:position] + bytes(64) + whole[position + 64 :])
    with pytest.raises(DataError, match=r"000002\.jpg in .* cannot be read \(Bad CRC"):
        CelebA(root=str(tmp_path)).split("train")
    archive.unlink()
    with pytest.raises(DataError, match=r"no img_align_celeba\.zip .*mmlab\.ie\.cuhk\.edu\.hk"):
        CelebA(root=str(tmp_path), download=True).split("train")


def test_celeba_wrong_list_wrong_size_and_missing_picture(tmp_path):
    write_celeba(tmp_path, packed=False, change={"000001.jpg": encoded(smooth(64, 64), "JPEG")})
    with pytest.raises(DataError, match="64 x 64 pixels instead of 178 x 218"):
        CelebA(root=str(tmp_path)).split("train")
    (tmp_path / "img_align_celeba" / "000001.jpg").unlink()
    with pytest.raises(DataError, match=r"000001\.jpg"):
        CelebA(root=str(tmp_path)).split("train")
    (tmp_path / "list_eval_partition.txt").write_text("<html>\n")
    with pytest.raises(DataError, match="line 1 of"):
        CelebA(root=str(tmp_path)).split("train")


def test_a_crop_is_never_enlarged():
    with pytest.raises(DataError, match=r"data\.size=128: give 8\.\.108"):
        CelebA(root=".", recipe="dcgan_crop108", size=128)


@pytest.mark.parametrize("size", [64, 128])
def test_ffhq_zip_equals_folder_and_splits_by_number(tmp_path, size):
    write_ffhq(tmp_path / "zip", packed=True)
    write_ffhq(tmp_path / "folder", packed=False)
    packed, unpacked = (FFHQ(root=str(tmp_path / kind), size=size) for kind in ("zip", "folder"))
    assert list(packed.split("train").names) == ["00000/00000.png", "00000/00001.png", "59000/59999.png"]
    assert list(packed.split("val").names) == ["60000/60000.png", "69000/69999.png"]
    for split in ("train", "test"):
        assert np.array_equal(all_bytes(packed, split), all_bytes(unpacked, split))
    expected = Image.fromarray(smooth(128, 128, seed=1)).resize((size, size), Image.Resampling.LANCZOS)
    assert np.array_equal(all_bytes(packed, "train")[1], np.asarray(expected).transpose(2, 0, 1))


def test_ffhq_of_another_version_is_refused(tmp_path):
    write_ffhq(tmp_path)
    (tmp_path / "thumbnails128x128.zip").rename(tmp_path / "images1024x1024.zip")
    with pytest.raises(DataError, match="128 x 128 pixels, not 1024 x 1024"):
        FFHQ(root=str(tmp_path), source="images1024x1024", size=256).split("train")


@pytest.mark.parametrize(
    ("size", "source", "named", "unnamed"),
    [
        (
            64,
            "thumbnails128x128",
            "thumbnails128x128 (2 GB; or set data.source=images1024x1024, 90 GB)",
            None,
        ),
        (128, "images1024x1024", "images1024x1024 (90 GB; or set data.source=thumbnails128x128, 2 GB)", None),
        (256, "images1024x1024", "images1024x1024 (90 GB) from", "thumbnails"),
    ],
)
def test_ffhq_names_what_serves_for_its_size(tmp_path, size, source, named, unnamed):
    with pytest.raises(DataError) as error:
        FFHQ(root=str(tmp_path), source=source, size=size).split("train")
    assert named in str(error.value)
    assert unnamed is None or unnamed not in str(error.value)


def test_ffhq_too_large_for_a_version_names_the_other():
    with pytest.raises(DataError, match=r"8\.\.128 .*, or set data\.source=images1024x1024"):
        FFHQ(size=256)
    with pytest.raises(DataError, match=r"8\.\.1024 with data\.source=images1024x1024$"):
        FFHQ(size=2048, source="images1024x1024")


# ------------------------------------------------------------------------------- folder and resizing


def test_folder_reads_every_kind_of_picture_as_a_user_expects(tmp_path):
    colour = smooth(16, 16)
    grey = colour[..., 0]
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:8] = 255
    palette = Image.fromarray(colour).quantize(16)
    deep = grey.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the picture rotated by 90 degrees clockwise
    Image.fromarray(colour).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "b.png")
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "c.png")
    palette.save(tmp_path / "d.png")
    Image.fromarray(deep).save(tmp_path / "e.png")
    Image.fromarray(np.rot90(colour)).save(tmp_path / "f.webp", lossless=True, exif=exif)
    Image.fromarray(colour).save(tmp_path / "g.TIFF")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "h.png").write_bytes(b"hidden")
    data = Folder(root=str(tmp_path), val_fraction=0, test_fraction=0)
    assert data.event_shape == (3, 16, 16)
    read = dict(zip(data.split("train").names, all_bytes(data, "train").transpose(0, 2, 3, 1)))
    grey3 = np.repeat(grey[..., None], 3, axis=2)
    on_white = np.where(alpha[..., None] > 0, colour, 255)
    expected = {
        "a.png": colour, "b.png": grey3, "c.png": on_white, "d.png": np.asarray(palette.convert("RGB")),
        "e.png": grey3, "f.webp": colour, "g.TIFF": colour,
    }  # fmt: skip
    assert read.keys() == expected.keys()
    for name, pixels_ in expected.items():
        assert np.array_equal(read[name], pixels_), name


@pytest.mark.parametrize(
    ("shape", "square"), [((16, 40), np.s_[:, 12:28]), ((40, 16), np.s_[12:28]), ((16, 16), np.s_[:])]
)
def test_folder_takes_grey_as_one_channel_and_crops_the_central_square(tmp_path, shape, square):
    grey = smooth(*shape)[..., 1]
    Image.fromarray(grey).save(tmp_path / "a.png")
    data = Folder(root=str(tmp_path), size=8, val_fraction=0, test_fraction=0)
    expected = Image.fromarray(grey[square]).resize((8, 8), Image.Resampling.LANCZOS)
    assert data.event_shape == (1, 8, 8)
    assert np.array_equal(all_bytes(data, "train")[0, 0], np.asarray(expected))


def test_folder_splits_are_disjoint_cover_everything_and_survive_additions(tmp_path):
    write_folder(tmp_path, 60)
    before = {name: set(Folder(root=str(tmp_path)).split(name).names) for name in ("train", "val", "test")}
    assert sum(len(names) for names in before.values()) == len(set.union(*before.values())) == 60
    (tmp_path / "more").mkdir()
    for i in range(20):
        (tmp_path / "more" / f"{i}.png").write_bytes(encoded(smooth(20, 24, seed=i)))
    after = Folder(root=str(tmp_path))
    for name, names in before.items():
        assert {file for file in after.split(name).names if not file.startswith("more")} == names


def test_folder_faults_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"data\.root is not set"):
        Folder().split("train")
    with pytest.raises(DataError, match="is not a folder"):
        Folder(root=str(tmp_path / "missing")).split("train")
    with pytest.raises(DataError, match="no image in"):
        Folder(root=str(tmp_path)).split("train")
    write_folder(tmp_path, 2)
    with pytest.raises(DataError, match="too few to hold some out"):
        Folder(root=str(tmp_path)).split("train")
    (tmp_path / "odd.png").write_bytes(encoded(smooth(9, 9)))
    with pytest.raises(DataError, match=r"have 2 sizes .*give data\.size"):
        Folder(root=str(tmp_path)).split("train")
    with pytest.raises(DataError, match=r"odd\.png has 9 x 9 pixels.*give at most 9"):
        Folder(root=str(tmp_path), size=16, val_fraction=0, test_fraction=0).split("train")
    (tmp_path / "odd.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"odd\.png"):
        Folder(root=str(tmp_path), size=16, val_fraction=0, test_fraction=0).split("train")
    kept = Folder(root=str(tmp_path), size=16, val_fraction=0, test_fraction=0, on_bad_image="skip")
    assert len(kept.split("train")) == 2


def test_resizing_is_antialiased_and_the_same_in_float(tmp_path):
    checkers = (255 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8)[..., None]
    for resample in ("box", "bilinear", "bicubic", "lanczos"):
        small = resized(checkers, 16, resample)
        assert abs(small.astype(int) - 127.5).max() <= 2.5  # picking pixels would give 0 or 255
    picture = smooth(50, 50)
    in_bytes = resized(picture, 20, "lanczos").astype(float)
    in_float = 255 * resized((picture / 255).astype(np.float32), 20, "lanczos")
    assert abs(in_bytes - in_float).max() <= 1.0  # Pillow rounds after each of the two passes


# --------------------------------------------------------------------------- photo and the Swiss Roll


def test_every_listed_photograph_opens():
    assert {"astronaut", "camera", "chelsea", "coffee", "rocket"} <= photographs().keys()
    data = Photo(name=list(photographs()), size=16)
    assert len(data.split("train")) == len(photographs())
    assert list(data.split("val").names) == list(photographs())


def test_photo_is_the_resized_central_square(tmp_path):
    picture = smooth(40, 60)
    Image.fromarray(picture).save(tmp_path / "mine.png")
    data = Photo(path=str(tmp_path / "mine.png"), size=16)
    expected = Image.fromarray(picture[:, 10:50]).resize((16, 16), Image.Resampling.LANCZOS)
    difference = all_bytes(data, "train")[0].transpose(1, 2, 0).astype(int) - np.asarray(expected)
    assert abs(difference).max() <= 1
    assert data.names == ["mine"]
    assert Photo(path=str(tmp_path / "mine.png"), size=16, channels=1).split("train").values.shape == (
        1,
        1,
        16,
        16,
    )


def test_random_crops_lie_in_the_picture_and_follow_their_seed(tmp_path):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    options = {"path": str(tmp_path / "ramp.png"), "size": 16, "crop": "random", "crops": 40, "crop_side": 16}
    crops = all_bytes(Photo(**options), "train")
    tops = crops[:, 0, 0, 0] // 4
    assert np.array_equal(crops[:, 0, :, 3] // 4, tops[:, None] + np.arange(16))
    assert len(set(tops.tolist())) > 10
    assert np.array_equal(crops, all_bytes(Photo(**options), "train"))
    assert not np.array_equal(crops, all_bytes(Photo(**options, crop_seed=1), "train"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mona_lisa"}, "choose from astronaut"),
        ({"name": "camera", "path": "x.png"}, "give one of them"),
        ({"path": "missing.png"}, r"missing\.png"),
        ({"size": 1024}, "give at most 512"),
        ({"crop_side": 16}, "never enlarged"),
    ],
)
def test_photo_keys_are_checked(options, message):
    with pytest.raises(DataError, match=message) as error:
        Photo(**options).setup("fit")
    assert "\n" not in str(error.value)


def test_an_unreadable_photo_is_named(tmp_path):
    path = tmp_path / "mine.jpg"
    path.write_bytes(encoded(smooth(40, 40), "JPEG")[:300])
    with pytest.raises(DataError, match=r"mine\.jpg"):
        Photo(path=str(path)).setup("fit")


def test_swiss_roll_is_a_sample_of_its_oracle():
    data = SwissRoll(points=4000, noise=0.05)
    x = data.split("train").samples(np.arange(4000)).double()
    fresh = data.oracle().sample(200_000, torch.Generator().manual_seed(3))
    for power in (1, 2):
        difference = (x**power).mean(0) - (fresh**power).mean(0)
        assert (difference.abs() < 4.5 * (x**power).std(0) / 4000**0.5).all()  # two-sided p = 1e-5 each
    # distance to the nearest point of the spiral is noise of std 0.05 across it
    clean = SwissRoll(noise=1e-6).oracle().sample(20_000, torch.Generator().manual_seed(1))
    distance = torch.cdist(x, clean).amin(1)
    assert distance.square().mean().sqrt() == pytest.approx(0.05, rel=0.06)  # std of the estimate: 1.1 %
    assert (x.abs() <= 1.2).all()
    a, b = SwissRoll(points=50), SwissRoll(points=50, data_seed=1)
    assert not np.array_equal(a.split("train").values, b.split("train").values)
    one = SwissRoll(points=1)
    assert len({tuple(one.split(name).values[0]) for name in ("train", "val", "test")}) == 3


def test_validating_on_the_training_pictures_does_not_open_the_held_out_ones(tmp_path):
    for i in range(40):
        Image.fromarray(pixels(16, 16, 3, seed=i)).save(tmp_path / f"{i}.png")
    options = {"root": str(tmp_path), "size": 16, "on_bad_image": "skip"}
    held_out = set(Folder(**options).split("val").names)
    assert 0 < len(held_out) < 40
    for name in held_out:
        (tmp_path / name).write_bytes(b"unreadable")
    with pytest.raises(DataError, match=r"data\.validate_on=train"):
        Folder(**options).setup("fit")
    data = Folder(**options, validate_on="train")
    data.setup("fit")
    assert len(next(iter(data.val_dataloader())).x) > 0


# ----------------------------------------------------------------------------- files as people really have them


@pytest.mark.parametrize(("kind", "channels"), [("float RGB", 3), ("16-bit gray with alpha", 1)])
def test_the_channels_of_a_folder_are_those_of_its_pixels(tmp_path, kind, channels):
    for i in range(12):
        unit = smooth(20, 24, seed=i) / np.float32(255)
        if channels == 3:
            tifffile.imwrite(tmp_path / f"{i}.tif", unit, photometric="rgb")
        else:
            write_image(tmp_path / f"{i}.png", Picture(unit[..., :1], np.ones((20, 24), np.float32), 16))
    data = Folder(root=str(tmp_path), size=16)
    assert data.event_shape == (channels, 16, 16)
    assert data.survey().channels == {channels: 12}


def test_linked_folders_count(tmp_path):
    write_folder(tmp_path / "elsewhere", 12)
    write_folder(tmp_path / "root", 12)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(Folder(root=str(tmp_path / "root"), size=16).files()) == 24


def test_the_nested_folder_of_the_celeba_archive(tmp_path):
    write_celeba(tmp_path / "plain", packed=False)
    write_celeba(tmp_path / "nested", packed=False)
    inside = tmp_path / "nested" / "img_align_celeba"
    inside.rename(tmp_path / "nested" / "inner")
    inside.mkdir()
    (tmp_path / "nested" / "inner").rename(inside / "img_align_celeba")
    plain, nested = (CelebA(root=str(tmp_path / name)).split("train").values for name in ("plain", "nested"))
    assert np.array_equal(plain, nested)


def test_a_cifar_archive_that_was_pickled_again_is_admitted(tmp_path):
    """It unpacks to 269 MB; six batches of 45 MB, as text of a protocol without bytes makes them."""
    padding = bytes(45_000_000)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, content in cifar_files("python"):
            for member_name, data in ((name, content), (f"{name}.more", padding)):
                member = tarfile.TarInfo(member_name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert len(CIFAR10(root=str(tmp_path)).split("test")) == len(cifar_arrays()["test_batch"][0])


def test_white_level_is_part_of_what_is_prepared(tmp_path):
    (tmp_path / "root").mkdir()
    for i in range(12):
        grey = (smooth(20, 24, seed=i)[..., 0].astype(np.uint16)) << 4
        tifffile.imwrite(tmp_path / "root" / f"{i}.tif", grey)
    dark = Folder(root=str(tmp_path / "root"), size=16)
    right = Folder(root=str(tmp_path / "root"), size=16, white_level=4095)
    assert dark.split("train").values.max() < 17
    assert right.split("train").values.max() > 200
    assert "set data.white_level=4095" in dark.warnings()[0]
    assert right.warnings() == []
