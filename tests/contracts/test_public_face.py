"""What Python users see: names, functions that are also commands, examples that run, and answers to wrong types."""

import doctest
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import scoreexp as se
from scoreexp.app.signatures import TargetError, resolve

ROOT = Path(se.__file__).parent
EXAMPLES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text())
SHAPE = (3, 10, 13)
MODEL = se.denoisers.OracleDenoiser(
    se.oracles.Gaussian(torch.zeros(SHAPE), torch.full(SHAPE, 0.04)), se.schedules.VP()
)
IMAGE, X_T = np.full((10, 13, 3), 0.5), torch.zeros(2, *SHAPE)
SAMPLER = se.samplers.DDIM(se.samplers.UniformGrid(1))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_run(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    module = import_module(".".join(parts).removesuffix(".__init__"))
    # the root's names are imported when they are looked at
    finder = doctest.DocTestFinder(recurse=path != ROOT / "__init__.py")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for example in finder.find(module):
        runner.run(example)
    assert runner.tries
    assert not runner.failures


@pytest.mark.parametrize(
    "room",
    [
        "diagnostics.likelihood",
        "guidance",
        "metrics",
        "networks",
        "numerics.fokker_planck",
        "numerics.ode",
        "numerics.oracles",
        "numerics.spectral_torch",
        "objectives",
        "observations",
        "restorers",
        "samplers",
        "schedules",
    ],
)
def test_every_public_class_of_a_room_has_an_example(room):
    module = import_module(f"scoreexp.{room}")
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    classes = [cls for name in names if inspect.isclass(cls := getattr(module, name))]
    own = [cls for cls in classes if cls.__module__.startswith(module.__name__)]
    assert own
    needed = [cls for cls in own if not issubclass(cls, tuple | Exception)]
    assert [cls.__name__ for cls in needed if ">>> " not in (cls.__doc__ or "")] == []


@pytest.mark.parametrize(
    "room", ["api", "core", "data", "denoisers", "embedding", "figures", "lit", "runs", "system"]
)
def test_every_class_of_a_room_has_an_example(room):
    """Abstract ones too, in all modules of the room; named tuples and exceptions where it helps."""
    package = import_module(f"scoreexp.{room}")
    names = [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    classes = [
        cls
        for name in names
        for cls in vars(import_module(name)).values()
        if inspect.isclass(cls) and cls.__module__ == name and not cls.__name__.startswith("_")
    ]
    usual = [cls for cls in classes if not issubclass(cls, tuple | BaseException)]
    assert classes
    assert [cls.__name__ for cls in usual if ">>> " not in (cls.__doc__ or "")] == []


LAZY = [path.parent for path in ROOT.rglob("__init__.py") if "\non_first_use(" in path.read_text()]


@pytest.mark.parametrize("folder", LAZY, ids=lambda folder: folder.name)
def test_dir_shows_the_nouns_and_nothing_else(folder):
    package = import_module(".".join(folder.relative_to(ROOT.parent).parts))
    assert dir(package) == sorted(package.__all__) != []
    everything = {}
    exec(f"from {package.__name__} import *", everything)
    for name in dir(package):
        assert everything[name] is getattr(package, name)
        assert inspect.ismodule(everything[name]) or everything[name].__name__ == name
    with pytest.raises(
        AttributeError, match=f"{package.__name__}' has no attribute 'smaple': it has {dir(package)[0]}"
    ):
        package.smaple  # noqa: B018


@pytest.mark.parametrize("folder", LAZY, ids=lambda folder: folder.name)
def test_what_a_target_may_name_is_told_from_the_source(folder):
    package = import_module(".".join(folder.relative_to(ROOT.parent).parts))
    for name in dir(package):
        if not inspect.ismodule(getattr(package, name)):
            assert resolve(f"{package.__name__}.{name}").node.name == name
    with pytest.raises(TargetError, match="has no 'Smaple'"):
        resolve(f"{package.__name__}.Smaple")
    with pytest.raises(TargetError, match="is a module"):
        resolve("scoreexp.denoise")


@pytest.mark.parametrize(
    "first",
    [
        "import scoreexp.denoise, scoreexp.sample, scoreexp.restore",
        "scoreexp.denoise; scoreexp.sample; scoreexp.restore",
        "import scoreexp.train",
    ],
)
def test_functions_stay_callable_whichever_is_imported_first_and_hydra_is_not_imported(first):
    program = f"""
import sys, numpy as np, torch, scoreexp
{first}
from scoreexp import denoise, oracles, denoisers, schedules
model = denoisers.OracleDenoiser(oracles.Gaussian(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)), schedules.VP())
image = scoreexp.denoise(np.full((8, 8, 3), 0.5), model, 0.1)
from scoreexp.denoise import SCHEMA
from scoreexp.observations import GaussianNoise, Identity
observation = scoreexp.Observation(torch.zeros(1, 3, 8, 8), Identity(), GaussianNoise(0.1))
restorer = scoreexp.restorers.DDS(scoreexp.samplers.UniformGrid(1))
assert scoreexp.restore(observation, model, restorer).nfe == 1
assert scoreexp.sample(model, 2).shape == (2, 3, 8, 8)
assert image.shape == (8, 8, 3) and denoise is scoreexp.denoise and "ckpt" in SCHEMA
print(sorted({{"hydra", "omegaconf", "pytorch_lightning"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def expected(unit, sigma):
    """The posterior mean of an image in [0, 1] under the prior of ``MODEL``."""
    return (np.float32(0.04 / (0.04 + (2 * sigma) ** 2)) * (2 * unit - 1) + 1) / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("layout", ["[H, W]", "[H, W, 1]", "[H, W, 3]", "torch [C, H, W]", "torch [H, W]"])
def test_an_image_comes_back_in_its_layout_and_type(layout, dtype):
    shape = {"[H, W]": (10, 13), "[H, W, 1]": (10, 13, 1), "[H, W, 3]": (10, 13, 3)}.get(layout)
    shape = shape or ((3, 10, 13) if "C" in layout else (10, 13))
    unit = np.random.default_rng(0).uniform(0.3, 0.7, shape)
    image = (unit * 255).round().astype(np.uint8) if dtype == np.uint8 else unit.astype(dtype)
    given = torch.from_numpy(image) if "torch" in layout else image
    result = se.denoise(given, MODEL, 0.1, sampler=SAMPLER, tile=None)
    assert type(result) is type(given)
    assert result.dtype == given.dtype
    assert tuple(result.shape) == shape
    scale = 255 if dtype == np.uint8 else 1
    np.testing.assert_allclose(
        np.asarray(result) / scale, expected(image / scale, 0.1), atol=0.51 / 255 if scale > 1 else 1e-5
    )


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (np.zeros((3, 10, 13)), ValueError, r"\[H, W\] or \[H, W, C\].*image\.transpose\(1, 2, 0\)"),
        (torch.zeros(10, 13, 3), ValueError, r"\[C, H, W\].*image\.permute\(2, 0, 1\)"),
        (np.zeros((4, 4, 5)), ValueError, r"shape \(4, 4, 5\)"),
        (np.zeros((2, 2), np.int32), TypeError, "type int32: give uint8"),
        ([[0.0]], TypeError, "is a list"),
        (np.full((4, 4), 200.0), ValueError, r"values in \[200, 200\]"),
        (np.full((4, 4), np.nan), ValueError, "not finite"),
    ],
)
def test_images_that_are_none_are_answered(image, error, said):
    with pytest.raises(error, match=said):
        se.denoise(image, MODEL, 0.1)


def test_seeds_name_samples_and_must_be_as_many(tmp_path):
    whole = se.sample(MODEL, 5, sampler=SAMPLER, batch_size=2)
    assert torch.equal(whole[[3, 1]], se.sample(MODEL, seeds=[3, 1], sampler=SAMPLER))
    assert 0 <= whole.min() <= whole.max() <= 1
    with pytest.raises(ValueError, match="n=3 samples with 2 seeds"):
        se.sample(MODEL, 3, seeds=[0, 1])
    with pytest.raises(TypeError, match="model=3 must be a DenoiserBase or a string"):
        se.sample(3)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: se.denoise(IMAGE, MODEL),
            ValueError,
            "noise level of an image of shape .* cannot be estimated",
        ),
        (lambda: se.denoise(IMAGE, MODEL, "0.1"), TypeError, "sigma='0.1' must be a number"),
        (lambda: se.denoise(IMAGE, MODEL, -0.1), ValueError, "sigma=-0.1 must be a number >= 0"),
        (lambda: se.denoise(IMAGE, MODEL, 0.1, tile=-3), ValueError, "tile=-3 must be"),
        (lambda: se.denoise(IMAGE, MODEL, 0.1, tile="x"), ValueError, "tile='x' must be .*'auto'"),
        (lambda: se.denoise(IMAGE, MODEL, 0.1, seed=1.5), TypeError, "seed=1.5 must be an int"),
        (lambda: se.sample(MODEL, 0), ValueError, "n=0 must be an int >= 1"),
        (lambda: se.sample(MODEL, 2.5), TypeError, "n=2.5 must be an int >= 1"),
        (lambda: se.sample(MODEL, seeds=5), TypeError, "seeds=5 must be"),
        (lambda: se.sample(MODEL, seeds=[1.7]), TypeError, r"seeds=\[1.7\] must be"),
        (lambda: se.sample(MODEL, 2, sampler=20), TypeError, "sampler=20 must be a Sampler"),
        (lambda: se.sample(MODEL, 2, batch_size=0), ValueError, "batch_size=0 must be an int >= 1"),
        (
            lambda: se.train(network(), torch.zeros(3, 2), steps=-1),
            ValueError,
            "steps=-1 must be an int >= 0",
        ),
        (lambda: se.train(network(), torch.zeros(3, 2), steps=1.5), TypeError, "steps=1.5 must be an int"),
        (lambda: se.train(network(), torch.zeros(0, 2)), ValueError, "no sample: give one at least"),
        (lambda: MODEL(X_T, torch.full((3,), 0.5)), ValueError, r"t has shape \(3,\).*t \[B\]"),
        (lambda: MODEL(X_T[0], torch.full((2,), 0.5)), ValueError, r"x_t \(3, 10, 13\): give x_t \[B, \*\]"),
        (lambda: MODEL(X_T.numpy(), torch.full((2,), 0.5)), TypeError, "x_t is a ndarray: give a tensor"),
    ],
)
def test_wrong_arguments_are_answered_where_they_are_given(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_an_image_in_bfloat16_comes_back_as_it_was_given():
    given = torch.full(SHAPE, 0.5, dtype=torch.bfloat16)
    assert se.denoise(given, MODEL, 0.1, sampler=SAMPLER).dtype == torch.bfloat16


def network():
    torch.manual_seed(0)
    net = se.networks.MLP(event_shape=(2,), width=32, blocks=2)
    return se.denoisers.Denoiser(net, se.denoisers.EDMPrediction(), se.schedules.VP())


def test_a_network_for_images_of_any_size_learns_that_of_its_data():
    network = se.networks.DenoisingUNet(event_shape=(1, 8, 16), widths=(8,), blocks=1)
    denoiser = se.denoisers.Denoiser(network, se.denoisers.EDMPrediction(), se.schedules.VP())
    model = se.train(denoiser, torch.zeros(2, 1, 8, 16), steps=0)
    assert se.sample(model, 1, sampler=se.samplers.DDIM(se.samplers.UniformGrid(1))).shape == (1, 1, 8, 16)


def test_training_in_memory_repeats_and_learns():
    points = 0.3 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    first, second = (se.train(network(), points, steps=150, batch_size=128) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    oracle = se.denoisers.OracleDenoiser(
        se.oracles.Gaussian(torch.zeros(2), torch.full((2,), 0.09)), se.schedules.VP()
    )
    t = torch.full((500,), 0.2, dtype=torch.float64)
    x_t = torch.randn(500, 2, generator=torch.Generator().manual_seed(1)) * 0.5
    error = (first(x_t, t) - oracle(x_t, t)).square().mean()
    assert error < 0.1 * (network()(x_t, t) - oracle(x_t, t)).square().mean()
    with pytest.raises(TypeError, match=r"denoiser=MLP.* must be a Denoiser"):
        se.train(network().network, points)
    with pytest.raises(TypeError, match=r"torch\.int64: give a floating point"):
        se.train(network(), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"data has shape \(3, 5\).*\(2,\)"):
        se.train(network(), torch.zeros(3, 5))


def test_the_console_command_and_its_completion():
    run = [sys.executable, "-m", "scoreexp"]
    shown = subprocess.run([*run], capture_output=True, text=True)
    assert "\n  train       train a score model and evaluate it by denoising\n" in shown.stdout
    wrong = subprocess.run([*run, "trian"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: scoreexp has no command trian (commands: compare,")
    composed = subprocess.run([*run, "train", "--cfg", "job", "seed=7"], capture_output=True, text=True)
    assert "seed: 7" in composed.stdout
    script = subprocess.run([*run, "completion"], capture_output=True, text=True).stdout
    assert "complete -o default -F _scoreexp scoreexp" in script
