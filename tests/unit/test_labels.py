"""One rule for class labels: who knows the null label, and what stands for an unknown class."""

from types import SimpleNamespace

import pytest
import torch

from scoreexp.core.batch import Batch, are_labels
from scoreexp.core.errors import UserError
from scoreexp.denoisers import Denoiser, EDMPrediction
from scoreexp.lit.module import ScoreModule
from scoreexp.networks import MLP
from scoreexp.objectives import Objective, UniformTime
from scoreexp.samplers import DDIM, UniformGrid, draw, label_of_observed, labels_for
from scoreexp.schedules import VP

PLAIN = {"num_classes": None, "config": {}}
OLD = {"num_classes": 10, "config": {"model": {}}}  # as builds without label dropout wrote it
TRAINED = {"num_classes": 10, "config": {"model": {"label_dropout": 0.1}}}


def test_drawn_samples_take_the_class_that_their_seed_names():
    for record in (OLD, TRAINED):
        assert labels_for([3, 4, 11], record).tolist() == [3, 4, 1]
        assert labels_for([3, 4], record, 7).tolist() == [7, 7]
    assert labels_for([3, 4], PLAIN) is None


def test_the_null_label_is_for_those_who_have_learnt_it():
    assert labels_for([3], TRAINED, "none") is None
    assert label_of_observed(TRAINED, seed=3) == ("none", None)
    assert label_of_observed(PLAIN, seed=3) == (None, None)
    label, doubt = label_of_observed(OLD, seed=13)
    assert label == 3
    assert "without label dropout" in doubt
    assert label_of_observed(OLD, seed=13, label=5) == (5, None)
    with pytest.raises(UserError, match=r"label=none.*0 to 9.*model\.label_dropout"):
        labels_for([3], OLD, "none")
    with pytest.raises(UserError, match="label=none"):
        label_of_observed(OLD, 0, "none")


@pytest.mark.parametrize("label", [10, -1])
def test_a_class_that_is_none_is_refused(label):
    with pytest.raises(UserError, match=f"label={label}: allowed is 0 to 9"):
        labels_for([0], TRAINED, label)
    with pytest.raises(UserError, match="has no classes"):
        labels_for([0], PLAIN, 1)


def module(label_dropout, world=1, rank=0, seed=0):
    seen = []

    class Seeing(Objective):
        def __call__(self, model, batch, t, noise):
            seen.append(batch.cond.clone())
            return torch.zeros(len(batch.x), requires_grad=True)

    network = MLP(width=8, blocks=1, event_shape=(2,), num_classes=10)
    made = ScoreModule(
        denoiser=Denoiser(network, EDMPrediction(), VP()),
        objective=Seeing(),
        time_law=UniformTime(),
        optimizer=torch.optim.Adam,
        label_dropout=label_dropout,
        seed=seed,
    )
    made.record = {"num_classes": 10}
    made._trainer = SimpleNamespace(
        world_size=world, global_rank=rank, global_step=0, log_every_n_steps=0, max_steps=-1, _results=None
    )
    made.log = lambda *args, **kwargs: None
    return made, seen


def step(made, seen, batch_idx, cond):
    made.training_step(Batch(x=torch.zeros(len(cond), 2), cond=cond), batch_idx)
    return seen[-1]


def test_a_share_of_the_labels_is_left_out_in_training():
    cond = torch.arange(10).repeat(400)
    made, seen = module(0.1)
    dropped = step(made, seen, 5, cond) == 10
    assert torch.equal(seen[-1][~dropped], cond[~dropped])
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 4000) ** 0.5)
    assert torch.equal(step(*module(0.1), 5, cond), seen[-1]), "a function of seed and step"
    assert not torch.equal(step(*module(0.1), 6, cond), seen[-1])
    assert torch.equal(step(*module(0.0), 5, cond), cond)


def test_images_that_condition_a_model_are_not_left_out():
    images = torch.linspace(-1, 1, 50 * 3 * 16).reshape(50, 3, 4, 4)
    assert torch.equal(step(*module(1.0), 5, images), images)
    assert not are_labels(images)
    assert not are_labels(None)
    assert are_labels(torch.arange(3))


def test_the_number_of_devices_does_not_change_which_are_left_out():
    cond = torch.arange(40) % 10
    whole = step(*module(0.3), 2, cond)
    parts = [step(*module(0.3, world=2, rank=rank), 2, cond[20 * rank :][:20]) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_as_many_labels_as_seeds():
    network = MLP(width=8, blocks=1, event_shape=(2,), num_classes=10)
    model = Denoiser(network, EDMPrediction(), VP())
    with pytest.raises(ValueError, match="2 labels for 3 seeds"):
        draw(model, DDIM(UniformGrid(2)), [0, 1, 2], cond=torch.tensor([1, 2]))
