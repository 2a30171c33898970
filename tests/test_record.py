import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmfree import record
from warmfree.record import RecordWriter, read_json, read_records, write_json

RECORDS = [
    {"step": 0, "loss": 3.25},
    {"step": 1, "loss": math.inf, "name": "é\n"},
    {"step": 2, "nested": [{}]},
]

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def write_all(path: Path, records: list[dict[str, object]]) -> None:
    with RecordWriter(path) as writer:
        for row in records:
            writer.write(row)


def same(left: object, right: object) -> bool:
    return repr(left) == repr(right)  # repr, since nan differs from itself


@given(st.dictionaries(st.text().filter(lambda key: key != "$float"), values))
def test_round_trip_as_valid_json(tmp_path_factory: pytest.TempPathFactory, row: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("record") / "r.jsonl"
    write_all(path, [row])
    assert same(list(read_records(path)), [row])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = path.read_text().splitlines()
    json.loads(line, parse_constant=refuse)


def test_cut_at_every_byte_loses_only_the_torn_line_and_append_repairs(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    write_all(whole, RECORDS)
    content = whole.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == len(RECORDS)
    for length in range(len(content) + 1):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(content[:length])
        complete = RECORDS[: sum(end <= length for end in ends)]
        assert list(read_records(cut)) == complete
        write_all(cut, [{"step": 99}])
        assert list(read_records(cut)) == [*complete, {"step": 99}]
        assert cut.read_bytes().count(b"\n") == len(complete) + 1


def test_repair_finds_the_last_newline_beyond_one_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_TAIL_CHUNK", 4)
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a":1}\n{"torn": "0123456789')
    write_all(path, [{"b": 2}])
    assert path.read_bytes() == b'{"a":1}\n{"b":2}\n'


def test_every_record_is_on_disk_when_written(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        writer.write({"step": 0})
        assert list(read_records(tmp_path / "r.jsonl")) == [{"step": 0}]


def test_a_broken_line_before_the_end_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":\n{"a":3}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2: not a JSON record"):
        list(read_records(path))
    path.write_bytes(b"[1]\n")
    with pytest.raises(ValueError, match=r"line 1: expected a JSON object"):
        list(read_records(path))


def test_unknown_objects_are_refused_and_leave_no_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordWriter(path) as writer:
        with pytest.raises(TypeError, match="not JSON serializable"):
            writer.write({"bad": object()})
        with pytest.raises(TypeError, match="not JSON serializable"):
            writer.write({"nan": math.nan, "bad": object()})
        writer.write({"good": 1})
    assert list(read_records(path)) == [{"good": 1}]


def test_write_json_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"loss": math.nan, "b": [1, 2]})
    assert same(read_json(path), {"loss": math.nan, "b": [1, 2]})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert same(read_json(path), {"loss": math.nan, "b": [1, 2]})
    assert os.listdir(tmp_path) == ["result.json"]  # no temporary file is left


def test_write_json_that_fails_midway_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(record.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_write_json_is_readable_by_others_as_the_umask_allows(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        write_json(tmp_path / "r.json", {})
    finally:
        os.umask(previous)
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o644


def test_read_json_names_the_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(ValueError, match=r"r\.json: not valid JSON"):
        read_json(tmp_path / "r.json")
