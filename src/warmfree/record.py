"""Run records: append-only JSON lines that survive being killed at any byte, and atomic JSON files.

A record is one JSON object on one line, complete when its newline is there. A process killed while it writes
leaves at
most one torn line at the end: readers ignore it, and the next writer cuts it off before it appends.

JSON has no NaN and no infinity, which are just what a diverging run produces. They are written as the object
``{"$float": "nan"}`` (``"inf"``, ``"-inf"``), so that every line is valid JSON, and read back as floats.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

__all__ = ["RecordWriter", "read_json", "read_records", "write_json"]

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_TAIL_CHUNK = 1 << 16


class RecordWriter:
    r"""Append records to a file, one JSON object a line, each flushed to the operating system when written.

    Opening a file that a killed process left behind removes its torn last line. One writer a file: the caller
    keeps others out.

    Args:
        path: the file; it is created when missing, its folder is not.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "record.jsonl"
        >>> with RecordWriter(path) as record:
        ...     record.write({"step": 0, "loss": float("nan")})
        >>> path.read_text()
        '{"step":0,"loss":{"$float":"nan"}}\n'
        >>> list(read_records(path))
        [{'step': 0, 'loss': nan}]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: BinaryIO = open(self.path, "ab+")  # noqa: SIM115 (closed by close() or the with block)
        try:
            self._file.truncate(_end_of_last_line(self._file))
        except BaseException:
            self._file.close()
            raise

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Args:
            record: strings, numbers, booleans, None, and lists and mappings of these.

        Raises:
            TypeError: the record holds something that JSON has no form for, a tensor for instance.
        """
        self._file.write(_encode(record).encode("ascii") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; further writes raise ValueError."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the complete records of a file in order, ignoring a torn last line.

    Args:
        path: a file written by :class:`RecordWriter`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than a torn last one is not a JSON object; the message names file and line.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line, object_hook=_decode)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: not a JSON record ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{os.fspath(path)}, line {number}: expected a JSON object, got {record!r:.60}"
                )
            yield record


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write a JSON file atomically: readers, and a machine that dies, see the old content or the new.

    Args:
        path: the file to create or replace; its folder must exist.
        obj: what to write; non-finite floats as in the records.

    Raises:
        TypeError: ``obj`` holds something that JSON has no form for; the file is left as it was.
    """
    path = Path(path)
    content = _encode(obj, indent=1) + "\n"
    # A temporary file in the same folder: os.replace is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; others may read results
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a file written by :func:`write_json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_bytes(), object_hook=_decode)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: not valid JSON ({error})") from None


def _encode(obj: Any, *, indent: int | None = None) -> str:
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        return json.dumps(obj, allow_nan=False, indent=indent, separators=separators)
    except ValueError:  # a non-finite float somewhere: rare, so only then is the object walked in Python
        return json.dumps(_replace_non_finite(obj), allow_nan=False, indent=indent, separators=separators)


def _replace_non_finite(obj: Any) -> Any:
    if isinstance(obj, float) and not math.isfinite(obj):
        return {"$float": "nan" if math.isnan(obj) else "inf" if obj > 0 else "-inf"}
    if isinstance(obj, Mapping):
        return {key: _replace_non_finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_replace_non_finite(value) for value in obj]
    return obj


def _decode(obj: dict[str, Any]) -> Any:
    if obj.keys() == {"$float"} and obj["$float"] in _NON_FINITE:
        return _NON_FINITE[obj["$float"]]
    return obj


def _end_of_last_line(file: BinaryIO) -> int:
    """Return the offset after the last newline of a file, read from its end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(end - _TAIL_CHUNK, 0)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _umask() -> int:
    # The only portable way to read it is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
