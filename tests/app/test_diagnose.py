"""The command ``diagnose``: a page, a text and JSON about a model, with its data and without."""

import json

import pytest
import torch

import scoreexp as se
from scoreexp.app.launch import run_app
from scoreexp.core.streams import generator
from scoreexp.data import SwissRoll
from scoreexp.diagnose import SCHEMA
from scoreexp.runs.checkpoint_file import write_checkpoint
from scoreexp.runs.model import model_record

NETWORK = {"_target_": "scoreexp.networks.ExactPosteriorMean"}
FEW = ["samples=8", "n=16", "levels=[0.1,0.5]", "device=cpu"]


def memorised(folder, data, x=None):
    """A checkpoint of the model that has memorised ``x``, 50 points by default."""
    config = {
        "network": NETWORK,
        "precond": {"_target_": "scoreexp.denoisers.X0Prediction"},
        "schedule": {"_target_": "scoreexp.schedules.VP"},
        "sampler": {
            "_target_": "scoreexp.samplers.DDIM",
            "grid": {"_target_": "scoreexp.samplers.UniformGrid", "steps": 30},
        },
        "data": data,
    }
    x = torch.from_numpy(SwissRoll(points=50).split("train").values) if x is None else x
    path = folder / "checkpoints" / "best.ckpt"
    state = {"denoiser.network.images": x}
    write_checkpoint({"state_dict": state, "scoreexp": model_record(config, tuple(x.shape[1:]), None)}, path)
    return path


def diagnosed(path, out, *overrides):
    arguments = [f"ckpt={path}", f"out={out}", *FEW, *overrides]
    return run_app("diagnose", "scoreexp.diagnose:run", schema=SCHEMA, argv=arguments)


def test_a_memorising_model_is_found_out_and_agrees_with_itself(tmp_path):
    path = memorised(tmp_path, {"_target_": "scoreexp.data.SwissRoll", "points": 50})
    assert diagnosed(path, tmp_path / "page", f"other={path}") == 0
    found = json.loads((tmp_path / "page" / "diagnosis.json").read_text())["findings"]
    assert set(found) == {
        "score_error", "training_over_held_out", "nearest_neighbours", "calibration", "jacobian_spectrum",
        "jacobian_asymmetry", "fokker_planck_residual", "likelihood_by_level", "split_half_disagreement",
    }  # fmt: skip
    assert found["nearest_neighbours"]["values"]["share of copies"][0]["value"] > 0.5
    assert found["score_error"]["values"]["relative squared error"][0]["value"] > 0.3  # of the exact density
    assert found["jacobian_asymmetry"]["values"]["asymmetry"][1]["value"] < 1e-6
    assert [row["value"] for row in found["split_half_disagreement"]["values"]["disagreement"]] == [0, 0]
    page = (tmp_path / "page" / "diagnosis.html").read_text()
    assert all(finding["title"] in page for finding in found.values())
    assert page.count("data:image/png") == 9  # 8 with an axis, and the points beside their nearest ones
    assert (tmp_path / "page" / "nearest_neighbours_points.png").is_file()
    assert (
        page.count("<td>0.5</td>") == 7
    )  # one table for all values of a finding: not a line for each of three
    assert "too few samples" in (tmp_path / "page" / "diagnosis.txt").read_text()


def test_without_its_data_it_says_what_can_be_said_and_why_no_more(tmp_path, capsys):
    missing = {"_target_": "scoreexp.data.MNIST", "root": str(tmp_path / "nowhere")}
    images = torch.zeros(2, 1, 28, 28)
    assert diagnosed(memorised(tmp_path, missing, images), tmp_path / "page", "levels=[0.5]") == 0
    found = json.loads((tmp_path / "page" / "diagnosis.json").read_text())
    assert set(found["findings"]) == {"jacobian_spectrum", "jacobian_asymmetry", "fokker_planck_residual"}
    assert found["unsaid"]["error of the score"] == "needs data: give data=NAME"
    title, reason = next(iter(found["unsaid"].items()))  # the cause of the others is said first
    assert title == "anything that needs the data of the run"
    assert f"data.root={tmp_path / 'nowhere'}" in reason
    assert "+data.KEY=VALUE" in reason
    assert "not said" in capsys.readouterr().out


def test_the_empirical_optimum_is_the_reference_of_data_without_a_density():
    data = torch.randn(20, 2, generator=generator(0, "data"))
    model = se.denoisers.OracleDenoiser(se.oracles.EmpiricalImages(data), se.schedules.VP())
    found = {f.name: f for f in se.diagnose(model, data, samples=20, n=16, levels=[0.3]).findings}
    assert found["score_error"].series["relative squared error"][0.3].value < 1e-8
    assert "memorised" in found["score_error"].meaning
    assert found["nearest_neighbours"].series["share of copies"][0.0].value > 0.9
    assert any("training samples" in remark for remark in found["calibration"].remarks)


def test_classes_and_the_table_of_the_run_give_the_findings_that_need_them():
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    x = 0.3 * torch.randn(60, 2, generator=generator(0, "data")) + (2.0 * labels - 1)[:, None]
    model = se.denoisers.Denoiser(
        se.networks.MLP(event_shape=(2,), width=16, blocks=1), se.denoisers.EDMPrediction(), se.schedules.VP()
    )
    history = [
        {"step": s, "val/ssim": v, "val/population_bits": 1 - v} for s, v in ((10, 0.2), (20, 0.4), (30, 0.3))
    ]
    told = []
    found = se.diagnose(
        model, x[:40], held_out=x[40:], labels=labels[:40], held_out_labels=labels[40:], history=history, samples=4,
        n=20, levels=[0.2, 1.0], diti_steps=2, progress=lambda *where: told.append(where),
    )  # fmt: skip
    assert told[0] == (0, 14, "error of the score")
    assert told[-1] == (13, 14, "stopping by SSIM")
    findings = {f.name: f for f in found.findings}
    assert {"task_metric", "certified_radius", "feature_probes", "diti_blocks", "ssim_stopping"} <= set(
        findings
    )
    assert findings["task_metric"].series["accuracy on noisy data"][0.2].value == 1
    assert findings["task_metric"].units["gain in PSNR"] == "dB"
    assert 0 < findings["diti_blocks"].series["loss"][0.2].value < 2
    assert 0.1 < findings["certified_radius"].series["mean radius, classifier of noisy data"][0.2].value < 0.4
    assert (
        "best SSIM is at step 20, the least val/population_bits at step 20"
        in findings["ssim_stopping"].meaning
    )
    with pytest.raises(ValueError, match="3 labels for 40 samples"):
        se.diagnose(model, x[:40], labels=labels[:3], samples=2, n=2, levels=[1.0])


def test_what_levels_and_samples_do_not_give_is_said():
    law = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    model = se.denoisers.OracleDenoiser(law, se.schedules.VE(sigma_min=0.01, sigma_max=50.0))
    x = law.sample(4, generator(0, "data"))
    found = se.diagnose(model, x[:2], held_out=x[2:], samples=2, n=1000, levels=[0.5, 100.0])
    assert (
        found.unsaid["anything at noise level 100"]
        == "the schedule has 0.01 to 50, and the levels here are 0.5"
    )
    assert "other=FILE" in found.unsaid["agreement with the other model"]
    assert "callbacks=population" in found.unsaid["stopping by SSIM"]
    ratio = next(f for f in found.findings if f.name == "training_over_held_out")
    needed = ratio.series["ratio"][0.5].needed(0.1)
    assert ratio.remarks == [
        "too few samples for ratio at noise level 0.5: its standard error is above a tenth; "
        f"{needed} would bring it there (n={needed}, of data that have as many)"
    ]


def test_a_model_of_other_samples_is_no_other_half(tmp_path, capsys):
    path = memorised(tmp_path, {"_target_": "scoreexp.data.SwissRoll", "points": 50})
    images = path.with_name("images.ckpt")
    record = model_record(
        {"network": NETWORK, "precond": {"_target_": "scoreexp.denoisers.X0Prediction"},
         "schedule": {"_target_": "scoreexp.schedules.VP"}}, (1, 2, 2), None,
    )  # fmt: skip
    state = {"denoiser.network.images": torch.zeros(3, 1, 2, 2)}
    write_checkpoint({"state_dict": state, "scoreexp": record}, images)
    assert diagnosed(path, tmp_path / "page", f"other={images}") == 1
    assert "samples of shape (1, 2, 2), ckpt of (2,)" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["n=1"], "n=1 must be"),
        (["data=swiss_roll", "other=/nowhere.ckpt"], "/nowhere.ckpt"),
        (["samples=0"], "samples=0 must be"),
        (["levels=[0.1,-1]"], "levels=[0.1, -1]"),
        (["levels=[]"], "levels=[] has no noise level"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, overrides, said):
    path = memorised(tmp_path, {"_target_": "scoreexp.data.SwissRoll", "points": 50})
    assert diagnosed(path, tmp_path / "page", *overrides) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "page").exists()
