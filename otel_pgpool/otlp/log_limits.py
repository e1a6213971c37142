"""Limits for the log records that the SDK and its exporters repeat at each retry, export and collection."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import ERROR_LOG_INTERVAL
from otel_pgpool.runtime.text import LONGEST_TEXT, cut
from otel_pgpool.telemetry.sdk_internals import REPEATING_LOGGERS

if TYPE_CHECKING:
    from collections.abc import Callable

should_report: ContextVar[Callable[[], bool]] = ContextVar("otel_pgpool_should_report", default=lambda: True)
"""Decides during an export whether a log record of the exporter passes."""


def rate_limit_exporter(exporter: type) -> None:
    """Limit the records of an OTLP exporter's loggers, which would otherwise log each retry of each batch."""
    for kind in exporter.__mro__:
        if kind.__module__.startswith("opentelemetry.exporter.otlp."):
            logging.getLogger(kind.__module__).addFilter(_passes)


def _passes(_record: logging.LogRecord) -> bool:
    return should_report.get()()


MAX_REMEMBERED = 1000
"""Maximum number of different records that are remembered within a minute."""


class RateLimitFilter(logging.Filter):
    """A filter that passes each record once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record like this one has not passed within the last minute."""
        key, now = (cut(str(record.msg), LONGEST_TEXT), cut(str(record.args), LONGEST_TEXT)), monotonic()
        if now < self._next.get(key, 0.0):
            return False
        if len(self._next) >= MAX_REMEMBERED:  # records may contain an endpoint's answers, all different
            self._next.clear()
        self._next[key] = now + ERROR_LOG_INTERVAL
        return True


_once_a_minute = RateLimitFilter()


def rate_limit_sdk_loggers() -> None:
    """Limit the records of the SDK's loggers; a second call changes nothing."""
    for name in REPEATING_LOGGERS:
        logging.getLogger(name).addFilter(_once_a_minute)
