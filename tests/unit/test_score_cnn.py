"""The score CNN, its regression baseline, their loss, and the study of Langevin denoising."""

import csv
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate

from scoreexp.core.batch import Batch
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_model
from scoreexp.core.streams import generator
from scoreexp.denoisers.denoiser import Denoiser, OracleDenoiser
from scoreexp.denoisers.preconditioning import ScorePrediction
from scoreexp.lit.callbacks import DenoisingMonitor, LangevinStudy
from scoreexp.lit.callbacks.langevin_study import langevin_table
from scoreexp.networks import RegressionUNet, ScoreCNN
from scoreexp.numerics.oracles import Gaussian
from scoreexp.restorers.denoising import observe
from scoreexp.samplers import DDIM, UniformGrid
from scoreexp.schedules import VP, ConstantNoise

SHAPE = (3, 16, 16)


def seen_from(network, row, column):
    """The pixels on which the output at (row, column) depends, as a mask [H, W]."""
    x = torch.randn(1, *SHAPE, generator=generator(0, "x"), requires_grad=True)
    network(x, torch.zeros(1))[0, :, row, column].sum().backward()
    return (x.grad[0] != 0).any(0)


def test_score_cnn_is_three_convolutions_of_3_64_128_3():
    network = ScoreCNN(event_shape=SHAPE)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convolutions] == [
        (3, 64, (3, 3)), (64, 128, (3, 3)), (128, 3, (3, 3))
    ]  # fmt: skip
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[5:12, 4:11] = True
    assert torch.equal(seen_from(network, 8, 7), expected)
    # the output is the last convolution's: it takes both signs
    out = network(torch.randn(2, *SHAPE, generator=generator(0, "x")), torch.zeros(2))
    assert out.min() < 0 < out.max()
    assert network(torch.zeros(1, 3, 5, 9), torch.zeros(1)).shape == (1, 3, 5, 9)


def test_regression_network_pools_once():
    network = RegressionUNet(event_shape=SHAPE)
    assert sum(p.numel() for p in network.parameters()) == sum(
        (a * k * k + 1) * b for a, b, k in ((3, 64, 3), (64, 128, 3), (64, 3, 3))
    ) + (128 * 2 * 2 * 64 + 64)
    assert network.downsampling_factor == 2
    # pooled 2 x 2 blocks: where a pixel looks to depends on its place in its block
    assert seen_from(network, 8, 8).sum(0).count_nonzero() <= 8
    out = network(torch.randn(2, *SHAPE, generator=generator(0, "x")), torch.zeros(2))
    assert out.shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="image size 15 is not divisible"):
        network(torch.zeros(1, 3, 16, 15), torch.zeros(1))


@pytest.mark.parametrize("kind", [ScoreCNN, RegressionUNet])
def test_noise_level_and_labels_are_not_used(kind):
    network = kind(event_shape=SHAPE, num_classes=10)
    x = torch.randn(2, *SHAPE, generator=generator(0, "x"))
    a = network(x, torch.zeros(2))
    assert torch.equal(a, network(x, torch.ones(2), torch.tensor([3, 7])))
    with pytest.raises(ValueError, match="not \\(C, H, W\\)"):
        kind(event_shape=(2,))


def test_the_configured_loss_is_the_published_one():
    cfg = composed("train", "experiment=photo32_score_cnn")
    network = instantiate(cfg.network, event_shape=SHAPE, num_classes=None)
    model = Denoiser(network, instantiate(cfg.precond), instantiate(cfg.schedule))
    x, z = (torch.randn(4, *SHAPE, generator=generator(0, name)) for name in "xz")
    t = torch.full((4,), 0.3, dtype=torch.float64)
    loss = instantiate(cfg.objective)(model, Batch(x=x), t, z)
    # sigma^2 s(x~) + x~ - x in [0, 1], where sigma is 0.1, differences are half and the score is twice as large
    noisy = x + 0.2 * z
    published = 0.1**2 * 2 * model.score(noisy, t) + (noisy - x) / 2
    torch.testing.assert_close(loss, 4 * published.square().flatten(1).mean(1), rtol=1e-5, atol=1e-7)
    # and the network's output is sigma times the score
    scale = (1 + 0.2**2) ** -0.5
    torch.testing.assert_close(network(scale * noisy, t), 0.2 * model.score(noisy, t), rtol=1e-4, atol=1e-5)


def gaussian_model(schedule):
    """Pixels of mean 0.6 and variance 0.03 in [0, 1]."""
    return OracleDenoiser(Gaussian(torch.full(SHAPE, 0.2), torch.full(SHAPE, 0.12)), schedule)


@pytest.mark.parametrize("schedule", [ConstantNoise(0.2), VP()], ids=lambda s: type(s).__name__)
def test_the_study_measures_every_step(schedule):
    clean, observed = to_model(torch.full((2, *SHAPE), 0.5)), to_model(torch.full((2, *SHAPE), 0.8))
    # a step of eta in squared units of [0, 1] on the noise level 0.1; VP scales the state by alpha, the step not
    alpha = schedule.at(schedule.t_of_sigma(torch.tensor(0.2, dtype=torch.float64)).item())[0]
    rows = langevin_table(
        gaussian_model(schedule), clean, observed, sigma=0.1, step_sizes=[1e-3, 2e-3], steps=3, noise=0.0
    )
    assert [(r["method"], r["step_size"], r["step"]) for r in rows] == [
        ("noisy", None, 0), ("posterior_mean", None, 1),
        *[("langevin", eta, n) for eta in (1e-3, 2e-3) for n in (1, 2, 3)],
    ]  # fmt: skip
    for row in rows:
        if row["method"] == "langevin":
            value = 0.6 + 0.2 * (1 - row["step_size"] / (alpha**2 * 0.04)) ** row["step"]
        else:
            value = 0.8 if row["method"] == "noisy" else 0.6 + 0.2 * 0.03 / 0.04
        assert row["mse"] == pytest.approx((value - 0.5) ** 2, rel=1e-4)
        assert row["psnr"] == pytest.approx(-10 * torch.tensor((value - 0.5) ** 2).log10().item(), abs=1e-3)


def test_the_study_runs_after_training_on_the_monitors_pictures(tmp_path, capsys):
    monitor = DenoisingMonitor(sampler=DDIM(UniformGrid(1)), folder=str(tmp_path / "pictures"), sigma=0.1)
    study = LangevinStudy(step_sizes=[1e-4, 1e-3], steps=4, pictures=3)
    trainer = SimpleNamespace(callbacks=[monitor, study], is_global_zero=True, default_root_dir=str(tmp_path))
    denoiser = Denoiser(ScoreCNN(event_shape=SHAPE, widths=(4,)), ScorePrediction(), ConstantNoise(0.2))
    module = SimpleNamespace(evaluation_denoiser=denoiser)
    study.setup(trainer, module, "fit")
    clean = to_model(torch.rand(4, *SHAPE, generator=generator(0, "x")))
    for x in (-clean, clean):  # only the last evaluation counts
        study.on_validation_epoch_start(trainer, module)
        for part in (slice(0, 2), slice(2, 4)):
            batch = Batch(x=x[part], index=torch.arange(4)[part])
            study.on_validation_batch_end(trainer, module, None, batch, 0)
    study.on_fit_end(trainer, module)
    with (tmp_path / "langevin.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 + 2 * 4
    observed = observe(x[:3], torch.arange(3), monitor.sigma, monitor.seed).y
    expected = ((((observed + 1) / 2).clamp(0, 1) - (x[:3] + 1) / 2) ** 2).mean().item()
    assert float(rows[0]["mse"]) == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "pictures" / "langevin.png").stat().st_size > 10_000
    assert "langevin.png" in capsys.readouterr().out


def test_the_study_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"step_sizes=\[\]"):
        LangevinStudy(step_sizes=[])
    study = LangevinStudy(step_sizes=[1e-4])
    with pytest.raises(UserError, match=r"leave callbacks\.monitor as it is"):
        study.setup(SimpleNamespace(callbacks=[study]), None, "fit")
