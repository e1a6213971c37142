"""Outages, which both kinds of pools track by the same rules."""

from __future__ import annotations

import pytest

from otel_pgpool.instrumentation.pending_connects import PendingConnects
from otel_pgpool.pool.outage import is_unreachable
from tests.support.fakes import Attempt, Desk


def by_the_pool(refusals: list[bool]) -> tuple[list[bool], list[int | None], bool]:
    desk = Desk(1, 2)
    changes = []
    for is_refusal in refusals:
        attempt = Attempt(desk.now, "OSError", 0.5)
        changes.append(desk.core.connect_failed(desk.claim(), attempt, OSError(), is_refusal=is_refusal))
    ended = [None if change.ended is None else change.ended.attempts for change in changes]
    return [change.has_begun for change in changes], ended, is_unreachable(desk.core.outage)


def by_the_instrumentation(refusals: list[bool]) -> tuple[list[bool], list[int | None], bool]:
    connects = PendingConnects()
    for is_refusal in refusals:
        connects.failed(100.0, OSError(), "", is_refusal=is_refusal)
    changes = [each.change for each in connects.pending]
    ended = [None if change.ended is None else change.ended.attempts for change in changes]
    return [change.has_begun for change in changes], ended, is_unreachable(connects.outage)


@pytest.mark.parametrize("track", [by_the_pool, by_the_instrumentation])
def test_failed_connects(track: object) -> None:
    """An outage begins once and ends with a refusal, which shows that the server is up; then it may begin again."""
    begun, ended, is_down = track([False, False, True, True, False])  # type: ignore[operator]
    assert begun == [True, False, False, False, True]
    assert ended == [None, None, 2, None, None]
    assert is_down


def test_attempts_are_numbered_as_by_our_own_pool() -> None:
    """The number counts failures in a row: a refusal continues an outage's count once, then counts its own."""
    connects = PendingConnects()
    for is_refusal in (False, False, True, True):
        connects.failed(100.0, OSError(), "", is_refusal=is_refusal)
    assert [each.connect.attempt for each in connects.pending] == [1, 2, 3, 2]


def test_a_callback_of_the_program() -> None:
    """An error of a callback begins no outage; it ends one if the callback got a connection, and else changes none."""
    connects = PendingConnects()
    for callback, is_refusal in (("kwargs", False), ("", False), ("kwargs", False), ("configure", True)):
        connects.failed(100.0, ValueError(), "", is_refusal=is_refusal, callback=callback)
    changes = [each.change for each in connects.pending]
    assert [change.has_begun for change in changes] == [False, True, False, False]
    assert [None if change.ended is None else change.ended.attempts for change in changes] == [None, None, None, 1]
    assert not is_unreachable(connects.outage)
