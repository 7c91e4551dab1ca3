"""What is written as JSON is JSON, and comes back as it was."""

import json
import math

import pytest

from scoreexp.core.errors import UserError
from scoreexp.system.json_files import read_json, write_json


def strict(path):
    """The content as a reader that keeps to RFC 8259 has it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_not_finite_is_null_with_a_reason_and_comes_back(tmp_path):
    data = {
        "metrics": {"val/psnr": math.inf, "a~b": -math.inf, "val/ssim": 1.0},
        "list": [1, [math.nan, 2.5]],
        "text": "Infinity",
    }
    write_json(tmp_path / "a.json", data)
    stored = strict(tmp_path / "a.json")
    assert stored["metrics"] == {"val/psnr": None, "a~b": None, "val/ssim": 1.0}
    assert stored["not_finite"] == {
        "/metrics/val~1psnr": "infinite",
        "/metrics/a~0b": "minus infinite",
        "/list/1/0": "not a number",
    }
    found = read_json(tmp_path / "a.json")
    assert math.isnan(found["list"][1].pop(0))
    assert found == data | {"list": [1, [2.5]]}


def test_finite_data_need_no_reasons(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1.5, None, True]})
    assert strict(tmp_path / "a.json") == {"x": [1.5, None, True]} == read_json(tmp_path / "a.json")


def test_files_of_earlier_builds_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"val/psnr": Infinity}')
    assert read_json(tmp_path / "a.json") == {"val/psnr": math.inf}


@pytest.mark.parametrize(
    "reasons",
    [
        {"/gone": "infinite"},
        {"/x/y/0": "infinite"},
        {"": "infinite"},
        {"/x": "huge"},
        {"/x": ["infinite"]},
        {"/z": "infinite"},
        3,
    ],
)
def test_reasons_that_fit_nothing_change_nothing(tmp_path, reasons):
    (tmp_path / "a.json").write_text(json.dumps({"x": None, "z": 1, "not_finite": reasons}))
    assert read_json(tmp_path / "a.json") == {"x": None, "z": 1}


def test_a_missing_file_is_empty_and_a_damaged_one_is_refused(tmp_path):
    assert read_json(tmp_path / "a.json") == {}
    for text in ("[1]", "{", "\xff"):
        (tmp_path / "a.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="delete the damaged file"):
            read_json(tmp_path / "a.json")
