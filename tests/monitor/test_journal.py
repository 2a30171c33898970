"""The record of a monitored run: a full disk costs records, one warning and nothing else."""

import subprocess
import sys
import textwrap
import warnings

import pytest

from warmfree.monitor.journal import Journal
from warmfree.record import read_records

FULL_DISK = """
    import resource, sys, warnings
    from warmfree.monitor import journal
    from warmfree.record import read_records

    journal.RETRY_SECONDS = 0.0
    book = journal.Journal(sys.argv[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(200):
            if step == 50:  # the file can grow no more: the same error as on a full disk, in the middle of a line
                resource.setrlimit(resource.RLIMIT_FSIZE, (book._path.stat().st_size + 100, -1))
            if step == 100:
                resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            book.write({"step": step, "text": "x" * 64})
    book.close()
    steps = [record["step"] for record in read_records(f"{sys.argv[1]}/monitor.jsonl")]
    assert steps[:50] == list(range(50)) and steps[-100:] == list(range(100, 200)), steps
    assert 150 <= len(steps) <= 152, steps
    assert book.lost == 200 - len(steps)
    assert [str(w.message).count("training goes on") for w in caught] == [1], caught
"""


def test_a_full_disk_costs_records_and_one_warning(tmp_path):
    code = textwrap.dedent(FULL_DISK)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_waits_before_it_tries_again(tmp_path):
    journal = Journal(tmp_path)
    journal.write({"step": 0})
    journal._writer._file.close()  # writing fails from here on
    journal._writer.write = _raise
    with pytest.warns(RuntimeWarning, match="training goes on, records are lost"):
        journal.write({"step": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        journal.write({"step": 2})
    journal.close()
    assert journal.lost == 2
    assert [record["step"] for record in read_records(tmp_path / "monitor.jsonl")] == [0]


def _raise(record):
    raise OSError(28, "No space left on device")


def test_appends_after_a_torn_line(tmp_path):
    path = tmp_path / "monitor.jsonl"
    path.write_bytes(b'{"step":0}\n{"step":1,"lo')
    journal = Journal(tmp_path)
    journal.write({"step": 1})
    journal.close()
    assert [record["step"] for record in read_records(path)] == [0, 1]


def test_no_folder_no_record():
    journal = Journal(None)
    journal.write({"step": 0})
    journal.close()
    assert journal.lost == 0
