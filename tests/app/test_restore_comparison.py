"""Restorers side by side: what is equal, the exact posterior mean, and the table that goes on where it was stopped."""

import argparse
import json

import pytest
import torch

import scoreexp as se
from scoreexp.app.commands import restore_comparison
from scoreexp.app.commands.restore_comparison import EXACT, Budget, Row, compare_restorers, steps_for, table
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.observations import GaussianNoise, Identity, Observation, RandomMask
from scoreexp.restorers.exact import exact_posterior_mean
from scoreexp.schedules import VP

SHAPE, SIGMA = (1, 4, 4), 0.3


class FakeResult:
    """A restoration of 0.1 s and 0.02 s a step."""

    def __init__(self, observation, steps):
        self.x, self.nfe, self.seconds = observation.y, steps, 0.1 + 0.02 * steps


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MIXTURE = GaussianMixture(torch.tensor([0.3, 0.7]), drawn(2, *SHAPE), torch.tensor([0.1, 0.4]))
COVARIANCE = drawn(16, 16) @ drawn(16, 16).T / 16


@pytest.mark.parametrize(
    "oracle", [Gaussian(drawn(*SHAPE), COVARIANCE), MIXTURE, EmpiricalImages(drawn(5, *SHAPE))]
)
def test_under_the_identity_the_exact_answer_is_the_oracles(oracle):
    y, one = drawn(3, *SHAPE, seed=1), torch.ones(3, dtype=torch.float64)
    observation = Observation(y, Identity(), GaussianNoise(SIGMA))
    found = exact_posterior_mean(OracleDenoiser(oracle, VP()), observation)
    torch.testing.assert_close(found, oracle.posterior_mean(y, one, SIGMA * one), rtol=1e-9, atol=1e-9)


def test_the_exact_answer_behind_a_mask_is_that_of_the_normal_equations():
    """``(C^-1 + A^T A / sigma^2) x = C^-1 m + A^T y / sigma^2``."""
    mean, mask = drawn(*SHAPE), RandomMask(size=4)
    y = drawn(2, 1, 8, seed=2)
    observation = Observation(y, mask, GaussianNoise(SIGMA))
    found = exact_posterior_mean(OracleDenoiser(Gaussian(mean, COVARIANCE), VP()), observation)
    precision = torch.linalg.inv(COVARIANCE)
    system = precision + torch.diag(mask.seen.double().flatten()) / SIGMA**2
    right = precision @ mean.flatten() + mask.adjoint(y).flatten(1) / SIGMA**2
    torch.testing.assert_close(found.flatten(1), torch.linalg.solve(system, right.T).T, rtol=1e-7, atol=1e-7)


def test_an_exact_answer_is_refused_for_another_size_and_another_prior():
    observation = Observation(drawn(1, 1, 5, 5), Identity(), GaussianNoise(SIGMA))
    with pytest.raises(ValueError, match="5, 5"):
        exact_posterior_mean(OracleDenoiser(EmpiricalImages(drawn(5, *SHAPE)), VP()), observation)
    network = se.networks.MLP(event_shape=(2,), width=8)
    model = se.denoisers.Denoiser(network, se.denoisers.VPrediction(), VP())
    with pytest.raises(ValueError, match="not for Denoiser"):
        exact_posterior_mean(model, observation)


def test_equal_evaluations_and_the_exact_answer_ahead_of_all():
    prior = Gaussian(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.2))
    x = prior.sample(8, torch.Generator().manual_seed(0)).float()
    names = ["dds", "mmps", "stsl", "renoise"]
    rows = list(
        compare_restorers(OracleDenoiser(prior, VP()), [x], names, ["inpaint"], Budget(nfe=9), memory=False)
    )
    assert [row.restorer for row in rows] == [EXACT, *names]
    assert [row.nfe for row in rows] == [0, 9, 9, 9, 0]
    assert (rows[1].steps, rows[3].steps) == (9, 5)  # the second evaluates twice per step but the last
    assert all(row.psnr < rows[0].psnr for row in rows[1:4])
    assert "Renoise denoises" in rows[4].reason
    assert "| inpaint | renoise | – |" in table(rows)


def test_a_picture_that_does_not_suit_the_last_task_is_refused_before_the_first_row():
    prior = OracleDenoiser(Gaussian(torch.zeros(1, 9, 9), torch.full((1, 9, 9), 0.2)), VP())
    rows = compare_restorers(
        prior,
        [torch.zeros(1, 1, 9, 9)],
        ["dds"],
        ["inpaint", "super_resolution"],
        Budget(nfe=2),
        memory=False,
    )
    with pytest.raises(ValueError, match="factor=4 does not divide the size 9 x 9"):
        next(rows)


def test_equal_seconds_are_turned_into_steps(monkeypatch):
    """By the seconds of two short runs: here 0.1 s and 0.02 s a step, of a batch of 2."""
    monkeypatch.setattr(
        restore_comparison, "restore", lambda o, m, restorer: FakeResult(o, len(restorer.grid(VP())))
    )
    x = torch.zeros(2, 1, 8, 8)
    prior = OracleDenoiser(Gaussian(torch.zeros(1, 8, 8), torch.ones(1, 8, 8)), VP())
    *_, row = compare_restorers(prior, [x], ["dds"], ["denoise"], Budget(seconds=1.0), memory=False)
    assert row.steps == 95


def test_steps_for_an_equal_number_of_evaluations():
    assert [steps_for(name, 50) for name in ("dds", "stsl", "averaged")] == [50, 25, 6]


def test_the_table_of_the_benchmark_goes_on_where_it_was_stopped(tmp_path):
    benchmark = pytest.importorskip("benchmarks.restoration", reason="benchmarks are not part of the package")
    file, headers = tmp_path / "rows.jsonl", {"smooth": {"ckpt": None, "count": 2, "side": 8}}
    prior = Gaussian(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.2))
    model = OracleDenoiser(prior, VP())
    data = {"smooth": prior.sample(2, torch.Generator().manual_seed(0)).float()}
    asked = argparse.Namespace(nfe=[2], tasks=["denoise"], restorers=["dds"], batch=2, memory=False)
    cells = list(benchmark.measure(model, data, asked, []))
    lines = [json.dumps({**cell._asdict(), "row": cell.row._asdict()}) for cell in cells]
    first = json.dumps({"data": "smooth", "header": headers["smooth"]})
    file.write_text("\n".join([first, *lines, lines[0][:20]]))
    others = {"other": {"ckpt": "other"}}
    assert benchmark.stored(file, headers) == benchmark.stored(file, others) == (headers, cells)
    asked.restorers = ["dds", "ddrm"]
    assert [cell.row.restorer for cell in benchmark.measure(model, data, asked, cells)] == ["ddrm"]
    with pytest.raises(ValueError, match="another --out"):
        benchmark.stored(file, {"smooth": {**headers["smooth"], "count": 3}})


def test_the_table_of_the_benchmark_has_restorers_by_tasks_and_the_best_in_bold():
    benchmark = pytest.importorskip("benchmarks.restoration", reason="benchmarks are not part of the package")
    rows = [
        Row(EXACT, "inpaint", psnr=31.0),
        Row("dds", "inpaint", 9, 25.0, 0.8, 9, 0.5),
        Row("ddrm", "inpaint", 9, 26.0, 0.7, 9, 0.25),
        Row("ddrm", "denoise", 9, 30.0, 0.9, 9, 0.75),
        Row("dds", "denoise", reason="another"),
    ]
    headers = {"kodak24": {"ckpt": "prior", "count": 3, "side": 128}}
    cells = [benchmark.Cell("kodak24", 10, row) for row in rows]
    title, _, *lines = benchmark.page(headers, cells).splitlines()
    assert title == "**kodak24, 3 of 128 x 128 pixels, 10 evaluations**"
    assert lines == [
        "| restorer | inpaint | denoise | NFE | s/picture |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| {EXACT} | 31.00 | – | 0 | 0.00 |",
        "| ddrm | **26.00, 0.700** | **30.00, 0.900** | 9 | 0.50 |",
        "| dds | 25.00, 0.800 | – | 9 | 0.50 |",
    ]


def test_models_of_other_libraries_are_rows_beside_each_other(tmp_path):
    """Two DRUNets that return one grey: their error on another grey is known."""
    from scoreexp.app.restorer_table import main
    from scoreexp.figures.images import save_pixels

    network = se.bridge.DRUNet(event_shape=(1, 8, 8), widths=(1, 1, 1, 1), blocks=1, bias=True)
    for name, grey in (("a", 0.6), ("b", 0.51)):
        for parameter in network.parameters():
            parameter.data.zero_()
        network.m_tail.bias.data.fill_(grey)
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    save_pixels(torch.full((1, 16, 16), 128 / 255), tmp_path / "grey.png")
    argv = [
        "restorers=[posterior_mean]", "tasks=[denoise]", f"input={tmp_path}/grey.png", "nfe=1", "device=cpu",
        f"ckpt=[{tmp_path}/a.pth,{tmp_path}/b.pth]", f"run_dir={tmp_path}/run",
    ]  # fmt: skip
    assert main(argv) == 0
    rows = json.loads((tmp_path / "run" / "restorers.json").read_text())["rows"]
    assert [row["restorer"] for row in rows] == ["posterior_mean, a.pth", "posterior_mean, b.pth"]
    assert [row["psnr"] for row in rows] == pytest.approx(
        [-20 * torch.tensor(abs(grey - 128 / 255)).log10().item() for grey in (0.6, 0.51)], abs=1e-3
    )
