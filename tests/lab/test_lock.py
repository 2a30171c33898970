import subprocess
import sys
import time
from pathlib import Path

import pytest

from warmfree.lab.lock import LockedError, exclusive

HOLD = "import sys, time; from pathlib import Path; from warmfree.lab.lock import exclusive\n"


def test_a_second_holder_is_refused_with_the_first_ones_id_and_let_in_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = HOLD + "with exclusive(Path(sys.argv[1])):\n  print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(LockedError, match=f"locked by another process .process {holder.pid}."),
            exclusive(path),
        ):
            pass
    finally:
        holder.kill()  # the system frees the lock of a killed process
        holder.communicate()
    with exclusive(path):
        pass


def test_waiting_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive(path):
        began = time.monotonic()
        with pytest.raises(LockedError), exclusive(path, wait=0.2):
            pass
        assert 0.2 <= time.monotonic() - began < 2.0


def test_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive(tmp_path / "lock"):
        raise KeyError
    with exclusive(tmp_path / "lock"):
        pass
