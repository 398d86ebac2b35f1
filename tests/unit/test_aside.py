import threading
from contextlib import contextmanager

import pytest

from sweeps.aside import Aside


@pytest.fixture
def told():
    """What happened, in order; threads by name."""
    return []


@pytest.fixture
def context(told):
    @contextmanager
    def context(failure=None):
        told.append(("enter", threading.get_ident()))
        if failure:
            raise failure
        yield 7
        told.append(("leave", threading.get_ident()))

    return context


def test_one_thread_beside_the_caller_enters_and_leaves(context, told):
    with Aside(context()) as aside:
        assert aside.value() == 7
    (entered, thread), (left, same) = told
    assert (entered, left) == ("enter", "leave")
    assert thread == same != threading.get_ident()


def test_leaving_is_waited_for_and_done_once(context, told):
    with Aside(context()) as aside:
        aside.value()
        aside.leave()
        assert [what for what, _ in told] == ["enter", "leave"]
    assert [what for what, _ in told] == ["enter", "leave"]


def test_what_goes_wrong_on_the_way_in_is_raised_where_the_value_is_needed(context, told):
    with pytest.raises(KeyError, match="x"), Aside(context(KeyError("x"))) as aside:
        aside.value()
    assert [what for what, _ in told] == ["enter"]


def test_the_context_is_left_after_an_error_of_the_caller(context, told):
    with pytest.raises(KeyError, match="mine"), Aside(context()):
        raise KeyError("mine")
    assert [what for what, _ in told] == ["enter", "leave"]


def test_what_goes_wrong_on_the_way_out_is_raised():
    @contextmanager
    def broken():
        yield None
        raise KeyError("out")

    with pytest.raises(KeyError, match="out"), Aside(broken()):
        pass
