"""Ctrl-C comes through where it may, waits where it may not, and is never lost."""

import signal
import threading

import pytest

from warmfree.measure.guard import Guard


@pytest.fixture(autouse=True)
def _handler_as_before():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_it_waits_until_the_block_is_over():
    seen = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (what happens in it is the point)
        with Guard():
            interrupt()
            seen.append("put back")
        seen.append("not reached")
    assert seen == ["put back"]


def test_it_comes_at_once_where_it_may():
    seen = []
    with pytest.raises(KeyboardInterrupt), Guard() as guard:  # noqa: PT012
        try:
            with guard.open():
                interrupt()
                seen.append("not reached")
        finally:
            interrupt()
            seen.append("put back")
    assert seen == ["put back"]


def test_one_that_waits_comes_at_the_next_opening():
    seen = []
    with pytest.raises(KeyboardInterrupt), Guard() as guard:  # noqa: PT012
        interrupt()
        seen.append("closed")
        with guard.open():
            seen.append("not reached")
    assert seen == ["closed"]


def test_one_that_waits_while_another_error_leaves_is_not_lost():
    with pytest.raises(KeyboardInterrupt) as raised, Guard():  # noqa: PT012
        interrupt()
        raise ValueError("an error of its own")
    assert isinstance(raised.value.__context__, ValueError)


def test_a_second_one_while_the_first_is_being_answered_waits():
    with pytest.raises(KeyboardInterrupt) as raised, Guard() as guard:  # noqa: PT012
        try:
            with guard.open():
                interrupt()
        except KeyboardInterrupt:
            interrupt()  # pressed again: what is put back here is put back whole
            put_back = True
            raise
    assert put_back
    assert isinstance(raised.value.__context__, KeyboardInterrupt)


def test_it_is_closed_again_after_an_opening_within_an_opening():
    with Guard() as guard:
        with guard.open():
            with guard.open():
                pass
            with pytest.raises(KeyboardInterrupt):
                interrupt()
        with pytest.raises(KeyboardInterrupt), guard.open():
            interrupt()
        interrupt()
        with pytest.raises(KeyboardInterrupt), guard.open():
            pass


def test_a_guard_within_a_guard_hands_on_to_it():
    seen = []
    with pytest.raises(KeyboardInterrupt), Guard() as outer:  # noqa: PT012
        with Guard() as inner, inner.open():
            interrupt()
            seen.append("the outer one is closed")
        seen.append("put back")
        with outer.open():
            seen.append("not reached")
    assert seen == ["the outer one is closed", "put back"]


def test_a_handler_that_takes_note_is_called_for_each():
    notes = []
    signal.signal(signal.SIGINT, lambda number, frame: notes.append(number))
    with Guard() as guard:
        with guard.open():
            interrupt()
            assert notes == [signal.SIGINT]
            interrupt()
            assert len(notes) == 2
        interrupt()
        assert len(notes) == 2
    assert len(notes) == 3
    assert signal.signal(signal.SIGINT, signal.default_int_handler)(signal.SIGINT, None) is None


def test_ignored_signals_stay_ignored():
    for kind in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, kind)
        with Guard() as guard, guard.open():
            assert signal.getsignal(signal.SIGINT) == kind
        assert signal.getsignal(signal.SIGINT) == kind
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_another_thread_nothing_is_changed():
    seen = []

    def work():
        with Guard() as guard, guard.open():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
