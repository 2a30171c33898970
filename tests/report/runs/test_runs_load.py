"""Reading records: whole, torn, resumed, broken, and not records at all."""

import math

import numpy as np
import pytest
from synthetic_runs import SHAPES, alert, healthy, start, step, values, write

from warmfree.report.runs import load_run
from warmfree.report.runs.run import Row


def load(folder, lines, tail=""):
    return load_run(write(folder, lines, tail))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_loads_with_sound_arrays(shape, tmp_path):
    run = load(tmp_path, SHAPES[shape]())
    assert len(run.steps) == len(run.losses) == len(run.has_loss) == len(run.lrs)
    assert (np.diff(run.steps) > 0).all()
    for grid in run.grids.values():
        assert grid.values.shape == grid.measured.shape == (len(grid.rows), len(grid.steps))
        assert (np.diff(grid.steps) > 0).all()
        assert grid.measured.any(axis=0).all()
        assert grid.measured.any(axis=1).all()
        assert np.isnan(grid.values[~grid.measured]).all()
        assert len(set(grid.rows)) == len(grid.rows)


def test_header_facts(tmp_path):
    run = load(tmp_path / "my run", healthy(40))
    assert (run.name, run.model, run.optimizer, run.parameters, run.budget) == (
        "my run",
        "GPT",
        "AdamW",
        836736,
        0.02,
    )
    assert run.ending.overhead == 0.013
    assert run.ending.probes == {"updates": (12, 0.05), "curvature": (3, 0.2)}
    assert run.last_step == 39
    assert load_run(tmp_path / "my run" / "monitor.jsonl").name == "my run"


def test_values_land_where_they_were_measured(tmp_path):
    lines = [start(1, modules=["", "b", "a"]), step(3, 1.5)]
    lines.append(values(3, {"rrc": {"a": 1.0, "new": 4.0, "b": 2.0}, "heads": {"b": [5.0, 6.0]}}))
    lines.append(values(7, {"rrc": {"b": 3.0}, "heads": {"b": [7.0, None]}, "sharpness": {"": 9.0}}))
    run = load(tmp_path, lines)
    rrc, heads = run.grids["rrc"], run.grids["heads"]
    assert rrc.rows == (Row("b"), Row("a"), Row("new")), "the model's order, then what it does not name"
    assert rrc.steps.tolist() == [3, 7]
    assert np.array_equal(rrc.values, [[2, 3], [1, np.nan], [4, np.nan]], equal_nan=True)
    assert rrc.measured.tolist() == [[True, True], [True, False], [True, False]]
    assert heads.rows == (Row("b", 0), Row("b", 1))
    assert heads.measured.tolist() == [[True, True], [True, False]]
    assert run.grids["sharpness"].is_global
    assert not rrc.is_global


def test_parts_of_a_layer_stand_with_it(tmp_path):
    lines = [
        start(1, modules=["a", "b", "c"]),
        values(0, {"rrc": {"c": 1.0, "a": 1.0, "b[q]": 1.0, "b[k]": 1.0}}),
    ]
    assert [row.layer for row in load(tmp_path, lines).grids["rrc"].rows] == ["a", "b[q]", "b[k]", "c"]


def test_quantities_keep_the_record_s_order_and_unknown_ones_get_a_title(tmp_path):
    lines = [start(1), values(0, {"of_tomorrow": {"a": 1.0}, "rrc": {"a": 1.0}, "update_rms": {"a": 1.0}})]
    grids = load(tmp_path, lines).grids
    assert list(grids) == ["update_rms", "rrc", "of_tomorrow"]
    assert grids["of_tomorrow"].quantity.title == "of tomorrow"
    assert grids["update_rms"].quantity.is_log
    assert not grids["of_tomorrow"].quantity.is_log


@pytest.mark.parametrize(
    "tail", ['{"kind":"step","step":60,"lo', "{", "\x00\x00", '{"kind":"step","step":60,"loss":1.0}']
)
def test_a_torn_last_line_is_ignored(tail, tmp_path):
    whole = load(tmp_path / "a", healthy(60))
    torn = load(tmp_path / "b", healthy(60), tail)
    assert torn.steps.tolist() == whole.steps.tolist()
    assert torn.ending == whole.ending


def test_what_ran_again_counts_as_recorded_last(tmp_path):
    run = load(tmp_path, SHAPES["resumed"]())
    assert run.steps.tolist() == list(range(80))
    attempt = np.rint((run.losses - 5.0 + 0.02 * run.steps) / 0.001).astype(int)
    assert attempt.tolist() == [0] * 40 + [1] * 5 + [2] * 35
    grid = run.grids["update_rms"]
    assert dict(zip(grid.steps.tolist(), grid.values[0].tolist(), strict=True)) == (
        dict.fromkeys(range(0, 40, 5), 1.0) | {40: 2.0} | dict.fromkeys(range(45, 80, 5), 3.0)
    )
    assert run.alerts == (), "step 55 ran again without the alert"
    assert run.resumes == (40, 45)
    assert run.leftover is None


def test_steps_of_an_abandoned_attempt_beyond_the_last_one_are_kept_and_named(tmp_path):
    lines = [
        start(1),
        *(step(at, 2.0) for at in range(20)),
        start(1, 10),
        *(step(at, 1.0) for at in range(10, 15)),
    ]
    run = load(tmp_path, lines)
    assert run.losses.tolist() == [2.0] * 10 + [1.0] * 5 + [2.0] * 5
    assert run.leftover == 15


def test_a_resume_that_has_not_stepped_changes_nothing(tmp_path):
    run = load(tmp_path, [*healthy(30), start(4, 30)])
    assert run.steps.tolist() == list(range(30))
    assert run.resumes == ()
    assert run.ending is None, "it goes on"


def test_missing_losses_differ_from_nan(tmp_path):
    run = load(tmp_path, SHAPES["broken"]())
    steps, losses = run.loss_curve
    assert 0 not in steps.tolist()
    assert math.isnan(losses[steps.tolist().index(7)])
    assert math.isinf(losses[steps.tolist().index(5)])
    assert 3 not in run.lr_curve[0].tolist()


def test_oddities_are_left_out_and_numbers_kept(tmp_path):
    grids = load(tmp_path, SHAPES["broken"]()).grids
    assert set(grids) == {"update_rms", "unheard_of", "grad_norm"}
    assert grids["unheard_of"].rows == (Row("tokens.weight"),)
    rms = grids["update_rms"]
    assert np.isnan(rms.values[rms.rows.index(Row("tokens.weight"))]).all()
    assert rms.values[rms.rows.index(Row("head.weight"))][:4].tolist() == [math.inf, -math.inf, 0.0, 1.0]


def test_alerts_are_paired_with_what_clears_them(tmp_path):
    lines = [start(), alert(5, "a", 0, 0.1), alert(6, "a", 1, 0.1), alert(9, "a", 0, 0.2, state="cleared")]
    lines += [alert(12, "a", 0, 0.05, severity="critical"), alert(3, "late", None, 1.0, threshold=math.inf)]
    found = load(tmp_path, lines).alerts
    assert [(one.step, one.row, one.cleared) for one in found] == [
        (3, Row("late"), None), (5, Row("a", 0), 9), (6, Row("a", 1), None), (12, Row("a", 0), None),
    ]  # fmt: skip
    assert [one.is_critical for one in found] == [False, False, False, True]
    assert found[0].threshold is None, "infinity is no threshold to show"


def test_messages_do_not_repeat_the_step(tmp_path):
    assert load(tmp_path, [start(), alert(5, "a", 0, 0.1, message="step 5: low")]).alerts[0].message == "low"


def test_no_such_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*gone: give the folder of a monitored run"
    ):
        load_run(tmp_path / "gone")


def test_a_folder_without_a_record_points_at_those_inside(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no monitor.jsonl: give the folder"):
        load_run(tmp_path)
    write(tmp_path / "seed-1", [start()])
    with pytest.raises(FileNotFoundError, match="did you mean one inside it: seed-1"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: the run was stopped before it wrote anything"),
        (b'{"kind":"st', "holds no line of a monitor's record"),
        (b'{"step":3,"loss":1.0}\n', "holds no line of a monitor's record"),
        (
            b"step,loss\n0,1.5\n",
            r"line 1: not a JSON record .*; expected the monitor.jsonl of a monitored run",
        ),
        (b"\x89PNG\r\n\x1a\n\n", "line 1: not a JSON record"),
        (b'[1, 2]\n{"kind":"start"}\n', "line 1: expected a JSON object"),
    ],
)
def test_what_is_no_record_says_so_and_what_to_do(content, message, tmp_path):
    (tmp_path / "monitor.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path)
