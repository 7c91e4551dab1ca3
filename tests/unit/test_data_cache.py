"""Prepared files: whole or absent, checked, shared, and never rebuilt over what is there."""

import errno
import hashlib
import http.server
import logging
import multiprocessing
import os
import pickle
import shutil
import socket
import struct
import threading
import tracemalloc

import numpy as np
import pytest

from scoreexp.data import CIFAR10, MNIST, DataError, cache, cifar10, mnist
from scoreexp.data.cache import Block, Contents, prepared, verify
from scoreexp.data.download import download

SHAPE = (3, 8, 8)


def values(count=20):
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def contents(count=20, block=7, labels=False, skipped=()):
    def blocks():
        for start in range(0, count, block):
            part = values(count)[start : start + block]
            yield Block(
                part,
                labels=np.arange(len(part)) if labels else None,
                names=tuple(f"{start + i}.png" for i in range(len(part))),
                skipped=skipped if start == 0 else (),
            )

    return Contents(count + len(skipped), blocks())


def never():
    raise AssertionError("the source was opened although the prepared file is there")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "set.cache"


def test_round_trip_and_second_opening(path):
    first = prepared(path, "recipe", lambda: contents(labels=True), fingerprint="abc")
    again = prepared(path, "recipe", never, fingerprint="abc")
    for split in (first, again):
        assert isinstance(split.values, np.memmap)
        assert np.array_equal(split.values, values())
        assert split.labels.tolist() == [*range(7), *range(7), *range(6)]
        assert list(split.names) == [f"{i}.png" for i in range(20)]
        with pytest.raises(ValueError, match="read-only"):
            split.values[0] = 0
    assert prepared(path, "recipe", never).names == first.names  # the source may be gone by now
    verify(path)


def test_a_prepared_split_travels_as_its_address(path):
    split = prepared(path, "recipe", lambda: contents(4000, block=1000))
    message = pickle.dumps(split)
    assert len(message) < split.values.nbytes / 5  # the names; the pixels stay on disk
    copy = pickle.loads(message)
    assert isinstance(copy.values, np.memmap)
    assert np.array_equal(copy.values, split.values)


def test_preparation_never_holds_the_set_in_memory(path):
    block = np.zeros((256, 3, 32, 32), dtype=np.uint8)  # 0.75 MiB
    tracemalloc.start()
    split = prepared(path, "recipe", lambda: Contents(64 * 256, iter([Block(block)] * 64)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert split.values.nbytes == 64 * block.nbytes
    assert peak < 20 * 2**20  # one segment of 16 MiB is read at a time to check it


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut short or damaged"),
        (lambda data: data[:-1], "cut short or damaged"),
        (lambda data: data[:20], "wrong first bytes"),
        (lambda data: b"", "wrong first bytes"),
        (lambda data: data[:8] + struct.pack("<Q", 2) + data[16:], "has version 2"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "wrong checksum"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(path, damage, message):
    prepared(path, "recipe", contents)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=message) as error:
        prepared(path, "recipe", contents)
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)
    assert path.read_bytes() == damaged


def test_another_recipe_or_source_is_refused(path):
    prepared(path, "crop 140", contents, fingerprint="a")
    with pytest.raises(DataError, match="prepared as 'crop 140', not as 'crop 148'"):
        prepared(path, "crop 148", contents, fingerprint="a")
    with pytest.raises(DataError, match="from other files"):
        prepared(path, "crop 140", contents, fingerprint="b")


def test_left_out_pictures_must_be_accepted_each_time(path, caplog):
    bad = ("x.png is damaged",)
    with pytest.raises(DataError, match="without 1 unreadable image"):
        prepared(path, "recipe", lambda: contents(skipped=bad))
    with caplog.at_level(logging.WARNING):
        assert len(prepared(path, "recipe", never, allow_skipped=True)) == 20
    assert "x.png is damaged" in caplog.text


def test_every_checksum_counts(path, monkeypatch):
    monkeypatch.setattr(cache, "_SEGMENT", 512)
    split = prepared(path, "recipe", lambda: contents(200))
    data = bytearray(path.read_bytes())
    shape = split.values.shape
    del split
    for position in np.linspace(4096, 4096 + np.prod(shape) - 1, 7).astype(int):
        flipped = data.copy()
        flipped[position] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(DataError, match="wrong checksum"):
            verify(path)
    path.write_bytes(data)
    verify(path)


def test_a_failure_while_preparing_leaves_nothing(path):
    def failing():
        yield Block(values(5))
        raise DataError("image 6 is damaged")

    with pytest.raises(DataError, match="image 6"):
        prepared(path, "recipe", lambda: Contents(20, failing()))
    assert [file.name for file in path.parent.iterdir()] == ["set.lock"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left to write .*data.cache"),
        (errno.EFBIG, "no space left to write"),
        (errno.EROFS, "cannot write .*writable folder"),
    ],
)
def test_a_full_or_read_only_disk_is_one_line(path, number, message):
    def failing():
        yield Block(values(5))
        raise OSError(number, os.strerror(number))

    with pytest.raises(DataError, match=message):
        prepared(path, "recipe", lambda: Contents(20, failing()))
    assert not path.exists()


def test_too_little_space_is_noticed_before_writing(path, monkeypatch):
    usage = shutil.disk_usage(path.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DataError, match=r"MiB needed, 0\.0 MiB free"):
        prepared(path, "recipe", contents)


def test_a_cache_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(DataError, match="cannot write"):
        prepared(tmp_path / "cache" / "set.cache", "recipe", contents)
    assert (tmp_path / "cache").read_text() == "mine"


def test_remains_of_a_killed_preparation_are_cleared_and_nothing_else(path):
    path.parent.mkdir()
    orphan = path.parent / ".set.0123456789ab.cache"
    others = [path.parent / ".other.0123456789ab.cache", path.parent / "set2.cache", path.parent / ".set.txt"]
    for file in (orphan, *others):
        file.write_bytes(b"x")
    prepared(path, "recipe", contents)
    assert not orphan.exists()
    assert all(file.exists() for file in others)


def _prepare_in_process(path, queue):
    def counted():
        queue.put("prepared")
        yield Block(values())

    queue.put(len(prepared(path, "recipe", lambda: Contents(20, counted()))))


def test_processes_at_once_prepare_it_only_once(path):
    queue = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=_prepare_in_process, args=(path, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in range(4)]
    for worker in workers:
        worker.join()
    assert sorted(found, key=str) == [20, 20, 20, "prepared"]


# ------------------------------------------------------------------------------------------ download


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; gives its address and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_download_checks_the_file_and_tries_the_next_address(server, tmp_path):
    address, folder = server
    (folder / "set.bin").write_bytes(b"data")
    (folder / "bad").mkdir()
    (folder / "bad" / "set.bin").write_bytes(b"<html>quota</html>")
    urls = [f"{address}/missing/set.bin", f"{address}/bad/set.bin", f"{address}/set.bin"]
    target = tmp_path / "root"
    with pytest.raises(DataError, match=r"could not download set\.bin .*hash.*put it into .*sha256"):
        download(urls[:2], sha256(b"data"), target)
    assert not list(target.iterdir())
    assert download(urls, sha256(b"data"), target).read_bytes() == b"data"
    (target / "set.bin").write_bytes(b"the user's own")
    assert download(urls, sha256(b"data"), target).read_bytes() == b"the user's own"


def test_cifar_and_mnist_download_on_request(server, tmp_path, monkeypatch):
    from test_data_files import write_cifar, write_mnist

    address, folder = server
    write_cifar(folder)
    write_mnist(folder)
    archive = folder / "cifar-10-python.tar.gz"
    monkeypatch.setattr(cifar10, "_URLS", (f"{address}/{archive.name}",))
    monkeypatch.setattr(cifar10, "_SHA256", sha256(archive.read_bytes()))
    monkeypatch.setattr(mnist, "_MIRRORS", (address,))
    sums = {name: sha256((folder / f"{name}.gz").read_bytes()) for name in mnist._SHA256}
    monkeypatch.setattr(mnist, "_SHA256", sums)
    root = tmp_path / "not" / "there"
    assert len(CIFAR10(root=str(root), download=True).split("train")) == 15
    assert len(MNIST(root=str(root), download=True).split("val")) == 5


def test_nothing_is_fetched_without_being_asked(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network access")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for corpus in (CIFAR10, MNIST):
        with pytest.raises(DataError, match=r"data\.download=true"):
            corpus(root=str(tmp_path)).split("train")
    assert not list(tmp_path.iterdir())
