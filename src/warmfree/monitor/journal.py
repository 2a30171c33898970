"""The record of a monitored run, written so that nothing that happens to it harms the training."""

import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from warmfree.record import RecordWriter

__all__ = ["RECORD", "Journal"]

RECORD = "monitor.jsonl"
RETRY_SECONDS = 30.0


class Journal:
    """Append records to `monitor.jsonl` in a folder; a disk that is full or gone is warned of once and tried again.

    What could not be written is lost; the file stays one whole record a line, since a torn line is cut off before
    the next one is written.

    Args:
        folder: made when missing; None to keep no record.

    Raises:
        OSError: the folder or file cannot be made in the first place.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.lost = 0
        self._path: Path | None = None
        self._writer: RecordWriter | None = None
        self._warned = False
        self._retry_at = 0.0
        if folder is not None:
            self._path = Path(folder) / RECORD
            if self._path.parent.exists() and not self._path.parent.is_dir():
                raise NotADirectoryError(
                    f"out must be a folder, {self._path.parent} is a file: name another one"
                )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(self._path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, or count it as lost."""
        if self._path is None:
            return
        try:
            if self._writer is None:
                if time.monotonic() < self._retry_at:
                    self.lost += 1
                    return
                self._writer = RecordWriter(self._path)
            self._writer.write(record)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with suppress(OSError):  # what is still to be flushed has been reported as lost
                self._writer.close()
            self._writer = None
        self._path = None

    def _give_up(self, error: OSError) -> None:
        self.lost += 1
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the monitor cannot write {self._path} ({error}); training goes on, records are lost until it can",
                RuntimeWarning,
                stacklevel=4,
            )
