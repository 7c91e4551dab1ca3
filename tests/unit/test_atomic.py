"""atomic_write: all of the new content or nothing of it."""

import os

import pytest

from scoreexp.system.atomic import atomic_write


def test_new_file_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_replaces_an_existing_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_long_names_of_any_script_fit(tmp_path):
    path = tmp_path / ("é" * 120 + ".png")  # 244 bytes in UTF-8
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == [path.name]


def test_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to("real.txt")
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_refusals_name_the_path(tmp_path):
    def write(path):
        with atomic_write(path):
            pass

    with pytest.raises(FileNotFoundError, match=r"create .*missing first"):
        write(tmp_path / "missing" / "a.txt")
    with pytest.raises(FileExistsError, match="not a file"):
        write(tmp_path)
    with pytest.raises(FileExistsError, match="not a file"):
        write(os.devnull)
    with pytest.raises(FileNotFoundError, match="nothing was written"):
        write(tmp_path / "a.txt")
    assert os.listdir(tmp_path) == []
