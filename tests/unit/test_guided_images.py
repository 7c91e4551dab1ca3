"""A guided network in the places that take a model: images of any size, samples, restorers."""

import numpy as np
import pytest
import torch

import scoreexp as se
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.observations import GaussianNoise, Identity
from scoreexp.restorers import DDS, ZSN2N, BySampling
from scoreexp.restorers.images import restore_pixels
from scoreexp.restorers.tiling import mirror_to_multiple
from scoreexp.samplers import DDIM, DDPM, UniformGrid

SHAPE = (3, 8, 8)
SAMPLER = DDIM(UniformGrid(3))
NOISE = GaussianNoise(0.2)


@pytest.fixture(scope="module")
def model():
    """A network of three classes with weights of any kind: its answers depend on the label."""
    network = se.networks.UNet(
        event_shape=SHAPE,
        num_classes=3,
        channels=16,
        multipliers=(1, 2, 2),
        blocks=1,
        attention_resolutions=(),
    )
    random = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.1, generator=random)
    found = se.denoisers.Denoiser(
        network.eval().requires_grad_(False), se.denoisers.EDMPrediction(), se.schedules.VP()
    )
    found.record = {"num_classes": 3, "config": {"model": {"label_dropout": 0.1}}}
    found.event_shape = SHAPE
    return found


def pixels(height, width):
    return np.random.default_rng(0).random((height, width, 3), dtype=np.float32)


@pytest.mark.parametrize("sampler", [SAMPLER, DDPM(UniformGrid(3))], ids=["ddim", "ddpm"])
def test_an_odd_size_is_the_padded_image_cropped(model, sampler):
    guided, odd = se.guidance.ClassifierFree(model, 2.0), pixels(13, 10)
    padded = mirror_to_multiple(torch.from_numpy(odd).movedim(-1, 0), 4).movedim(0, -1).numpy()
    assert padded.shape == (16, 12, 3)
    whole = restore_pixels(BySampling(sampler), guided, padded, NOISE, label=1).states[-1]
    found = restore_pixels(BySampling(sampler), guided, odd, NOISE, label=1).states[-1]
    assert np.array_equal(found, whole[:13, :10])


def test_a_label_and_none_are_told_apart(model):
    image = pixels(8, 8)
    by = {
        label: restore_pixels(BySampling(SAMPLER), model, image, NOISE, label=label).states[-1]
        for label in (0, 1, None, "none")
    }
    assert np.array_equal(by[None], by["none"])
    assert not np.allclose(by[0], by[1], atol=1e-4)
    assert not np.allclose(by[0], by[None], atol=1e-4)
    assert np.array_equal(se.denoise(image, model, 0.1, sampler=SAMPLER), by["none"])
    assert np.array_equal(se.denoise(image, model, 0.1, sampler=SAMPLER, label="none"), by["none"])
    assert np.array_equal(se.denoise(image, model, 0.1, sampler=SAMPLER, label=1), by[1])


def test_samples_of_a_guided_model(model):
    def drawn(found, **label):
        return se.sample(found, 5, sampler=SAMPLER, batch_size=2, **label)

    assert torch.equal(drawn(se.guidance.ClassifierFree(model, 1.0)), drawn(model))
    assert torch.equal(drawn(se.guidance.ClassifierFree(model, 0.0), label=2), drawn(model, label="none"))
    assert not torch.allclose(drawn(se.guidance.ClassifierFree(model, 3.0)), drawn(model), atol=1e-4)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(model, weight):
    with pytest.raises(ValueError, match=f"weight={weight}: choose a finite number"):
        se.guidance.ClassifierFree(model, weight)


def test_restore_is_the_restorer_with_labels_and_seeds(model):
    y = 0.2 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    observation = se.Observation(y, Identity(), NOISE)
    restorer = BySampling(DDPM(UniformGrid(3)))
    streams, cond = ImageStreams([7, 5, 6, 4]), torch.full((4,), 2)
    expected = restorer(observation, model, streams=streams, cond=cond, keep=2)
    found = se.restore(observation, model, restorer, seeds=[7, 5, 6, 4], label=2, keep=2)
    assert torch.equal(found.x, expected.x)
    assert len(found.trajectory) == 2
    assert found.nfe == 3
    null = restorer(observation, model, streams=ImageStreams(range(4)))
    assert torch.equal(se.restore(observation, model, restorer).x, null.x)
    guided = se.guidance.ClassifierFree(model, 2.0)
    assert se.restore(observation, guided, DDS(UniformGrid(3)), label=1).nfe == 6
    alone = ZSN2N(steps=2)
    assert torch.equal(
        se.restore(observation, None, alone).x, alone(observation, streams=ImageStreams(range(4))).x
    )


def test_a_class_that_a_model_needs_is_that_of_each_seed(model):
    class NoNullLabel(se.denoisers.Wrapper):
        def __init__(self):
            super().__init__(model)
            self.record = {"num_classes": 3, "config": {}}

        def __call__(self, x_t, t, cond=None):
            assert cond.tolist() == [2, 0]
            return self.model(x_t, t, cond)

    observation = se.Observation(torch.zeros(2, *SHAPE), Identity(), NOISE)
    se.restore(observation, NoNullLabel(), BySampling(SAMPLER), seeds=[5, 6])


def test_what_restore_cannot_do_is_said(model):
    observation = se.Observation(torch.zeros(2, *SHAPE), Identity(), NOISE)
    with pytest.raises(ValueError, match="DDS needs a model"):
        se.restore(observation, None, DDS(UniformGrid(3)))
    with pytest.raises(ValueError, match="2 observations for 1 seeds"):
        se.restore(observation, model, BySampling(SAMPLER), seeds=[0])
    with pytest.raises(UserError, match="label=1: the model has no classes"):
        se.restore(observation, None, ZSN2N(steps=2), label=1)
    with pytest.raises(TypeError, match=r"observation=tensor.* must be an Observation"):
        se.restore(observation.y, model, BySampling(SAMPLER))
    with pytest.raises(TypeError, match="restorer=<DDIM> must be a Restorer"):
        se.restore(observation, model, SAMPLER)
    with pytest.raises(TypeError, match=r"model=UNet.* must be a DenoiserBase"):
        se.restore(observation, model.network, BySampling(SAMPLER))
