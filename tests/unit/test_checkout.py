"""What a checkout knows of itself: where it was asked for, by whom, and what became of it."""

from __future__ import annotations

import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from otel_pgpool import Holder, PoolStats
from otel_pgpool.pool.call_site import Place, Stack, call_sites, describe, places
from otel_pgpool.pool.checkout import Attempt, Checkout, Slot, begin
from tests.support.call_sites import shown_name

HERE = __file__


def here() -> tuple[Place, int]:
    """Return the caller's call site, and its line."""
    frame = sys._getframe(1)
    return (frame.f_code, frame.f_lasti), frame.f_lineno


def test_a_place_is_file_line_and_function() -> None:
    """``file:line function``."""
    place, line = here()
    assert describe(place) == f"{HERE}:{line} test_a_place_is_file_line_and_function"


def test_a_place_in_a_nested_function_names_those_around_it() -> None:
    """Where Python keeps qualified names; else the function alone."""

    def inner() -> tuple[Place, int]:
        return here()

    place, line = inner()
    assert describe(place) == f"{HERE}:{line} {shown_name(inner.__qualname__)}"


def test_a_place_in_a_method_names_its_class() -> None:
    """As above."""

    class Till:
        def count(self) -> tuple[Place, int]:
            return here()

    place, line = Till().count()
    assert describe(place) == f"{HERE}:{line} {shown_name(Till.count.__qualname__)}"


def test_a_place_is_the_line_of_the_call_and_not_of_the_function() -> None:
    """In a call written over several lines, one of them."""
    first = inspect.currentframe().f_lineno  # type: ignore[union-attr]
    (
        place,
        line,
    ) = here()
    last = inspect.currentframe().f_lineno  # type: ignore[union-attr]
    assert describe(place) == f"{HERE}:{line} test_a_place_is_the_line_of_the_call_and_not_of_the_function"
    assert first < line < last


def test_an_instruction_outside_of_every_line_gives_the_functions_first() -> None:
    """Something is said in any case."""
    code = describe.__code__
    assert describe((code, 10**6)) == f"{code.co_filename}:{code.co_firstlineno} describe"


def test_places_are_innermost_first_and_at_most_four() -> None:
    """The stack of the caller, outwards."""

    def fall(depth: int) -> Stack:
        return fall(depth - 1) if depth else call_sites(sys._getframe())

    names = [code.co_name for code, _instruction in places(fall(2))]
    assert names == ["fall", "fall", "fall", "test_places_are_innermost_first_and_at_most_four"]
    assert len([*places(fall(9))]) == 4


def test_frames_of_this_package_are_left_out() -> None:
    """A place is always the program's own; a package whose name only begins alike is the program's."""
    scope = {"__name__": "otel_pgpool.pool.connection_pool", "call_sites": call_sites, "sys": sys}
    exec("def called(): return call_sites(sys._getframe())", scope)  # noqa: S102
    ours = [code.co_name for code, _instruction in places(scope["called"]())]  # type: ignore[operator]
    assert ours[0] == "test_frames_of_this_package_are_left_out"
    scope["__name__"] = "otel_pgpool_extras"
    theirs = [code.co_name for code, _instruction in places(scope["called"]())]  # type: ignore[operator]
    assert theirs[0] == "called"


def checkout_at(started: float = 10.0) -> Checkout:
    place, _line = here()
    return begin(started, place)


def held(started: float = 10.0) -> Checkout:
    checkout = checkout_at(started)
    checkout.slot = Slot()
    checkout.slot.serial, checkout.slot.pid = 3, 4711
    checkout.acquired = started + 1
    return checkout


def test_a_new_checkout() -> None:
    """It knows who asked, when and where, and has got nothing."""
    checkout = checkout_at()
    assert (checkout.started, checkout.path, checkout.observer_data, checkout.retries) == (10.0, None, None, 0)
    assert checkout.thread is threading.current_thread()
    assert checkout.where.endswith(" checkout_at")


def test_failed_attempts_add_up_and_the_last_error_counts() -> None:
    """For this checkout only."""
    checkout, other = checkout_at(), checkout_at()
    attempts = [Attempt(1.0, "OSError", 0.1), Attempt(2.0, "TimeoutError", 0.2)]
    for attempt, error in zip(attempts, (OSError(), last := TimeoutError()), strict=True):
        checkout.retried(attempt, error)
    assert checkout.retries == 2
    assert checkout.attempts == tuple(attempts)
    assert checkout.error is last
    assert (other.retries, other.attempts, other.error) == (0, (), None)


def test_a_holder_says_who_has_which_connection_since_when() -> None:
    """From the checkout and its slot, at a moment."""
    holder = held().holder(15.5)
    assert holder == Holder(
        connection_id=3,
        pid=4711,
        thread=threading.current_thread().name,
        held=4.5,
        where=held().where,
        trace_id=None,
    )


def test_a_holder_is_never_held_for_less_than_nothing() -> None:
    """The reader's clock may have been read before the hand-over."""
    assert held().holder(0.0).held == 0.0


def test_a_holder_has_the_trace_of_whoever_observes_it() -> None:
    """If its observer knows one."""

    class Traced:
        trace_id = "0af7651916cd43dd8448eb211c80319c"

    checkout = held()
    checkout.observer_data = Traced()
    assert checkout.holder(15.5).trace_id == "0af7651916cd43dd8448eb211c80319c"
    checkout.observer_data = object()
    assert checkout.holder(15.5).trace_id is None


def test_a_thread_that_has_ended_is_named_as_such() -> None:
    """By its own name, whoever has got its number since."""
    kept = []
    thread = threading.Thread(target=lambda: kept.append(held()), name="till-3")
    thread.start()
    thread.join()
    [checkout] = kept
    assert checkout.holder(15.5).thread == "till-3 (ended)"


def test_a_checkout_lists_all_frames_that_asked() -> None:
    """Innermost first, a line for each."""
    checkout = checkout_at()
    inner, _line = here()
    checkout.stack += inner
    assert checkout.path_to == f"{checkout.where}\n{describe(inner)}"


def test_frames_that_start_a_thread_are_left_out() -> None:
    """At the outer end: those of `threading` and of an executor; the innermost frame is always shown."""
    with ThreadPoolExecutor(1) as executor:
        stack = executor.submit(lambda: call_sites(sys._getframe())).result()
    assert len(stack) > 2
    checkout = checkout_at()
    checkout.stack = stack
    assert checkout.path_to == checkout.where
    checkout.stack = stack[2:]
    assert checkout.path_to == checkout.where


@pytest.mark.parametrize(
    ("trace_id", "text"),
    [
        (None, "1.234 s by thread 'till' at shop.py:7 order (pid 42)"),
        ("ab12", "1.234 s by thread 'till' at shop.py:7 order (pid 42, trace ab12)"),
    ],
)
def test_a_holder_in_words(trace_id: str | None, text: str) -> None:
    """One line, for messages and logs."""
    assert str(Holder(1, 42, "till", 1.2341, "shop.py:7 order", trace_id)) == text


STATS = PoolStats(
    name="shop",
    status="high",
    minconn=1,
    maxconn=10,
    size=9,
    used=8,
    idle=1,
    connecting=0,
    waiting=0,
    utilization=0.8,
    oldest_hold=1.5,
    checkouts={"idle": 5, "queued": 2, "new": 1},
    queued=3,
    timeouts=2,
    errors=1,
    discarded={"broken": 4},
)


def test_stats_answer_to_the_names_of_older_dashboards() -> None:
    """``as_dict`` has every field, and those names beside them."""
    answer = STATS.as_dict()
    assert {
        name: answer[name]
        for name in (
            "status",
            "minconn",
            "maxconn",
            "active_connections",
            "available_connections",
            "total_connections",
            "failed_connections",
            "utilization",
        )
    } == {
        "status": "high",
        "minconn": 1,
        "maxconn": 10,
        "active_connections": 8,
        "available_connections": 1,
        "total_connections": 9,
        "failed_connections": 3,
        "utilization": 0.8,
    }
    assert {name: answer[name] for name in PoolStats.__dataclass_fields__} == {
        name: getattr(STATS, name) for name in PoolStats.__dataclass_fields__
    }


def test_stats_are_of_one_moment() -> None:
    """They cannot be changed, and the dictionaries of ``as_dict`` are copies."""
    with pytest.raises(AttributeError):
        STATS.used = 0  # type: ignore[misc]
    STATS.as_dict()["checkouts"]["idle"] = 99
    STATS.as_dict()["discarded"]["broken"] = 99
    assert STATS.checkouts["idle"] == 5
    assert STATS.discarded == {"broken": 4}


def test_levels_are_what_is_true_now() -> None:
    """The figures that a ``PoolTimeout`` carries, without totals."""
    assert STATS.levels() == {
        "minconn": 1,
        "maxconn": 10,
        "size": 9,
        "used": 8,
        "idle": 1,
        "connecting": 0,
        "waiting": 0,
        "utilization": 0.8,
        "oldest_hold": 1.5,
    }
