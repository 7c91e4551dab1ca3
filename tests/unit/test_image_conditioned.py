"""Networks that are conditioned on an image: what they see, how they are rebuilt, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
import yaml

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import Denoiser, EDMPrediction
from scoreexp.guidance import ClassifierFree
from scoreexp.lit.callbacks import RestorationMonitor
from scoreexp.networks import ImageConditioned, UNet
from scoreexp.observations import BoxMask, GaussianBlur, GaussianNoise, Observation
from scoreexp.restorers import Conditioned
from scoreexp.runs.model import build_denoiser, model_record
from scoreexp.samplers import DDIM, UniformGrid
from scoreexp.schedules import VP

SHAPE = (3, 8, 8)


class Inner(torch.nn.Module):
    """Gives its input back, and says what it was made for."""

    downsampling_factor = 4

    def __init__(self, *, event_shape, num_classes):
        super().__init__()
        self.made = event_shape, num_classes

    def forward(self, x, c_noise, cond=None):
        assert cond is None
        return x + x.flip(1)  # the first channel of x meets the last of cond


def test_the_image_is_further_channels_and_the_answer_those_of_the_input():
    network = ImageConditioned(network=Inner, event_shape=SHAPE, num_classes=10, channels=1)
    assert network.network.made == ((4, 8, 8), None)
    assert network.cond_shape == (1, 8, 8)
    assert network.downsampling_factor == 4
    x, cond = torch.rand(2, *SHAPE), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    out = network(x, torch.zeros(2), cond)
    assert out.shape == x.shape
    torch.testing.assert_close(out[:, 0], x[:, 0] + cond[:, 0].float())


@pytest.mark.parametrize(
    ("cond", "found"),
    [(None, "nothing"), (torch.arange(2), "class labels"), (torch.zeros(2, 1, 8, 8), r"\(2, 1, 8, 8\)")],
)
def test_a_model_without_its_image_says_what_it_needs(cond, found):
    network = ImageConditioned(network=Inner, event_shape=SHAPE)
    with pytest.raises(ValueError, match=rf"images \(2, 3, 8, 8\) and got {found}: give the observation"):
        network(torch.zeros(2, *SHAPE), torch.zeros(2), cond)


def test_what_takes_labels_refuses_an_image():
    plain = UNet(event_shape=SHAPE, num_classes=3, channels=16, multipliers=[1])
    model = Denoiser(plain, EDMPrediction(), VP())
    image = torch.zeros(2, *SHAPE)
    with pytest.raises(ValueError, match=r"cond is an image, .*: choose network=unet_conditioned"):
        model(image, torch.full((2,), 0.5), image)
    model.record = {"num_classes": 3, "config": {"model": {"label_dropout": 0.1}}}
    with pytest.raises(ValueError, match="classifier-free guidance needs labels"):
        ClassifierFree(model, 2.0)(image, torch.full((2,), 0.5), image)
    with pytest.raises(ValueError, match=r"event_shape=\(2,\): ImageConditioned is for images"):
        ImageConditioned(network=Inner, event_shape=(2,))


def test_a_checkpoint_rebuilds_the_network_and_a_restorer_conditions_it():
    config = {
        part: yaml.safe_load((conf_dir() / part / f"{name}.yaml").read_text())
        for part, name in {"network": "unet_conditioned", "precond": "edm", "schedule": "resfusion"}.items()
    }
    config["network"]["network"] |= {"channels": 16, "multipliers": [1]}
    model = build_denoiser(model_record(config, SHAPE, None)).eval()
    assert isinstance(model.network, ImageConditioned)
    assert model.network.network.stem.in_channels == 6
    torch.nn.init.normal_(model.network.network.conv_out.weight, std=0.1)
    mask = BoxMask(8)
    y = mask(torch.rand(2, *SHAPE))
    observations = [Observation(scale * y, mask, GaussianNoise(0.1)) for scale in (1, 2)]
    a, b = (
        Conditioned(DDIM(UniformGrid(3)))(o, model, streams=ImageStreams([0, 1]), keep=2)
        for o in observations
    )
    assert a.nfe == 3
    assert not torch.allclose(
        b.x - observations[1].pulled_back(SHAPE), a.x - observations[0].pulled_back(SHAPE)
    )


def test_a_monitor_refuses_an_operator_of_another_size_before_training():
    monitor = RestorationMonitor(
        restorer=Conditioned(DDIM(UniformGrid(2))),
        operator=GaussianBlur(sigma=1.0, size=32),
        noise=GaussianNoise(0.1),
        folder="pictures",
    )
    module = SimpleNamespace(denoiser=SimpleNamespace(event_shape=(3, 16, 16)))
    with pytest.raises(ValueError, match="GaussianBlur takes 32 x 32"):
        monitor.require_suits(module)
    assert monitor.task == "restoring from GaussianBlur with GaussianNoise"
