import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from warmfree.lab.interrupt import Interrupts
from warmfree.lab.workers import JobFailedError, Report, run_jobs


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie of this process counts as dead.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def write_facts(job: Path, report: Report) -> None:
    report("first")
    report("too soon after the first")
    threads = f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}"
    job.write_text(f"{os.getpid()} {threads} {signal.getsignal(signal.SIGINT) == signal.SIG_IGN}")


def fail_or_die(job: str, report: Report) -> None:
    if job == "raise":
        raise ValueError("no such thing")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def save_when_asked(job: Path, report: Report) -> None:
    with Interrupts() as interrupts:
        report(os.getpid())
        while not interrupts.requested:
            time.sleep(0.01)
    job.write_text("saved")


def test_every_job_is_done_once_in_processes_of_one_thread_that_are_reused(tmp_path: Path) -> None:
    jobs = [tmp_path / str(number) for number in range(5)]
    threads = os.environ.get("OMP_NUM_THREADS")
    with run_jobs(write_facts, jobs, workers=2) as events:
        seen = [event for event in events if event is not None]
    assert [event.job for event in seen if event.kind == "started"] == jobs
    assert sorted(event.job for event in seen if event.kind == "done") == jobs
    assert {event.value for event in seen if event.kind == "report"} <= {"first"}
    facts = [job.read_text().split() for job in jobs]
    assert {tuple(fact[1:]) for fact in facts} == {("1", "1", "True")}
    assert len({fact[0] for fact in facts}) <= 2
    assert str(os.getpid()) not in {fact[0] for fact in facts}
    assert not multiprocessing.active_children()
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("job", "message"),
    [("raise", "raise failed: (?s:.*)ValueError: no such thing"), ("die", "died .exit code -9.")],
)
def test_a_job_that_fails_and_a_worker_that_dies_are_errors(job: str, message: str) -> None:
    with pytest.raises(JobFailedError, match=message), run_jobs(fail_or_die, [job], workers=1) as events:
        list(events)
    assert not multiprocessing.active_children()


def test_leaving_early_lets_running_jobs_save(tmp_path: Path) -> None:
    with run_jobs(save_when_asked, [tmp_path / "job"], workers=1) as events:
        for event in events:
            if event is not None and event.kind == "report":
                break
    assert (tmp_path / "job").read_text() == "saved"
    assert not multiprocessing.active_children()


SCRIPT = """
import sys, time
from pathlib import Path
from warmfree.lab.workers import run_jobs

def sleep(job, report):
    report(__import__("os").getpid())
    time.sleep(600)

if __name__ == "__main__":
    with run_jobs(sleep, [1], workers=1) as events:
        for event in events:
            if event is not None and event.kind == "report":
                print(event.value, flush=True)
"""


def test_workers_die_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)
