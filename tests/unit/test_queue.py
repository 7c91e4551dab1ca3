"""The loop that runs jobs, with an executor that starts nothing: an attempt ends after so many looks at it."""

import os
import signal
from types import SimpleNamespace

import pytest

from scoreexp.app import launchers
from scoreexp.app.jobs import Job, JobStatus, write_status
from scoreexp.app.queue import Attempt, Executor, run_queue
from scoreexp.system.json_files import write_json

NEVER = 10**6


class Looked(Attempt):
    """Ends at the ``looks``-th look at it, or at the second one after it is asked to stop."""

    def __init__(self, job, looks=1, status="done", *, again=False, send=None):
        super().__init__(job, "started")
        self.looks, self.status, self.again, self.send = looks, status, again, send
        self.stops = 0

    def has_ended(self):
        self.looks -= 1
        if self.send is not None:
            os.kill(os.getpid(), self.send)
            self.send = None
        return self.looks <= 0

    def stop(self):
        self.stops += 1
        self.looks = 2

    def conclude(self, asked):
        return JobStatus(self.status) if asked is None else JobStatus("interrupted", None, asked)


class Listed(Executor):
    """Hands out the attempts that are listed by the job's name; notes in which place each runs."""

    watch_seconds = 0.0

    def __init__(self, places, found=(), farewell=None, **attempts):
        self.places, self.found, self.farewell = places, list(found), farewell
        self.attempts, self.started = attempts, []

    def find(self, job):
        return self.found.pop() if self.found and self.found[-1].job is job else None

    def start(self, job, place):
        attempt = self.attempts.get(job.name) or Looked(job)
        if isinstance(attempt, Exception):
            raise attempt
        attempt.job = job
        self.started.append((job.name, place))
        return attempt

    def parting(self, running):
        return self.farewell


@pytest.fixture
def make(tmp_path):
    return lambda names: [Job(name, "module", ("seed=0",), tmp_path / name) for name in names]


def states(jobs, executor, **given):
    return [status.status for status in run_queue(jobs, executor, **given)]


def test_a_place_is_taken_again_when_its_job_is_over(make):
    executor = Listed(2, a=Looked(None, 5), b=Looked(None, 1), c=Looked(None, 1))
    assert states(make("abc"), executor) == ["done"] * 3
    assert executor.started == [("a", 0), ("b", 1), ("c", 1)]


def test_without_a_limit_all_run_at_once(make):
    executor = Listed(None)
    assert states(make("abc"), executor) == ["done"] * 3
    assert [place for _, place in executor.started] == [0, 1, 2]


def test_what_is_found_running_is_waited_for_and_run_again_where_its_end_says_nothing(make):
    for again, started in ((True, [("a", 0)]), (False, [])):
        jobs = make("a")
        executor = Listed(1, found=[Looked(jobs[0], 2, again=again)])
        assert states(jobs, executor) == ["done"]
        assert executor.started == started


def test_a_done_job_is_skipped_unless_forced(make):
    [job] = jobs = make("a")
    job.folder.mkdir()
    write_status(job.folder, {"status": "done", "module": "module", "overrides": ["seed=0"], "seconds": 7.0})
    assert run_queue(jobs, Listed(1)) == [JobStatus("skipped", None, None, 7.0)]
    assert states(jobs, Listed(1), force=True) == ["done"]


def test_what_cannot_be_started_has_failed_and_stops_the_others_only_if_asked(make, capsys):
    def executor():
        return Listed(2, a=Looked(None, NEVER if stops else 3), b=OSError("no room"))

    for stops in (False, True):
        found = executor()
        statuses = run_queue(make("abc"), found, fail_fast=stops)
        assert statuses[1].error == "cannot be started: no room"
        expected = ["interrupted", "failed", "waiting"] if stops else ["done", "failed", "done"]
        assert [status.status for status in statuses] == expected
        assert found.attempts["a"].stops == stops
    assert "[2/3] a interrupted: stopped because b failed" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("signum", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_stops_jobs_or_leaves_them_to_themselves(make, capsys, signum, error):
    for farewell in (None, "the jobs go on"):
        attempt = Looked(None, NEVER, send=signum)
        with pytest.raises(error):
            run_queue(make("ab"), Listed(1, farewell=farewell, a=attempt))
        said = capsys.readouterr().err
        assert attempt.stops == (farewell is None)
        assert (farewell or "1 running jobs save and stop; once more to stop at once") in said
        assert "b started" not in said


def test_an_error_leaves_nothing_unwatched(make, monkeypatch):
    attempt = Looked(None, NEVER)
    monkeypatch.setattr(
        Listed, "start", lambda self, job, place: attempt if job.name == "a" else 1 / 0, raising=True
    )
    with pytest.raises(ZeroDivisionError):
        run_queue(make("ab"), Listed(2))
    assert attempt.stops == 1


class Handle:
    """submitit's job."""

    def __init__(self, job_id, looks=NEVER, folder=None):
        self.job_id, self.looks, self.folder, self.cancelled = job_id, looks, folder, False
        self.paths = SimpleNamespace(stderr="log.err")

    def done(self, force_check=False):
        if self.looks == 1:
            os.kill(os.getpid(), signal.SIGINT)
        self.looks -= 1
        return False

    def cancel(self):
        self.cancelled = True


def test_ctrl_c_leaves_the_jobs_of_a_cluster_and_the_next_call_watches_them(make, capsys, monkeypatch):
    monkeypatch.setitem(launchers.WATCH_SECONDS, "slurm", 0.0)
    _, second = jobs = make("ab")
    handles = [Handle("11"), Handle("12", looks=2)]
    executor = SimpleNamespace(folder="folder", submit=lambda job: handles[job.job is second])
    submitit = SimpleNamespace(SlurmJob=lambda folder, job_id: handles[job_id == "12"])

    def submissions():
        return launchers._Submissions(submitit, executor, "slurm", None, force=False)

    with pytest.raises(KeyboardInterrupt):
        run_queue(jobs, submissions())
    said = capsys.readouterr().err
    assert "a submitted as job 11" in said
    assert "the same command watches them again, scancel 11 12 ends them" in said
    handles[1].looks = 3
    with pytest.raises(KeyboardInterrupt):
        run_queue(jobs, submissions())
    said = capsys.readouterr().err
    assert "a is in the queue already as job 11" in said
    assert "submitted" not in said
    assert not any(handle.cancelled for handle in handles)


def test_a_submitted_job_ends_as_its_status_file_says(make):
    [job] = make("a")
    handle = Handle("11")
    handle.exception = lambda: RuntimeError("first\nout of memory")
    attempt = launchers._Submitted(job, handle, "submitted")
    assert attempt.conclude(None) == JobStatus("failed", None, "out of memory (log: log.err)")
    assert attempt.conclude("stopped") == JobStatus("interrupted", None, "stopped")
    job.folder.mkdir()
    write_json(job.folder / "status.json", {"status": "done", "exit_code": 0, "seconds": 3.0})
    assert attempt.conclude("stopped") == JobStatus("done", 0, None, 3.0)
