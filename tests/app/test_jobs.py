"""The queue of jobs, with a job that starts at once: a few lines of Python that import nothing heavy."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scoreexp.app import local_jobs
from scoreexp.app.jobs import Job, JobStatus, describe_failures, log_lines, quoted, read_status
from scoreexp.app.local_jobs import run_jobs
from scoreexp.core.errors import UserError
from scoreexp.system.fork_server import can_fork

FAKE = """
import atexit, json, logging, os, random, signal, sys, threading, time
from pathlib import Path

asked = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = Path(asked["run_dir"].strip("'"))
seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
(folder / "seen.json").write_text(json.dumps(seen | {"argv": sys.argv[1:]}))
with (folder / "calls").open("a") as calls:
    calls.write(f"{os.getpid()} {time.monotonic()}\\n")

def stop(signum, frame):
    (folder / "saved").write_text("saved")
    sys.exit(130)

signal.signal(signal.SIGINT, stop)
match asked["do"]:
    case "fail":
        print("error: image=x.png was not found")
        print("a remark of some library at the end")
        sys.exit(3)
    case "raise":
        raise RuntimeError("a fault of the program")
    case "die":
        os.kill(os.getpid(), signal.SIGKILL)
    case "wait":
        (folder / "ready").touch()
        while not (folder / "saved").exists() and not (folder / "go").exists():
            time.sleep(0.01)
        (folder / "go").unlink()
    case "nap":
        time.sleep(0.5)
    case "spoil":
        os.chdir("/")
        os.environ["SPOILT"] = sys.argv[0] = "spoilt"
        logging.getLogger().addHandler(logging.NullHandler())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=time.sleep, args=(0.2,)).start()
    case "look":
        main = sys.modules["__main__"]
        world = {
            "argv": sys.argv[:2], "orig_argv": sys.orig_argv[:4], "cwd": os.getcwd(), "path": sys.path,
            "main": (main.__name__, main.__file__, main.__spec__.name, str(main.folder)),
            "leads": (os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()),
            "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
            "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)],
            "masked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "wakeup": signal.set_wakeup_fd(-1),
            "open": [os.path.realpath(f"/proc/self/fd/{n}") for n in ("0", "1", "2")],
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")), "logging": len(logging.getLogger().handlers),
            "unbuffered": (sys.stdout.write_through, sys.stdin.read()), "umask": os.umask(0o22), "nice": os.nice(0),
        }
        (folder / "world.json").write_text(json.dumps(world).replace(str(folder), "FOLDER"))
        import numpy
        (folder / "random").write_text(f"{random.random()} {numpy.random.random()}")
        atexit.register((folder / "at the end").touch)
(folder / "result").write_text("done")
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """``make("a", "fail")``: a job that fails; what others do is in FAKE."""
    (tmp_path / "fake_job.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def job(name, do="work", folder=None):
        return Job(name, "fake_job", (f"do={do}",), folder or tmp_path / "sweep" / name)

    yield job
    for folder in (tmp_path / "sweep").glob("*"):  # nothing outlives a test that failed
        stored = read_status(folder)
        if stored.get("status") == "running" and stored["hostname"] == platform.node():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(stored["pid"], signal.SIGKILL)


def calls(job: Job) -> int:
    file = job.folder / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def until(condition, seconds=30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_failure_is_shown_and_the_others_go_on(make, capsys):
    jobs = [make("a"), make("b", "fail"), make("c", "raise"), make("d", "die"), make("e")]
    statuses = run_jobs(jobs)
    assert [s.status for s in statuses] == ["done", "failed", "failed", "failed", "done"]
    assert [s.exit_code for s in statuses] == [0, 3, 1, 137, 0]
    assert statuses[1].error == "error: image=x.png was not found"
    assert statuses[2].error == "RuntimeError: a fault of the program"
    assert "SIGKILL" in statuses[3].error
    lines = capsys.readouterr().err.splitlines()
    failed = next(i for i, line in enumerate(lines) if "b failed" in line)
    assert "image=x.png was not found" in lines[failed]
    assert failed < next(i for i, line in enumerate(lines) if "c started" in line), "shown at once"
    assert describe_failures(jobs, statuses) == "3 of 5 jobs failed: b, c, d"
    assert describe_failures(jobs[:1], statuses[:1]) is None


def test_status_file_says_what_the_job_had(make):
    job = make("a", "fail")
    [status] = run_jobs([job])
    stored = read_status(job.folder)
    assert stored["status"] == "failed"
    assert stored["exit_code"] == 3
    assert stored["error"] == status.error
    assert stored["seconds"] == pytest.approx(status.seconds, abs=1e-3)
    assert stored["overrides"] == ["do=fail"]
    assert stored["hostname"] == platform.node()
    assert stored["attempts"] == 1
    argv = json.loads((job.folder / "seen.json").read_text())["argv"]
    assert argv == ["do=fail", f"run_dir={job.folder}", "resume=auto"]
    assert stored["command"].endswith(" ".join(argv))
    assert stored["pid"] == int((job.folder / "calls").read_text().split()[0])
    run_jobs([job])
    assert read_status(job.folder)["attempts"] == 2
    assert log_lines(job.folder).count("error: image=x.png was not found") == 2, "the log is continued"


def world(job: Job) -> dict:
    return json.loads((job.folder / "world.json").read_text())


def test_a_forked_job_finds_the_same_world_as_one_started_anew(make, monkeypatch):
    monkeypatch.setattr(local_jobs, "_preload", lambda jobs: ["numpy.random"])
    forked = [make("spoil", "spoil"), make("die", "die"), make("a", "look"), make("b", "look")]
    anew = [make("c", "look"), make("d", "look")]
    assert [s.exit_code for s in run_jobs(forked)] == [0, 137, 0, 0]
    assert [s.status for s in run_jobs(anew, fork=False)] == ["done"] * 2
    records = [read_status(job.folder) for job in (*forked, *anew)]
    assert [record["forked"] for record in records] == [can_fork()] * 4 + [False] * 2
    assert world(forked[2]) == world(forked[3]) == world(anew[0]) == world(anew[1])
    drawn = {number for job in (*forked[2:], *anew) for number in (job.folder / "random").read_text().split()}
    assert len(drawn) == 8
    assert all((job.folder / "at the end").exists() for job in (*forked[2:], *anew))


def test_jobs_with_gpus_or_alone_import_for_themselves(make, monkeypatch):
    jobs = [make("a"), make("b")]
    run_jobs(jobs, gpus=[0])
    run_jobs(jobs[:1], force=True)
    assert not any(read_status(job.folder)["forked"] for job in jobs)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    run_jobs(jobs, force=True)
    assert not any(read_status(job.folder)["forked"] for job in jobs)


@pytest.mark.skipif(not can_fork(), reason="forks")
def test_a_server_with_threads_does_not_fork(make, monkeypatch):
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    (Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) / "threaded.py").write_text(text)
    monkeypatch.setattr(local_jobs, "_preload", lambda jobs: ["threaded"])
    jobs = [make("a"), make("b")]
    assert [s.status for s in run_jobs(jobs)] == ["done"] * 2
    assert not any(read_status(job.folder)["forked"] for job in jobs)


@pytest.mark.skipif(not can_fork(), reason="forks")
def test_jobs_survive_their_server_and_those_of_unknown_end_run_again(make, launch):
    jobs = [make("a", "wait"), make("b", "wait"), make("c")]
    launcher = launch(jobs)
    until(lambda: all((job.folder / "ready").exists() for job in jobs[:2]))
    [server] = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(server), signal.SIGKILL)
    for job in jobs[:2]:
        (job.folder / "go").touch()
    until(lambda: all(calls(job) == 2 for job in jobs[:2]))
    for job in jobs[:2]:
        (job.folder / "go").touch()
    launcher.communicate(timeout=30)
    assert launcher.returncode == 0
    records = [read_status(job.folder) for job in jobs]
    assert [(r["status"], r["attempts"], r["forked"]) for r in records] == [("done", 2, False)] * 2 + [
        ("done", 1, False)
    ]


def test_only_what_is_missing_runs_again(make):
    jobs = [make("a"), make("b", "fail")]
    run_jobs(jobs)
    jobs = [make("a"), make("b"), make("c")]
    statuses = run_jobs(jobs)
    assert [s.status for s in statuses] == ["skipped", "done", "done"]
    assert statuses[0].seconds is not None
    assert [calls(job) for job in jobs] == [1, 2, 1]
    run_jobs([Job("a", "fake_job", ("do=work", "seed=1"), jobs[0].folder)])
    assert calls(jobs[0]) == 2, "other overrides are another job"
    run_jobs([Job("a", "fake_job", ("seed=1", "do=work"), jobs[0].folder)])
    assert calls(jobs[0]) == 2, "their order does not matter"
    run_jobs(jobs[1:], force=True)
    assert [calls(job) for job in jobs[1:]] == [3, 2]


def test_the_queue_has_no_barrier(make):
    """While one job waits, the other place works off the rest."""
    slow, *quick = jobs = [make("slow", "wait"), make("b"), make("c"), make("d", "go")]
    # the last one lets the first go: with batches of two it would never start
    release = f"import pathlib; pathlib.Path({str(slow.folder / 'go')!r}).touch()"
    (Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) / "release.py").write_text(release)
    jobs[3] = Job("d", "release", (), quick[-1].folder)
    assert [s.status for s in run_jobs(jobs, n_parallel=2)] == ["done"] * 4


def test_parallel_jobs_share_cores_and_gpus(make, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    jobs = [make(name, "nap") for name in "ab"]
    assert [s.status for s in run_jobs(jobs, n_parallel=2, gpus=[3, 5])] == ["done", "done"]
    seen = [json.loads((job.folder / "seen.json").read_text()) for job in jobs]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in seen] == ["3", "5"]
    assert [s["OMP_NUM_THREADS"] for s in seen] == [str(max(1, cores // 2))] * 2
    stored = read_status(jobs[1].folder)
    assert (stored["gpus"], stored["threads"], stored["jobs_at_once"]) == (["5"], max(1, cores // 2), 2)
    both = make("c")
    run_jobs([both], gpus=[3, 5], devices_per_job=2)
    assert json.loads((both.folder / "seen.json").read_text())["CUDA_VISIBLE_DEVICES"] == "3,5"
    alone = make("d")
    run_jobs([alone])
    assert json.loads((alone.folder / "seen.json").read_text())["OMP_NUM_THREADS"] is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    visible = [make("e"), make("f")]
    run_jobs(visible, n_parallel=2)
    seen = [json.loads((job.folder / "seen.json").read_text())["CUDA_VISIBLE_DEVICES"] for job in visible]
    assert seen == ["7", "8"]


def test_fail_fast_stops_the_others(make):
    jobs = [make("a", "wait"), make("b", "fail"), make("c")]
    statuses = run_jobs(jobs, n_parallel=2, fail_fast=True)
    assert [s.status for s in statuses] == ["interrupted", "failed", "waiting"]
    assert calls(jobs[2]) == 0
    assert describe_failures(jobs, statuses) == (
        "1 of 3 jobs failed: b; 1 of 3 jobs interrupted: a; 1 of 3 jobs not started: c"
    )


LAUNCHER = """
import json, sys
from pathlib import Path
from scoreexp.app.jobs import Job
from scoreexp.app.local_jobs import run_jobs
run_jobs([Job(name, "fake_job", (f"do={do}",), Path(folder)) for name, do, folder in json.loads(sys.argv[1])], n_parallel=2)
"""


@pytest.fixture
def launch():
    """Run jobs two at a time under a launcher in a process of its own."""
    started = []

    def start(jobs) -> subprocess.Popen:
        given = json.dumps(
            [(job.name, job.overrides[0].removeprefix("do="), str(job.folder)) for job in jobs]
        )
        command = [sys.executable, "-c", LAUNCHER, given]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_lets_the_jobs_save(make, launch, signum, code):
    jobs = [make("a", "wait"), make("b", "wait"), make("c")]
    launcher = launch(jobs)
    until(lambda: all((job.folder / "ready").exists() for job in jobs[:2]))
    launcher.send_signal(signum)
    said = launcher.communicate(timeout=30)[1]
    assert launcher.returncode == code
    assert "2 running jobs save and stop" in said
    assert all((job.folder / "saved").exists() for job in jobs[:2])
    assert [read_status(job.folder).get("status") for job in jobs] == ["interrupted", "interrupted", None]
    reasons = {read_status(job.folder)["error"] for job in jobs[:2]}
    assert reasons == {f"stopped by {signum.name}"}, "what the user sent, not what the job got"
    for job in jobs[:2]:
        (job.folder / "go").touch()
    assert [s.status for s in run_jobs(jobs, n_parallel=2)] == ["done"] * 3


def test_a_closed_terminal_is_ignored_under_nohup(make, launch):
    jobs = [make("a", "wait"), make("b", "wait")]
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does, for what is started
    try:
        launcher = launch(jobs)
    finally:
        signal.signal(signal.SIGHUP, previous)
    until(lambda: all((job.folder / "ready").exists() for job in jobs))
    launcher.send_signal(signal.SIGHUP)
    for job in jobs:
        (job.folder / "go").touch()
    launcher.communicate(timeout=30)
    assert launcher.returncode == 0
    assert [read_status(job.folder)["status"] for job in jobs] == ["done", "done"]


def test_jobs_of_a_killed_launcher_are_waited_for_and_dead_ones_run_again(make, launch):
    alive, dead = jobs = [make("alive", "wait"), make("dead", "wait")]
    launcher = launch(jobs)
    until(lambda: all((job.folder / "ready").exists() and read_status(job.folder) for job in jobs))
    launcher.kill()
    launcher.communicate()
    process = read_status(dead.folder)["pid"]
    os.killpg(process, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{process}").exists() or not Path(f"/proc/{process}/cmdline").read_bytes())
    assert read_status(dead.folder)["status"] == "running", "nobody was left to say otherwise"
    again = launch(jobs)
    until(lambda: calls(dead) == 2)
    assert calls(alive) == 1, "it still runs, and is not started beside itself"
    for job in jobs:
        (job.folder / "go").touch()
    until(lambda: calls(alive) == 2)  # once more, to know how it ended
    (alive.folder / "go").touch()
    said = again.communicate(timeout=30)[1]
    assert again.returncode == 0
    assert "alive is running already" in said
    assert [read_status(job.folder)["status"] for job in jobs] == ["done", "done"]


def test_impossible_requests(make, tmp_path):
    with pytest.raises(UserError, match="n_parallel=0"):
        run_jobs([make("a")], n_parallel=0)
    with pytest.raises(UserError, match="same name a"):
        run_jobs([make("a"), make("a", folder=tmp_path / "b")])
    with pytest.raises(UserError, match="same folder"):
        run_jobs([make("a", folder=tmp_path / "c"), make("b", folder=tmp_path / "c")])
    with pytest.raises(UserError, match="needs 2 GPUs, there are 1"):
        run_jobs([make("a")], gpus=[0], devices_per_job=2)
    elsewhere = make("d")
    elsewhere.folder.mkdir(parents=True)
    record = {"status": "running", "hostname": "another-machine", "pid": 1}
    (elsewhere.folder / "status.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="another-machine"):
        run_jobs([elsewhere])
    (tmp_path / "file").touch()
    [status] = run_jobs([make("e", folder=tmp_path / "file" / "e")])
    assert status.status == "failed"
    assert "cannot be started" in status.error
    assert run_jobs([]) == []


def test_folders_with_odd_names_reach_the_job(make, tmp_path):
    job = make("a", folder=tmp_path / "my runs, (new)")
    assert run_jobs([job]) == [JobStatus("done", 0, None, pytest.approx(0, abs=60))]
    assert quoted("/a/b+c_1.5") == "/a/b+c_1.5"
    assert quoted("it's") == r"'it\'s'"
