"""Worker processes with one thread each, which take jobs and die with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, TypeVar

from warmfree.lab.interrupt import Interrupted

__all__ = ["Event", "JobFailedError", "run_jobs"]

Job = TypeVar("Job")

Report = Callable[[Any], None]
"""What a running job calls to report; dropped when the last report was less than REPORT_EVERY ago."""

REPORT_EVERY = 0.2
PATIENCE = 10.0


class JobFailedError(RuntimeError):
    """A job raised, or its process was killed; the message says which."""


@dataclass(frozen=True, slots=True)
class Event(Generic[Job]):
    """What happened to a job: it started, reported ``value``, or is done."""

    job: Job
    kind: Literal["started", "report", "done"]
    value: Any = None


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Any = None


@contextlib.contextmanager
def run_jobs(
    work: Callable[[Job, Report], None], jobs: Sequence[Job], *, workers: int
) -> Iterator[Iterator[Event[Job] | None]]:
    """Run jobs in parallel processes; iterating what the block gets does the work.

    Processes are started afresh (spawn), never forked, and each keeps to one thread. Leaving the block early
    asks running jobs to stop with SIGTERM, which a training loop answers by saving its state.

    Args:
        work: a picklable function that does one job, given the job and a function to report with.
        jobs: picklable jobs, none of them None, started in this order.
        workers: the number of processes, >= 1.

    Yields:
        The events as they happen, and None several times a second when nothing does.

    Raises:
        JobFailedError: a job raised or its process died; the others are stopped.
    """
    pool = [_start(work) for _ in range(min(workers, len(jobs)))]
    try:
        yield _drive(pool, deque(jobs))
    finally:
        _stop(pool)


def _drive(pool: list[_Worker], waiting: deque[Job]) -> Iterator[Event[Job] | None]:
    idle = list(pool)
    while waiting or len(idle) < len(pool):
        while waiting and idle:
            worker = idle.pop()
            worker.job = waiting.popleft()
            worker.connection.send(worker.job)
            yield Event(worker.job, "started")
        busy = {worker.connection: worker for worker in pool if worker not in idle}
        ready = wait(list(busy), timeout=0.25)
        if not ready:
            yield None
        for connection in ready:
            worker = busy[connection]  # type: ignore[index]
            try:
                kind, value = worker.connection.recv()
            except EOFError:
                worker.process.join()
                raise JobFailedError(
                    f"the process that ran {worker.job} died (exit code {worker.process.exitcode}); "
                    f"out of memory is the usual reason: try fewer --workers"
                ) from None
            if kind == "failed":
                raise JobFailedError(f"{worker.job} failed: {value}")
            yield Event(worker.job, kind, value)
            if kind == "done":
                worker.job = None
                idle.append(worker)


def _start(work: Callable[[Job, Report], None]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
    with _environment_of_children():
        process.start()
    theirs.close()  # so that a worker's death is seen as the end of the pipe
    return _Worker(process, ours)


@contextlib.contextmanager
def _environment_of_children() -> Iterator[None]:
    """Set what a child must find when it starts: one thread, and no Ctrl-C while it imports.

    The signal is held back, not ignored: one that comes meanwhile reaches this process when the child has started.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    mask = hasattr(signal, "pthread_sigmask")  # not on Windows
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else set()
    try:
        yield
    finally:
        if mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _stop(pool: list[_Worker]) -> None:
    for worker in pool:
        with contextlib.suppress(OSError):  # it may be dead already
            worker.connection.send(None)
        if worker.job is not None:
            worker.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for worker in pool:
        worker.process.join(max(deadline - time.monotonic(), 0.0))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()


def _serve(work: Callable[[Job, Report], None], connection: Connection, parent: int) -> None:
    """Do jobs until None comes or the pipe closes (in the worker process)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and asks with SIGTERM
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    last = 0.0

    def report(value: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_EVERY:
            last = time.monotonic()
            connection.send(("report", value))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, Interrupted, KeyboardInterrupt):
        while (job := connection.recv()) is not None:
            try:
                work(job, report)
            except (BrokenPipeError, ConnectionResetError, Interrupted):
                raise  # the parent is gone, or wants this worker to go
            except Exception:
                connection.send(("failed", traceback.format_exc()))
            else:
                connection.send(("done", None))


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, even if the parent was killed and could say nothing."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
