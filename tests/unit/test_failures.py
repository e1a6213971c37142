"""Log records about failures beside the application's own work."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    import pytest


def fail() -> None:
    raise KeyError("s3cret")


def test_a_failure_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """It has what failed, the error's class and the places of its traceback, but not its text."""
    try:
        fail()
    except KeyError as error:
        log_failure("the observer\nfailed", error)
    ((name, level, message),) = caplog.record_tuples
    assert (name, level) == ("otel_pgpool", logging.ERROR)
    places = [f'File "{__file__}", line {number}, in {function}' for number, function in PLACES]
    assert message == "; ".join([r"the observer\nfailed: KeyError", *places])


PLACES = [
    (test_a_failure_is_one_line.__code__.co_firstlineno + 3, "test_a_failure_is_one_line"),
    (fail.__code__.co_firstlineno + 1, "fail"),
]
