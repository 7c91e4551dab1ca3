"""metrics.csv: rows by step, continued on resume."""

import csv

from scoreexp.lit.csv_logger import CSVLogger


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_values_of_one_step_share_a_row_and_new_columns_are_added(tmp_path):
    log = CSVLogger(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 1.0}, 10)
    log.log_metrics({"ssim": 0.5}, 10)
    log.log_metrics({"loss": 0.5}, 20)
    log.log_metrics({"loss": 0.25, "lr": 0.1}, 30)
    log.finalize("success")
    assert read(tmp_path / "metrics.csv") == [
        {"step": "10", "loss": "1.0", "ssim": "0.5", "lr": ""},
        {"step": "20", "loss": "0.5", "ssim": "", "lr": ""},
        {"step": "30", "loss": "0.25", "ssim": "", "lr": "0.1"},
    ]


def test_rows_reach_the_disk_while_the_run_goes_on(tmp_path):
    log = CSVLogger(tmp_path / "metrics.csv")
    for step in range(1, 5):
        log.log_metrics({"loss": float(step)}, step)
    assert [r["step"] for r in read(tmp_path / "metrics.csv")] == ["1", "2", "3"], (
        "all but the row still open"
    )


def test_resumed_table_has_neither_gaps_nor_duplicates(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CSVLogger(path)
    for step in range(1, 8):
        first.log_metrics({"loss": float(step)}, step)
    first.finalize("failed")
    second = CSVLogger(path)
    second.continue_from(5)
    for step in range(6, 10):
        second.log_metrics({"loss": 10.0 * step}, step)
    second.finalize("success")
    assert [(r["step"], r["loss"]) for r in read(path)] == [
        *((str(n), f"{n}.0") for n in range(1, 6)),
        *((str(n), f"{10 * n}.0") for n in range(6, 10)),
    ]
    assert len(second.rows) == 9
