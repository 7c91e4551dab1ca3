"""Reports from synthetic run folders: what is counted, what is compared, what is said."""

import csv
import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from jinja2 import UndefinedError

from scoreexp.core.errors import UserError
from scoreexp.runs.reporting import COMPARISON_FILE, Plan, page, write_report
from scoreexp.runs.reporting.charts import ticks
from scoreexp.runs.reporting.evaluations import evaluations
from scoreexp.runs.reporting.reading import find_runs
from scoreexp.runs.reporting.runs import slug
from scoreexp.runs.reporting.settings import differences
from scoreexp.runs.reporting.summary import Spread, median_curve, tables
from scoreexp.runs.reporting.wording import card_text

VOID = {"meta", "img", "br", "link", "line", "rect", "circle", "polyline"}


class Balanced(HTMLParser):
    """Fails on tags that are not closed; gathers the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def text_of(page: Path) -> str:
    parser = Balanced()
    parser.feed(page.read_text())
    assert parser.open == []
    assert not {"script", "link", "iframe"} & set(parser.tags), "self-contained"
    return " ".join(" ".join(parser.text).split())


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    curve=((20, 1.0, 0.5), (40, 2.0, 0.995)),
    before: float = 0.0,
    done: bool = True,
    status: dict | None = None,
    evaluation: dict | None = None,
    device: str = "cpu, 2 threads",
    **config,
) -> Path:
    """A run whose evaluations are (step, training seconds, global SSIM); each took 10 s, which do not count."""
    folder.mkdir(parents=True)
    tree = {
        "name": "run",
        "seed": seed,
        "run_dir": str(folder),
        "data": {
            "_target_": "scoreexp.data.Photo",
            "size": 32,
            "batch_size": 4,
            "seed": seed,
            "validate_on": "train",
        },
        "model": {"_target_": "scoreexp.lit.DDPM"},
        "embedding": None,
        "callbacks": {
            "monitor": {"sigma": 0.506, "confirm": 2},
            "stop": {"monitor": "val/ssim_global", "target": 0.99},
        },
    }
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key] |= value
        else:
            tree[key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    manifest = {
        "started": "2026-01-02T03:04:05+0000",
        "device": device,
        "command": ["python", "-m", "scoreexp.train", f"seed={seed}"],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    columns = [
        "step",
        "time/train",
        "time/evaluate",
        "time/total",
        "val/ssim_global",
        "val/ssim",
        "val/psnr",
        "val/nfe",
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i, (step, seconds, value) in enumerate(curve, start=1):
            evaluate = 10.0 * i
            writer.writerow(
                [step, seconds, evaluate, before + seconds + evaluate, value, value - 0.1, 20.0, 10]
            )
    if done:
        seconds = ({"solve": before} if before else {}) | {
            "train": curve[-1][1],
            "evaluate": 10.0 * len(curve),
        }
        metrics = {
            "status": "finished",
            "step": curve[-1][0],
            "metrics": {},
            "seconds": seconds,
            "parameters": 1234567,
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if status is not None:
        (folder / "status.json").write_text(json.dumps(status))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def make_comparison(root: Path, curves: dict[str, list], **plan) -> Plan:
    """Methods to the curve of each of their seeds; None is a run that has not started."""
    seeds = list(range(max(len(c) for c in curves.values())))
    made = Plan(
        name="demo",
        methods={method: [f"model={method}"] for method in curves},
        seeds=seeds,
        monitor="val/ssim_global",
        target=0.99,
        **{"baseline": next(iter(curves)), **plan},
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / COMPARISON_FILE).write_text(json.dumps(asdict(made)))
    for method, of_seeds in curves.items():
        for seed, curve in enumerate(of_seeds):
            if curve is not None:
                make_run(
                    made.folder(root, method, seed),
                    seed=seed,
                    curve=curve,
                    status={"status": "done"},
                    name=method,
                )
    return made


def reaching(*seconds):
    """One curve per seed that is at 0.5 at half of its seconds and reaches 0.99 at the end."""
    return [((10, s / 2, 0.5), (20, s, 0.992)) for s in seconds]


def test_medians_ranges_and_speed_ups_by_hand(tmp_path):
    plan = make_comparison(tmp_path, {"slow": reaching(30, 60, 90), "fast": reaching(10, 15, 40)})
    (table,) = tables(find_runs([tmp_path])[0], plan)
    slow, fast = table.rows
    assert slow.seconds == Spread(60, 30, 90)
    assert fast.seconds == Spread(15, 10, 40), "evaluation does not count"
    assert table.speed_ups["fast"].ratio == pytest.approx(60 / 15)
    assert table.speed_ups["slow"].ratio == 1
    said = text_of(write_report([tmp_path], tmp_path))
    assert "Fastest to the target: fast , 15.0 s in the median." in said
    assert "Its range over seeds overlaps with that of slow" in said
    assert "4×" in said
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds_to_target"]) for row in rows if row["method"] == "fast"] == [10, 15, 40]
    assert {row["parameters"] for row in rows} == {"1234567"}


def test_precomputation_counts_and_the_split_is_kept(tmp_path):
    make_run(tmp_path / "a", before=7.0, curve=((10, 1.0, 0.5), (20, 3.0, 0.99)))
    (table,) = tables(find_runs([tmp_path])[0])
    (row,) = table.rows
    assert row.seconds.median == pytest.approx(10)
    assert row.precompute.median == pytest.approx(7)
    assert row.reached == 1, "exactly the target is enough"


def test_runs_that_miss_the_target_bound_the_speed_up(tmp_path):
    never = [((10, 50.0, 0.5), (20, 100.0, 0.7))] * 2
    plan = make_comparison(
        tmp_path, {"base": never, "ours": reaching(20, 30), "other": [*never[:1], *reaching(4)]}
    )
    (table,) = tables(find_runs([tmp_path])[0], plan)
    base, ours, other = table.rows
    assert (base.reached, ours.reached, other.reached) == (0, 2, 1)
    assert base.seconds.median == float("inf")
    assert table.speed_ups["ours"] == (pytest.approx(100 / 25), ">")
    assert "base" not in table.speed_ups
    assert "> 4×" in text_of(write_report([tmp_path], tmp_path))


def test_a_value_that_is_to_fall_reaches_its_target_from_above(tmp_path):
    stop = {"monitor": "val/ssim_global", "target": 0.3, "mode": "min"}
    make_run(tmp_path / "a", curve=((10, 1.0, 0.9), (20, 2.0, 0.3)), callbacks={"stop": stop})
    (table,) = tables(find_runs([tmp_path])[0])
    assert table.rows[0].seconds.median == 2
    assert "≤ 0.3" in text_of(write_report([tmp_path], tmp_path))


def test_the_best_of_a_distance_is_the_smallest_and_its_runs_need_no_mode(tmp_path):
    stop = {"monitor": "val/score_error", "target": 0.5, "mode": None}
    for name, values in {"a": (0.9, 0.4), "b": (0.9, 0.3)}.items():
        make_run(tmp_path / name, name=name, callbacks={"stop": stop})
        rows = "\n".join(f"{step},{step},0,{value}" for step, value in enumerate(values, start=1))
        (tmp_path / name / "metrics.csv").write_text(
            f"step,time/train,time/evaluate,val/score_error\n{rows}\n"
        )
    (table,) = tables(find_runs([tmp_path])[0])
    assert [row.seconds.median for row in table.rows] == [2, 2]
    assert table.at_end.best(table.rows) == {"b"}


def test_a_mode_that_follows_from_the_metric_and_a_folder_make_no_other_method(tmp_path):
    for name, mode in (("a", "max"), ("b", None)):
        stop = {"monitor": "val/ssim_global", "target": 0.99, "mode": mode}
        make_run(tmp_path / name, callbacks={"stop": stop, "distribution": {"folder": str(tmp_path / name)}})
    assert [run.method for run in find_runs([tmp_path])[0]] == ["run", "run"]


def test_a_busy_machine_is_said(tmp_path):
    make_comparison(tmp_path, {"a": reaching(1)}, load=3.0)
    assert "load average 3.0 per core" in text_of(write_report([tmp_path], tmp_path))


def test_results_on_other_data_targets_or_hardware_are_not_ranked_together(tmp_path):
    make_run(tmp_path / "a", name="a")
    make_run(tmp_path / "b", name="b", data={"size": 64})
    make_run(tmp_path / "c", name="c", callbacks={"monitor": {"sigma": 0.1, "confirm": 2}})
    make_run(tmp_path / "d", name="d", device="cuda")
    make_run(tmp_path / "e", name="e", data={"batch_size": 128, "num_workers": 2})  # a method's own business
    found = tables(find_runs([tmp_path])[0])
    assert sorted(sorted(row.method for row in table.rows) for table in found) == [
        ["a", "e"],
        ["b"],
        ["c"],
        ["d"],
    ]
    overview = tmp_path / "b" / "distribution" / "step_0000040.png"
    overview.parent.mkdir()
    overview.write_bytes(b"PNG")
    said = text_of(write_report([tmp_path], tmp_path))
    assert "Generated samples b Seed 0, step 40" in said
    assert "during training: Photo · 64 × 64 pixels" in said
    assert "separate tables" in said
    assert "data.size (32 / 64)" in said
    assert "cuda" in said


def test_unfinished_failed_and_missing_runs_are_said_and_do_not_count(tmp_path):
    plan = make_comparison(tmp_path, {"a": reaching(10, 20), "b": [*reaching(5), None]})
    make_run(plan.folder(tmp_path, "b", 1).parent / "elsewhere")  # no job of the comparison
    make_run(
        tmp_path / "x" / "seed_0",
        done=False,
        curve=((10, 3.0, 0.6),),
        status={"status": "failed", "error": "out of <memory>"},
    )
    stored = json.loads((tmp_path / COMPARISON_FILE).read_text())
    stored["methods"]["x"] = []
    (tmp_path / COMPARISON_FILE).write_text(json.dumps(stored))
    (table,) = tables(*find_runs([tmp_path]))
    assert table.rows[-1].method == "x"
    assert table.rows[-1].finished == []
    assert table.rows[-1].spent is None
    said = text_of(write_report([tmp_path], tmp_path))
    assert "runs finished 3 of 6" in said
    assert "2 of 6 runs have not been started and do not count: b seed 1, x seed 1." in said
    assert "1 of 6 runs failed and do not count: x seed 0." in said
    assert "out of <memory>" in said


def test_a_page_without_a_finished_run_says_so(tmp_path):
    make_comparison(tmp_path, {"a": [None], "b": [None]})
    said = text_of(write_report([tmp_path], tmp_path))
    assert "No run has finished." in said
    assert "seconds to target" not in said
    (tmp_path / "empty").mkdir()
    assert "no run in these folders" in text_of(write_report([tmp_path / "empty"], tmp_path / "out"))


def make_named(root: Path, name: str) -> Path:
    """A report in which all text from outside is ``name``."""
    plan = make_comparison(
        root, {name: reaching(1), "b": reaching(2)}, title=name, machine=name, images=[name, "b.png"]
    )
    evaluation = {"values": {name: 1.0}, "cards": {name: {name: name}}, "caveats": {name: name}}
    for method in plan.methods:
        for image in plan.images:
            failed = {"status": "failed", "error": name, "hostname": name, "command": f"python -m {name}"}
            folder = plan.folder(root, method, 0, image)
            own = {"name": method, "lr": f"{name} {method}", "data": {"name": name}}
            make_run(
                folder,
                device=name,
                evaluation=evaluation,
                status=failed if (method, image) == ("b", "b.png") else None,
                **own,
            )
            (folder / "pictures" / "last").mkdir(parents=True)
            (folder / "pictures" / "last" / "denoised.png").write_bytes(b"picture")
    return write_report([root], root)


@pytest.mark.parametrize(
    "evil", ["<script>alert('x')</script>", '<b>&"', '"><img src=x onerror=y>', "&lt;i&gt;"]
)
def test_text_from_outside_is_shown_as_it_is(evil, tmp_path):
    tags, texts = {}, {}
    for name in (evil, "harmless"):
        parser = Balanced()
        parser.feed(make_named(tmp_path / slug(name), name).read_text())
        tags[name], texts[name] = parser.tags, " ".join(parser.text)
    assert tags[evil] == tags["harmless"]
    assert texts[evil].count(evil) == texts["harmless"].count("harmless") > 20


def test_different_methods_never_share_a_folder():
    assert "/" not in slug("<script>alert('x')</script>")
    assert slug("a b") != slug("a_b")


def test_a_template_that_asks_for_what_is_not_there_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "report.html.jinja").write_text("{{ page.titel }}")
    monkeypatch.setattr(page, "TEMPLATES", tmp_path)
    with pytest.raises(UndefinedError, match="titel"):
        page.render(page.page_of([]))


def test_values_with_different_cards_stand_apart(tmp_path):
    first = {
        "values": {"fid": 10.0},
        "cards": {"fid": {"n": 50000}},
        "caveats": {"fid": "one seed of sampling"},
    }
    second = {"values": {"fid": 20.0}, "cards": {"fid": {"n": 5000}}}
    make_run(tmp_path / "a", name="a", evaluation=first)
    make_run(tmp_path / "b", name="b", evaluation=second)
    make_run(tmp_path / "c", name="c", evaluation=second | {"values": {"fid": 30.0}})
    apart = evaluations(find_runs([tmp_path])[0])
    assert [sorted(value.values) for value in apart] == [["a"], ["b", "c"]]
    said = text_of(write_report([tmp_path], tmp_path))
    assert said.count("not comparable with them") == 2
    assert "n 50000" in said
    assert "10 – 10" not in said  # one run has no range
    assert "one seed of sampling" in said


def test_only_differing_settings_are_listed():
    a = {"seed": 0, "run_dir": "x", "network": {"channels": 32}, "embedding": None, "lr": 1e-3}
    spectral = {"_target_": "scoreexp.embedding.ImageEmbedding", "kept": 10, "solver": {"tol": 1e-6}}
    b = {"seed": 1, "run_dir": "y", "network": {"channels": 32}, "embedding": spectral, "lr": 2e-4}
    assert differences({"a": a, "b": b}) == {
        "embedding": {"a": "null", "b": "ImageEmbedding"},
        "lr": {"a": "0.001", "b": "0.0002"},
    }
    c = b | {"embedding": spectral | {"kept": 5}}
    assert differences({"a": a, "b": b, "c": c})["embedding.kept"] == {"a": "–", "b": "10", "c": "5"}


def test_runs_of_a_sweep_are_named_by_what_differs(tmp_path):
    for i, (embedding, seed) in enumerate([(None, 0), (None, 1), ({"_target_": "a.Spectral"}, 0)]):
        make_run(tmp_path / str(i), seed=seed, embedding=embedding)
    methods = [run.method for run in find_runs([tmp_path])[0]]
    assert methods == ["run embedding=null", "run embedding=null", "run embedding=Spectral"]


def test_a_card_shortens_digests_and_never_a_number():
    card = {
        "tol": 1.2345678901234e-05,
        "seed": 123456789012,
        "at": [0.1 + 0.2, 1],
        "data": f"sha:{'ab12' * 4}",
    }
    said = "tol 1.2345678901234e-05, seed 123456789012, at [0.30000000000000004, 1], data sha:ab12ab12"
    assert card_text(card) == said


def test_one_value_that_is_not_a_number_has_no_range(tmp_path):
    make_run(tmp_path / "a", evaluation={"values": {"fid": float("nan")}, "cards": {}})
    assert "run nan –" in (said := text_of(write_report([tmp_path], tmp_path)))
    assert "nan – nan" not in said


def test_a_row_that_is_still_being_written_is_left_out(tmp_path):
    folder = make_run(tmp_path / "a", done=False)
    with (folder / "metrics.csv").open("a") as file:
        file.write("60,3.0,30")
    (run,) = find_runs([folder])[0]
    assert [row["step"] for row in run.rows] == [20, 40]
    assert run.state == "unfinished"
    assert run.seconds == {"train": 2.0, "evaluate": 20.0}


def test_a_damaged_file_is_named(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json cannot be read"):
        write_report([tmp_path], tmp_path)
    with pytest.raises(UserError, match="no folder"):
        write_report([tmp_path / "nowhere"], tmp_path)


def test_the_median_curve_holds_ended_runs_at_their_last_value():
    curves = [[(0, 0.0), (10, 1.0)], [(0, 0.0), (20, 1.0)], [(0, 0.0), (40, 1.0)]]
    median = dict(median_curve(curves, points=5))  # to the median end, 20
    assert median == pytest.approx({0: 0.0, 5: 0.25, 10: 0.5, 15: 0.75, 20: 1.0})
    assert median_curve([]) == []


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 1.0), (0.0, 37.0), (0.0, 12345.0), (0.97, 0.98)])
def test_ticks_are_round_inside_and_neither_few_nor_many(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert low - 1e-9 <= found[0] <= found[-1] <= high + 1e-9
    assert all(len(f"{value:g}") <= 6 for value in found)
