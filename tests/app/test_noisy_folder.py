"""From a folder of noisy images to a denoised one: training without clean images, and restorers fitted to one image."""

from functools import cache

import numpy as np
import pytest
import torch
from conftest import composed

import scoreexp as se
from scoreexp.app.commands.denoise import denoise
from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import read_image, write_image
from scoreexp.observations import GaussianNoise
from scoreexp.restorers import Noise2Score
from scoreexp.restorers.images import restore_pixels

pytestmark = pytest.mark.integration

SMALL = {
    "folder_noise2score": [
        "network.channels=16",
        "network.multipliers=[1,2]",
        "network.blocks=1",
        "network.attention_resolutions=[]",
    ],
    "folder_sdap": ["network.channels=8", "network.blocks=1", "objective.stride=2"],
    "folder_cbsn": ["network.channels=8", "network.blocks=1", "objective.stride=2", "objective.ramp=2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve noisy images of a ramp, 24 x 20 pixels."""
    root = tmp_path_factory.mktemp("noisy")
    rng = np.random.default_rng(0)
    for number in range(12):
        clean = np.linspace(0.3, 0.7, 20)[None, :, None] * np.ones((24, 1, 3))
        write_image(root / f"{number:02d}.png", (clean + 0.1 * rng.standard_normal(clean.shape)).clip(0, 1))
    return root


def trained_on(folder, experiment, run, *overrides):
    shared = [
        "data.size=20",
        "data.crops=2",
        "data.batch_size=3",
        "trainer.max_steps=2",
        "trainer.val_check_interval=1",
        "trainer.accelerator=cpu",
    ]
    given = [f"experiment={experiment}", f"data.root={folder}", f"run_dir={run}"]
    return train(composed("train", *given, *SMALL[experiment], *shared, *overrides))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return cache(
        lambda experiment: trained_on(folder, experiment, tmp_path_factory.mktemp(experiment) / "run")
    )


@pytest.mark.parametrize("experiment", SMALL)
def test_an_experiment_on_noisy_images_ends_in_a_model_that_denoise_takes(
    experiment, trained, folder, tmp_path
):
    result = trained(experiment)
    assert {"val/loss", "val/removed"} <= set(result.metrics)
    assert result.checkpoint.name == "best.ckpt"
    assert (result.checkpoint.parents[1] / "pictures" / "last" / "denoised.png").exists()
    source = folder / "00.png"
    given = [f"ckpt={result.checkpoint}", f"input={source}", "device=cpu"]
    (done,) = denoise(composed("denoise", *given, f"output={tmp_path / 'clean.png'}"))
    assert done.sigma == 0.1, "that of the run"
    pixels, model = read_image(source).pixels, se.load(result.checkpoint)
    y = torch.from_numpy(2 * pixels - 1).movedim(-1, 0)[None]
    expected = ((model(y, torch.full((1,), 1.0)) + 1) / 2).clamp(0, 1)[0].movedim(0, -1)
    assert np.abs(read_image(done.target).pixels - expected.numpy()).max() <= 0.51 / 255


def test_the_objective_of_a_resumed_run_goes_on_where_it_was(trained, folder, tmp_path):
    whole = trained("folder_cbsn")
    trained_on(folder, "folder_cbsn", tmp_path / "part", "trainer.max_steps=1")
    ckpt = tmp_path / "part" / "checkpoints" / "last.ckpt"
    resumed = trained_on(folder, "folder_cbsn", tmp_path / "rest", f"ckpt={ckpt}")
    one, other = (torch.load(r.checkpoint.parent / "last.ckpt")["state_dict"] for r in (whole, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert int(one["objective.calls"]) == 2


def test_noise2score_serves_other_levels_and_other_noise(trained, folder, tmp_path):
    checkpoint, source, out = (
        trained("folder_noise2score").checkpoint,
        folder / "01.png",
        tmp_path / "clean.png",
    )
    given = [f"ckpt={checkpoint}", f"input={source}", f"output={out}", "device=cpu"]
    denoise(composed("denoise", *given, "restorer=noise2score", "sigma=0.05"))
    pixels, model = read_image(source).pixels, se.load(checkpoint)
    expected = restore_pixels(Noise2Score(), model, pixels, GaussianNoise(0.1)).states[-1]
    assert np.abs(read_image(out).pixels - expected).max() <= 0.51 / 255
    y = torch.from_numpy(2 * pixels - 1).movedim(-1, 0)[None]
    counts = se.Observation(y, se.observations.Identity(), se.observations.PoissonNoise(30.0))
    assert Noise2Score()(counts, model, streams=ImageStreams([0])).x.isfinite().all()


def test_one_noisy_image_is_no_folder(folder, tmp_path):
    with pytest.raises(
        UserError, match="SDAP trains on many noisy images, and the training set has 1: denoise a single one"
    ):
        trained_on(folder, "folder_sdap", tmp_path / "run", "data.num_images=1")


@pytest.mark.parametrize("name", ["filter2noise", "mid", "noiser"])
def test_the_command_takes_a_restorer_that_is_fitted(name, folder, tmp_path):
    out = tmp_path / "clean.png"
    given = [
        f"input={folder / '02.png'}",
        f"output={out}",
        f"restorer={name}",
        "restorer.steps=3",
        "sigma=0.1",
    ]
    denoise(composed("denoise", *given))
    before, after = read_image(folder / "02.png").pixels, read_image(out).pixels
    assert after.shape == before.shape
    assert np.abs(after - before).max() > 0.02
