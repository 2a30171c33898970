"""The torchrun example as its user runs it: real processes, killed and stopped where it hurts."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "torchrun.py"
STEPS = 50
TINY = ["--layers", "1", "--width", "16", "--heads", "2", "--context", "16", "--batch", "6"]
RUN = [*TINY, "--steps", str(STEPS), "--schedule", "constant", "--checkpoint-every", "10"]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes through /proc")


def command(out: Path, *options: str, processes: int = 2) -> list[str]:
    # --standalone takes a free port.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        sys.executable,
        *(launcher if processes > 1 else []),
        str(EXAMPLE),
        *RUN,
        f"--out={out}",
        *options,
    ]


@contextlib.contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        kill(process)
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill torchrun and its workers, which it puts into sessions of their own, at once."""
    if process.poll() is not None:  # its number may be somebody else's by now
        return
    for pid in (process.pid, *children(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # "pid (name) state parent ...", where a name may hold anything.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def finish(arguments: list[str]) -> tuple[int, str, str]:
    with started(arguments) as process:
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Return as soon as a run has recorded so many steps."""
    deadline = time.monotonic() + 120
    while steps_recorded(out) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_recorded(out: Path) -> int:
    record = out / "record.jsonl"
    return record.read_bytes().count(b"\n") if record.exists() else 0


def saved_steps(out: Path) -> list[int]:
    return [int(folder.name.rpartition("-")[2]) for folder in out.glob("checkpoint-*")]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "record.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "single"
    status, _, err = finish(command(out, processes=1))
    assert status == 0, err
    return out


# With three ranks and more, the order of a sum decides its last bit.
@pytest.mark.parametrize(("parallel", "processes"), [("fsdp2", 2), ("ddp", 3)])
def test_a_killed_run_repeats_the_undisturbed_one(
    parallel: str, processes: int, tmp_path: Path, single: Path
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    status, _, err = finish(command(undisturbed, f"--parallel={parallel}", processes=processes))
    assert status == 0, err
    assert saved_steps(undisturbed) == [STEPS]
    assert losses(undisturbed) == pytest.approx(losses(single), abs=1e-4)

    again = command(killed, f"--parallel={parallel}", processes=processes)
    with started(again) as process:
        wait_for_step(process, killed, 12)  # the record is ahead of the checkpoint at 10
        kill(process)
    saved = max(saved_steps(killed))
    assert saved <= steps_recorded(killed) < STEPS

    status, out, err = finish(again)
    assert (status, f"training from step {saved} to {STEPS}" in out) == (0, True), err
    assert (killed / "record.jsonl").read_bytes() == (undisturbed / "record.jsonl").read_bytes()


def test_a_stopped_run_goes_on_in_another_layout(tmp_path: Path, single: Path) -> None:
    out = tmp_path / "run"
    with started(command(out, "--parallel=fsdp2+tp")) as process:
        wait_for_step(process, out, 12)
        process.send_signal(signal.SIGTERM)
        printed, err = process.communicate(timeout=60)
    (stopped,) = saved_steps(out)
    assert f"stopped after step {stopped}" in printed, err
    assert 12 <= stopped == steps_recorded(out) < STEPS

    status, printed, err = finish(command(out, processes=1))
    assert (status, f"training from step {stopped} to {STEPS}" in printed) == (0, True), err
    assert losses(out) == pytest.approx(losses(single), abs=1e-4)


def test_another_optimizer_is_refused_before_anything_changes(single: Path) -> None:
    before = (single / "record.jsonl").read_bytes(), (single / "run.json").read_bytes()
    status, _, err = finish(command(single, "--optimizer=LionA", processes=1))
    assert status == 2
    assert "holds a run with optimizer AdamW2, asked LionA" in err
    assert before == ((single / "record.jsonl").read_bytes(), (single / "run.json").read_bytes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer=Adam"], "argument --optimizer: invalid choice: 'Adam' (choose from "),
        (["--parallel=fsdp2+tp"], "--tp must divide 3 processes, --width and 256 bytes, got 2"),
        (["--batch=4"], "--batch must be a multiple of 3 data-parallel ranks, got 4"),
        (["--bf16"], "--bf16 needs --parallel fsdp2 or fsdp2+tp"),
        (["--steps=0"], "--steps must be >= 1, got 0"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    monkeypatch.setenv("WORLD_SIZE", "3")
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main() == 2
    assert message in capsys.readouterr().err
