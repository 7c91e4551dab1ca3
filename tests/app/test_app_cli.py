"""The launcher of the entry points, with a small configuration tree and a task that imports nothing."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from scoreexp.app.composition import composed, readable, shell_command
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError

CONF = {
    "train.yaml": """\
# Train a toy
defaults:
  - _self_
  - network: mlp
  - data: toy
  - optimizer: adam
  - trainer: default
  - experiment: null
  - hydra: default
name: toy  # name of the run
seed: 0
image: null  # image to open
run_dir: outputs/${name}
""",
    "open.yaml": "defaults:\n  - train\n  - _self_\nckpt: ???  # checkpoint to open\n",
    "hydra/default.yaml": (conf_dir() / "hydra" / "default.yaml").read_text(),
    "network/mlp.yaml": "_target_: toy_app.MLP\nwidth: 8\n",
    "network/cnn.yaml": "_target_: toy_app.CNN\nwidth: 8\n",
    "data/toy.yaml": "_target_: toy_app.Data\nbatch_size: 4\n",
    "optimizer/adam.yaml": "_target_: torch.optim.Adam\n_partial_: true\nlr: 1e-3\n",
    "trainer/default.yaml": "_target_: pytorch_lightning.Trainer\nmax_steps: 10\n",
    "experiment/small.yaml": """\
# @package _global_
# A small one: ten seconds
defaults:
  - override /network: cnn
name: small
""",
    "experiment/typo.yaml": "# @package _global_\nnetwork:\n  widht: 3\n",
    "experiment/sweep.yaml": """\
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: 0,7
""",
    "experiment/broken.yaml": "# @package _global_\nnetwork: [\n",
}

TASK = """
from pathlib import Path

from hydra.utils import instantiate

from scoreexp.core.errors import UserError
from scoreexp.core.types import PositiveInt
from scoreexp.app.signatures import resolve
from scoreexp.core.streams import stream_seed  # imports torch


class MLP:
    def __init__(self, *, event_shape: tuple[int, ...], width: PositiveInt = 4, depth: int = 2) -> None:
        if depth > 5:
            raise ValueError(f"depth={depth} must be at most 5")


class CNN(MLP):
    pass


class Data:
    def __init__(self, batch_size: PositiveInt) -> None:
        pass


def train(cfg):
    match cfg.seed:
        case 1:
            raise UserError("image=x.png was not found; give an image")
        case 2:
            raise RuntimeError("a fault of the program")
        case 3:
            raise KeyboardInterrupt
        case 4:
            resolve("UNet")  # an error of the library itself
    instantiate(cfg.network, event_shape=(2,))
    (Path(cfg.run_dir) / "result").write_text(f"{cfg.seed} {cfg.run_dir}")
"""

SCHEMA = {
    "name": "str",
    "seed": "NonNegativeInt",
    "image": "str | None",
    "run_dir": "str",
    "ckpt": "str",
    "network": "Node",
    "data": "Node",
    "optimizer": "Node",
    "trainer": "Node",
}
PROVIDED = {"network": {"event_shape"}}


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    for name, text in CONF.items():
        file = folder / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "toy_app.py").write_text(TASK)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder / "conf"
    sys.path.remove(str(folder))


@pytest.fixture
def launch(conf, tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: exit code, lines of stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*argv, config_name="train"):
        arguments = ["-cp", str(conf), *argv]
        code = run_app(config_name, "toy_app:train", schema=SCHEMA, provided=PROVIDED, argv=arguments)
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


FAULTS = {
    "unknown key": ("network.widht=3", ["network.widht=3", "unknown key", "network.width"]),
    "unknown key elsewhere": ("max_steps=3", ["max_steps=3", "trainer.max_steps"]),
    "unknown key, +": ("+network.widht=3", ["network.widht=3", "toy_app.MLP", "did you mean 'width'"]),
    "unknown top-level key, +": ("+sede=3", ["sede=3", "did you mean 'seed'"]),
    "unknown key in a file": ("experiment=typo", ["network.widht=3", "did you mean 'width'"]),
    "unwritten key": ("network.depth=3", ["network.depth=3", "add it with +network.depth=3"]),
    "key of the program": ("+network.event_shape=[3]", ["network.event_shape=[3]", "remove it"]),
    "unknown group": ("netwrok=cnn", ["netwrok=cnn", "did you mean 'network'"]),
    "unknown choice": ("network=cn", ["network=cn", "did you mean 'cnn'", "choices: cnn, mlp"]),
    "choice of another type": ("network=3", ["network=3", "choices: cnn, mlp"]),
    "unknown experiment": ("experiment=smal", ["experiment=smal", "choices: broken, small, sweep, typo"]),
    "choice given twice": ("+network=cnn", ["network=CHOICE", "without +"]),
    "unknown hydra key": ("hydra.run.dri=x", ["hydra.run.dri=x", "did you mean 'hydra.run.dir'"]),
    "unknown configuration": ("-cn=trian", ["trian", "did you mean 'train'"]),
    "unknown option": ("--foo", ["--foo", "--help"]),
    "unknown folder": ("-cd=nowhere", ["--config-dir=nowhere"]),
    "unknown trainer option": ("+trainer.max_stepz=3", ["trainer.max_stepz=3", "did you mean 'max_steps'"]),
    "misspelt _target_": ("network._target_=toy_app.MPL", ["network._target_=toy_app.MPL", "'MLP'"]),
    "width=abc": ("network.width=abc", ["network.width=abc", "an int >= 1"]),
    "max_epochs=ten": ("+trainer.max_epochs=ten", ["trainer.max_epochs=ten", "an int or null"]),
    "lr=fast": ("optimizer.lr=fast", ["optimizer.lr=fast", "a number"]),
    "lr=-1": ("optimizer.lr=-1", ["optimizer.lr=-1", "> 0"]),
    "width=-5": ("network.width=-5", ["network.width=-5", "an int >= 1"]),
    "batch=0": ("data.batch_size=0", ["data.batch_size=0", "an int >= 1"]),
    "missing value": ("-cn=open", ["ckpt", "add ckpt=VALUE", "(checkpoint to open)"]),
    "missing, by interpolation": ("name=${image_}", ["name", "image_", "did you mean 'image'"]),
    "no value": ("seed", ["seed", "KEY=VALUE"]),
    "grammar": ("network.width=[1", ["network.width=[1", "'network.width=\"[1\"'"]),
    "broken yaml": ("experiment=broken", ["broken.yaml, line"]),
    "a sweep without -m": ("seed=1,2", ["seed=1,2", "-m"]),
    "uncreatable folder": ("run_dir=/dev/null/x", ["/dev/null/x", "run_dir=DIR"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_configuration_faults_are_said_in_one_line_and_leave_nothing(launch, tmp_path, fault):
    argument, expected = FAULTS[fault]
    code, _, lines = launch(argument)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in expected:
        assert part in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_many_faults_take_at_most_three_lines(launch, tmp_path):
    code, _, lines = launch("network.width=0", "data.batch_size=0", "seed=-1", "name=3", "optimizer.lr=0")
    assert code == 1
    assert len(lines) == 3
    assert lines[-1] == "error: 3 further problems"
    _, _, lines = launch("network.widht=1", "sede=3")
    assert len(lines) == 2
    _, _, lines = launch("network.widht=1", "hydra.sweep=3")
    assert len(lines) == 1
    assert "hydra.sweep=3" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_answers_come_before_torch_is_imported(conf, tmp_path):
    """Faults, help and the composed configuration, in one fresh process that imports nothing slow."""
    lines = ["network.widht=3", "network.width=0", "+trainer.max_epochs=ten", "--help", "--cfg=job"]
    program = f"""
import json, sys
from scoreexp.app.launch import run_app
options = dict(schema={SCHEMA!r}, provided={PROVIDED!r})
argvs = [["-cp", {str(conf)!r}, line] for line in {lines!r}]
codes = [run_app("train", "toy_app:train", argv=argv, **options) for argv in argvs]
print(json.dumps([codes, [name for name in ("torch", "toy_app", "matplotlib", "jinja2") if name in sys.modules]]))
"""
    environment = {**os.environ, "PYTHONPATH": str(conf.parent)}
    environment.pop("HYDRA_FULL_ERROR", None)
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    codes, imported = json.loads(result.stdout.splitlines()[-1])
    assert codes == [1, 1, 1, 0, 0]
    assert imported == []
    assert list(tmp_path.iterdir()) == []


def test_mode_and_values_of_a_sweep_may_stand_in_a_file(launch, tmp_path):
    code, _, lines = launch("experiment=sweep")
    assert (code, lines) == (0, ["job 0: seed=0 experiment=sweep", "job 1: seed=7 experiment=sweep"])
    assert len(list((tmp_path / "outputs" / "toy").glob("*/result"))) == 2


def test_a_run_gets_its_folder_as_an_absolute_path(launch, tmp_path):
    assert launch("experiment=small") == (0, [], [])
    folder = tmp_path / "outputs" / "small"
    assert [path.name for path in folder.iterdir()] == ["result"]
    assert (folder / "result").read_text() == f"0 {folder}"


def test_user_error_in_the_task(launch, tmp_path):
    code, _, lines = launch("seed=1")
    assert (code, lines) == (1, ["error: image=x.png was not found; give an image"])
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_the_run_are_removed(launch, tmp_path):
    (tmp_path / "mine").mkdir()
    launch("seed=1", "run_dir=mine/a/b")
    launch("seed=1", "run_dir=mine")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_error_of_a_constructor_names_its_key(launch):
    code, _, lines = launch("+network.depth=7")
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: network: depth=7 must be at most 5")


def test_error_raised_by_the_library_itself(launch):
    code, _, lines = launch("seed=4")
    assert code == 1
    hint = "(HYDRA_FULL_ERROR=1 shows the traceback)"
    assert lines == [f"error: UNet is not a dotted name such as package.module.Class {hint}"]


def test_a_fault_of_the_program_prints_one_traceback(launch):
    code, _, lines = launch("seed=2")
    assert code == 1
    assert lines.count("Traceback (most recent call last):") == 1
    assert lines[-1] == "RuntimeError: a fault of the program"


def test_keyboard_interrupt(launch, tmp_path):
    assert launch("seed=3") == (130, [], ["interrupted"])
    assert list(tmp_path.iterdir()) == []


def test_full_error_raises(launch, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match=r"image=x\.png"):
        launch("seed=1")


def test_sweep_goes_on_after_a_failed_job_and_fails(launch, tmp_path):
    code, _, lines = launch("-m", "seed=0,1,7")
    assert code == 1
    assert "error: job 1: image=x.png was not found; give an image" in lines
    assert lines[-1] == "error: 1 of 3 jobs failed: job 1"
    sweep = tmp_path / "outputs" / "toy"
    assert sorted(str(path.relative_to(sweep)) for path in sweep.rglob("result")) == ["0/result", "2/result"]
    assert (sweep / "2" / "result").read_text() == f"7 {sweep / '2'}"


def test_every_job_of_a_sweep_is_checked_before_the_first_starts(launch, tmp_path):
    code, _, lines = launch("-m", "network.width=1,0", "network=mlp,cnn")
    assert code == 1
    assert lines == ["error: job 2: network.width=0 must be an int >= 1"]
    assert list(tmp_path.iterdir()) == []


def test_help_shows_keys_groups_and_experiments(launch):
    code, lines, _ = launch("--help", "-cn", "open", "experiment=small")
    assert code == 0
    shown = "\n".join(lines)
    assert "ckpt=REQUIRED  checkpoint to open" in shown
    assert "network=cnn* | mlp" in shown
    assert shown.index("network=") < shown.index("trainer=")  # the order of the file
    assert "  small   A small one: ten seconds" in lines
    _, lines, _ = launch("--help")
    assert "Train a toy" in lines
    assert any(line.split() == ["name=toy", "name", "of", "the", "run"] for line in lines)


def test_cfg_shows_the_composed_configuration(launch):
    code, lines, _ = launch("--cfg", "job", "network.width=3")
    assert code == 0
    assert "  width: 3" in lines
    assert launch("--cfg", "job", "network.widht=3")[0] == 1


def test_conf_dir_is_the_one_of_this_checkout():
    assert (conf_dir() / "hydra" / "default.yaml").is_file()
    assert conf_dir().parent == Path(__file__).parents[2]


def test_missing_conf_dir_names_the_places(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "scoreexp.app.conf_dir.__file__", str(tmp_path / "lib" / "scoreexp" / "app" / "conf_dir.py")
    )
    with pytest.raises(UserError, match="looked for at") as raised:
        conf_dir()
    assert str(tmp_path / "lib" / "scoreexp" / "conf") in str(raised.value)


NAMES = {
    "~/a.png": str(Path("~/a.png").expanduser()),
    "Ü.png": None,
    "it's.png": None,
    "#1.png": None,
    "a&b.png": None,
    "a(1).png": None,
    "a (1), b!.png": None,
    "Bilder mit Ümlaut/schönes Bild.png": None,
    r"a\ü\'b'\\": None,
    "a=b.png": None,
}


@pytest.mark.parametrize("plus", ["", "++"])
@pytest.mark.parametrize("sweep", [False, True])
def test_names_of_files_are_taken_as_they_stand(sweep, plus):
    names = [name for name in NAMES if not sweep or "," not in name]
    given = readable([f"{plus}image={name}" for name in names], sweep=sweep)
    parsed = OverridesParser.create().parse_overrides(given)
    assert [override.value() for override in parsed] == [NAMES[name] or name for name in names]


def test_a_task_starts_with_such_a_name_and_folder(launch, tmp_path):
    assert launch("image=it's Ü (1), b.png", "run_dir=${name} (1)/Ü") == (0, [], [])
    assert (tmp_path / "toy (1)" / "Ü" / "result").exists()
    code, shown, _ = launch("image=#1 ${name}.png", "--cfg=job", "--resolve")
    assert code == 0
    assert yaml.safe_load("\n".join(shown))["image"] == "#1 toy.png"


def test_what_hydra_reads_stays_as_it_is():
    plain = ["seed=3", "lr=1e-3", "a=[1,{b:c}]", "a='Ü (1)'", 'a="b,c"', "a=1,2", "a=range(1,3)"]
    given = [*plain, "~a", "+a=null", "a/b@c=d", "a=${b}"]
    assert readable(given, sweep=False) == readable(given, sweep=True) == given
    unfinished = ["a='Ü", "a=[Ü", "a={Ü}", "a=[b].png", "a=range(b,c)", "a b=Ü", "Ü"]
    assert readable(unfinished, sweep=False) == readable(unfinished, sweep=True) == unfinished


def test_commas_separate_in_sweeps_and_lists_only(launch, tmp_path):
    assert readable(["a=Ü,1"], sweep=False) == ["a='Ü,1'"]
    assert readable(["a=Ü,1,b(1,2).c"], sweep=True) == ["a='Ü',1,'b(1,2).c'"]
    assert readable(["a=[Ü/b,~/c, 1]"], sweep=False) == [f"a=['Ü/b',{Path('~/c').expanduser()}, 1]"]
    sweep = ["-m", "name=Ü (1),b", "hydra/launcher=basic"]
    code, _, lines = launch(*sweep)
    assert (code, lines) == (0, ["job 0: name='Ü (1)'", "job 1: name=b"])
    assert len(list((tmp_path / "outputs").glob("*/*/result"))) == 2


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["small"], "small is not KEY=VALUE: write it without blanks, such as experiment=small"),
        (["experiment", "=", "small"], "write it without blanks, such as experiment=small"),
        (["experiment=", "small"], "such as experiment=small"),
        (["experiment = small"], "such as experiment=small"),
        (["smal"], "such as experiment=small"),
        (["image=my", "picture.png"], "or in quotes, 'image=\"my picture.png\"'"),
        (["im(age=3"], "im(age cannot be a key"),
        (["image=a,b.png"], "add -m to run each value, or write image=[a,b.png] for a list, 'image=\"a,b.png\"'"),
        (["network=mlp,cnn"], "network=mlp,cnn is a sweep: add -m to run each value"),
        (["image=[it's]"], """quote its items, as in 'image=["a, b"]'"""),
        (["image=[a].png"], "to take the value as it stands write 'image=\"[a].png\"'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_shown_as_it_should_be_written(launch, argv, expected):
    code, _, lines = launch(*argv)
    assert code == 1
    assert len(lines) == 1
    assert expected in lines[0]
    written = re.search(r"('image=\".*\"')", lines[0])
    if written is not None:  # what is proposed works
        assert launch(*shlex.split(written[1]))[0] == 0


@pytest.mark.parametrize(
    "value",
    ["a.png", "Ü (1).png", "a,b.png", "Ü,b", "1e5", "null", "[a]", 'it\'s "so", x\\', "~/a", "a b", "-1"],
)
def test_shown_commands_can_be_pasted(tmp_path, value):
    command = shell_command("scoreexp.train", ["name=Ü x"], image=value, seed=3, run_dir=Path("my runs"))
    script = f'python() {{ printf "%s\\0" "$@"; }}; {command}'
    argv = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    arguments = argv.split("\0")[:-1]
    assert arguments[:2] == ["-m", "scoreexp.train"]
    expected = {"name": "Ü x", "image": value, "seed": 3, "run_dir": "my runs"}
    for sweep in (False, True):
        parsed = OverridesParser.create().parse_overrides(readable(arguments[2:], sweep=sweep))
        assert {override.key_or_group: override.value() for override in parsed} == expected


def test_an_error_is_said_once_where_one_key_is_the_other(launch):
    copy = "network.width=${seed}"
    assert launch("seed=abc", copy)[2] == ["error: seed=abc must be an int >= 0"]
    assert launch("seed=0", copy)[2] == ["error: network.width=0 must be an int >= 1"]


PIPED = """
import os, sys
from pathlib import Path
from scoreexp.app.launch import run_app

def task(cfg):
    print("one", flush=True)
    Path("go").write_text("")
    sys.stdin.readline()
    for stream in (sys.stdout, sys.stderr):
        stream.write("two\\n")
        stream.flush()
    os.system("echo three")
    Path("over").write_text("")

if __name__ == "__main__":
    sys.exit(run_app("train", "piped:task", argv=["-cp", sys.argv[1]], provided={"network": ["event_shape"]}))
"""


@pytest.mark.parametrize(("option", "stderr"), [("-uB", subprocess.STDOUT), ("-B", subprocess.PIPE)])
def test_a_reader_that_goes_away_does_not_end_the_command(conf, tmp_path, monkeypatch, stderr, option):
    (tmp_path / "piped.py").write_text(PIPED)
    monkeypatch.setenv("PYTHONPATH", str(conf.parent), prepend=os.pathsep)
    process = subprocess.Popen(
        [sys.executable, option, "piped.py", str(conf)],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "over").exists()
    assert said in (None, "two\n")


def test_streams_that_are_closed_from_the_start_and_full_disks(conf, tmp_path, monkeypatch):
    (tmp_path / "piped.py").write_text(PIPED)
    monkeypatch.setenv("PYTHONPATH", str(conf.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    command = f"{sys.executable} -B piped.py {conf} < /dev/null"
    assert subprocess.run(f"{command} >&- 2>&-", shell=True).returncode == 0
    assert Path("over").exists()
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True)
    assert full.returncode != 0
    assert "No space left on device" in full.stderr


@pytest.mark.slow
def test_processes_of_a_run_get_names_that_hydra_cannot_read(tmp_path):
    """Lightning starts them with the arguments of this process."""
    given = ["experiment=swiss_roll_vp", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    odd = ["trainer.max_steps=4", "run_dir=ü (2)/it's"]
    command = [sys.executable, "-m", "scoreexp.train", *given, *odd]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ü (2)" / "it's" / "checkpoints" / "last.ckpt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["ü (2)"]


def test_debug_fast_leaves_a_sampler_without_grid_as_it_is():
    short, usual = (
        composed(["experiment=swiss_roll_ddgan", *words], "train")["sampler"]
        for words in (["debug=fast"], [])
    )
    assert short == usual
