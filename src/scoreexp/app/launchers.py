"""How the jobs of a sweep are started: the choices of ``hydra/launcher`` beside Hydra's own.

A launcher is called with jobs, the sweep's folder and the devices of one job, and returns a status per job.
"""

import platform
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.console import Console
from rich.text import Text

from scoreexp.app.jobs import Job, JobStatus, forget_running, is_done, run_jobs, stored_status, visible_gpus
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
    """

    @checked
    def __init__(
        self,
        *,
        n_parallel: PositiveInt = 1,
        gpus: list[int] | None = None,
        fail_fast: bool = False,
        force: bool = False,
    ) -> None:
        self.n_parallel, self.gpus, self.fail_fast, self.force = n_parallel, gpus, fail_fast, force

    def __call__(self, jobs: Sequence[Job], folder: Path, devices_per_job: int) -> list[JobStatus]:
        return run_jobs(
            jobs,
            n_parallel=self.n_parallel,
            gpus=self.gpus,
            devices_per_job=devices_per_job,
            fail_fast=self.fail_fast,
            force=self.force,
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
        self._console = Console(stderr=True)

    def __call__(self, jobs: Sequence[Job], folder: Path, devices_per_job: int) -> list[JobStatus]:
        executor = self._executor(folder / "submitit", devices_per_job)
        statuses = [JobStatus("waiting") for _ in jobs]
        waiting = deque(range(len(jobs)))
        submitted: dict[int, Any] = {}
        stopping = False
        try:
            while submitted or (waiting and not stopping):
                while waiting and not stopping and len(submitted) < (self.n_parallel or len(jobs)):
                    position = waiting.popleft()
                    if is_done(jobs[position]) and not self.force:
                        statuses[position] = stored_status(jobs[position].folder)._replace(status="skipped")
                        self._say(f"{jobs[position].name} is done already")
                        continue
                    submitted[position] = self._submit(executor, jobs[position])
                    statuses[position] = JobStatus("running")
                time.sleep(WATCH_SECONDS[self.cluster] if submitted else 0)
                for position in [p for p, handle in submitted.items() if handle.done()]:
                    statuses[position] = _outcome(jobs[position], submitted.pop(position))
                    reason = f": {statuses[position].error}" if statuses[position].error else ""
                    self._say(f"{jobs[position].name} {statuses[position].status}{reason}")
                    if statuses[position].status == "failed" and self.fail_fast and not stopping:
                        stopping = True
                        for handle in submitted.values():
                            handle.cancel()
        except KeyboardInterrupt:
            self._leave(submitted)
        return statuses

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

    def _submit(self, executor: Any, job: Job) -> Any:
        record = job.folder / SUBMISSION_FILE
        earlier = read_json(record)
        if earlier.get("cluster") == self.cluster == "slurm":
            queued: Any = self._submitit.SlurmJob(folder=executor.folder, job_id=earlier["job_id"])
            if not queued.done(force_check=True):
                self._say(f"{job.name} is in the queue already as job {queued.job_id}")
                return queued
        job.folder.mkdir(parents=True, exist_ok=True)
        handle = executor.submit(SubmittedJob(job, self.force))
        write_json(record, {"cluster": self.cluster, "job_id": handle.job_id})
        self._say(f"{job.name} submitted as job {handle.job_id}")
        return handle

    def _leave(self, submitted: dict[int, Any]) -> NoReturn:
        """After Ctrl-C: a cluster goes on by itself, jobs on this machine stop."""
        identifiers = " ".join(handle.job_id for handle in submitted.values())
        if self.cluster == "slurm":
            self._say(f"the jobs go on; the same command watches them again, scancel {identifiers} ends them")
        else:
            for handle in submitted.values():
                handle.cancel()
            while not all(handle.done() for handle in submitted.values()):
                time.sleep(WATCH_SECONDS[self.cluster])
        raise KeyboardInterrupt

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


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


def _outcome(job: Job, handle: Any) -> JobStatus:
    status = stored_status(job.folder)
    if status.status in ("done", "failed", "interrupted"):
        return status
    error = handle.exception()
    last = (
        str(error).strip().splitlines()[-1]
        if error is not None and str(error).strip()
        else "it never started"
    )
    return JobStatus("failed", None, f"{last} (log: {handle.paths.stderr})")
