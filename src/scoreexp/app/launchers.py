"""How the jobs of a sweep are started: the choices of ``hydra/launcher`` beside Hydra's own.

A launcher is called with jobs, the sweep's folder and the devices of one job, and returns a status per job.
"""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from scoreexp.app.jobs import Job, JobStatus, forget_running, stored_status
from scoreexp.app.local_jobs import run_jobs, visible_gpus
from scoreexp.app.queue import Attempt, Executor, run_queue
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import PositiveInt
from scoreexp.system.json_files import read_json, write_json

SUBMISSION_FILE = "submission.json"
WATCH_SECONDS = {"local": 0.2, "slurm": 10.0}


class ProcessLauncher:
    """Run the jobs on this machine, see ``run_jobs``.

    Args:
        n_parallel: jobs at once.
        gpus: numbers of the GPUs to hand out; None: all visible ones, if several jobs run at once.
        fail_fast: stop the others when one fails.
        force: run jobs again that are done.
        fork: import once for all jobs, where that is possible.
    """

    @checked
    def __init__(
        self,
        *,
        n_parallel: PositiveInt = 1,
        gpus: list[int] | None = None,
        fail_fast: bool = False,
        force: bool = False,
        fork: bool = True,
    ) -> None:
        self.n_parallel, self.gpus, self.fail_fast, self.force = n_parallel, gpus, fail_fast, force
        self.fork = fork

    def __call__(self, jobs: Sequence[Job], folder: Path, devices_per_job: int) -> list[JobStatus]:
        return run_jobs(
            jobs,
            n_parallel=self.n_parallel,
            gpus=self.gpus,
            devices_per_job=devices_per_job,
            fail_fast=self.fail_fast,
            force=self.force,
            fork=self.fork,
        )


class SubmititLauncher:
    """Submit the jobs through submitit, to Slurm or, to try it out, to this machine.

    What is submitted is the same command under the same supervision as with ``ProcessLauncher``. A job that Slurm
    preempts, or that reaches its time limit, saves, is queued again and goes on. Repeating the command watches the
    jobs that are still queued or running and submits only what is missing.

    Args:
        cluster: ``slurm`` or ``local``.
        n_parallel: jobs submitted at once; None submits all.
        fail_fast: cancel the others when one fails.
        force: run jobs again that are done.
        timeout_min: wall-clock limit of a job, minutes.
        parameters: of submitit's ``AutoExecutor.update_parameters``; None leaves one out.

    Raises:
        UserError: submitit is not installed.
    """

    @checked
    def __init__(
        self,
        *,
        cluster: Literal["slurm", "local"],
        n_parallel: PositiveInt | None = None,
        fail_fast: bool = False,
        force: bool = False,
        timeout_min: PositiveInt = 1440,
        parameters: dict[str, int | float | str | None] | None = None,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                f"hydra/launcher=submitit_{cluster} needs submitit: pip install 'scoreexp[slurm]'"
            ) from error
        self._submitit = submitit
        self.cluster, self.n_parallel, self.fail_fast, self.force = cluster, n_parallel, fail_fast, force
        self.timeout_min, self.parameters = timeout_min, dict(parameters or {})

    def __call__(self, jobs: Sequence[Job], folder: Path, devices_per_job: int) -> list[JobStatus]:
        submissions = _Submissions(
            self._submitit,
            self._executor(folder / "submitit", devices_per_job),
            self.cluster,
            self.n_parallel,
            self.force,
        )
        return run_queue(jobs, submissions, fail_fast=self.fail_fast, force=self.force)

    def _executor(self, folder: Path, devices_per_job: int) -> Any:
        parameters = {**self.parameters, "timeout_min": self.timeout_min, "name": "scoreexp"}
        if parameters.get("gpus_per_node") is None and (self.cluster == "slurm" or visible_gpus()):
            parameters["gpus_per_node"] = devices_per_job
        try:
            executor = self._submitit.AutoExecutor(folder=folder, cluster=self.cluster)
            executor.update_parameters(
                **{name: value for name, value in parameters.items() if value is not None}
            )
        except (RuntimeError, NameError, AssertionError) as error:  # what submitit raises
            raise UserError(
                f"hydra/launcher=submitit_{self.cluster}: {' '.join(str(error).split())}"
            ) from error
        return executor


class _Submissions(Executor):
    """Submits jobs; those on a cluster go on by themselves when the queue is left."""

    def __init__(
        self, submitit: Any, executor: Any, cluster: str, n_parallel: int | None, force: bool
    ) -> None:
        self._submitit, self._executor, self._cluster, self._force = submitit, executor, cluster, force
        self.places, self.watch_seconds = n_parallel, WATCH_SECONDS[cluster]

    def find(self, job: Job) -> Attempt | None:
        earlier = read_json(job.folder / SUBMISSION_FILE)
        if not (earlier.get("cluster") == self._cluster == "slurm"):
            return None
        queued: Any = self._submitit.SlurmJob(folder=self._executor.folder, job_id=earlier["job_id"])
        if queued.done(force_check=True):
            return None
        return _Submitted(job, queued, f"is in the queue already as job {queued.job_id}")

    def start(self, job: Job, place: int) -> Attempt:
        job.folder.mkdir(parents=True, exist_ok=True)
        handle = self._executor.submit(SubmittedJob(job, self._force))
        write_json(job.folder / SUBMISSION_FILE, {"cluster": self._cluster, "job_id": handle.job_id})
        return _Submitted(job, handle, f"submitted as job {handle.job_id}")

    def parting(self, running: Sequence[Attempt]) -> str | None:
        if self._cluster != "slurm":
            return None
        identifiers = " ".join(attempt.job_id for attempt in running if isinstance(attempt, _Submitted))
        return f"the jobs go on; the same command watches them again, scancel {identifiers} ends them"


class _Submitted(Attempt):
    """A job of a cluster, whose status file another machine writes.

    Args:
        job: what was submitted.
        handle: submitit's.
        news: see ``Attempt``.
    """

    def __init__(self, job: Job, handle: Any, news: str) -> None:
        super().__init__(job, news)
        self._handle = handle

    @property
    def job_id(self) -> str:
        return str(self._handle.job_id)

    def has_ended(self) -> bool:
        return bool(self._handle.done())

    def stop(self) -> None:
        self._handle.cancel()

    def conclude(self, asked: str | None) -> JobStatus:
        status = stored_status(self.job.folder)
        if status.status in ("done", "failed", "interrupted"):
            return status
        if asked is not None:
            return JobStatus("interrupted", None, asked)
        error = self._handle.exception()
        last = str(error).strip().splitlines()[-1:] if error is not None else []
        reason = last[0] if last else "it never started"
        return JobStatus("failed", None, f"{reason} (log: {self._handle.paths.stderr})")


class SubmittedJob:
    """What is pickled for a cluster: one job under supervision, to be submitted again if it is preempted."""

    def __init__(self, job: Job, force: bool) -> None:
        self.job, self.force = job, force

    def __call__(self) -> JobStatus:
        forget_running(self.job.folder, platform.node())
        return run_jobs([self.job], force=self.force)[0]

    def checkpoint(self) -> Any:
        """Called by submitit before a job is queued again; the process saves when this one leaves ``run_jobs``."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
