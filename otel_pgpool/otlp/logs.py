"""Log records: a handler that passes the pool's to OpenTelemetry, and a limit for those that the SDK repeats."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry._logs import SeverityNumber

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import ERROR_LOG_INTERVAL
from otel_pgpool.runtime.text import LONGEST_TEXT, cut
from otel_pgpool.telemetry.sdk_internals import REPEATING_LOGGERS
from otel_pgpool.types import EVENT_NAME

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import LoggerProvider

_pool_log = logging.getLogger("otel_pgpool")
_SEVERITIES = {
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}


class LogHandler(logging.Handler):
    """A handler that passes standard log records to OpenTelemetry, in the context in which they were logged.

    The SDK's own handler is deprecated, and its successor is part of the auto-instrumentation, which pins exact
    versions.
    """

    _OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider
        self._sets_level = _pool_log.level == logging.NOTSET

    def attach(self) -> None:
        """Add the handler to the logger; set the logger's level to INFO if the logger has none."""
        _pool_log.addHandler(self)
        if self._sets_level:
            _pool_log.setLevel(logging.INFO)

    def detach(self) -> None:
        """Undo `attach`."""
        _pool_log.removeHandler(self)
        if self._sets_level and _pool_log.level == logging.INFO:
            _pool_log.setLevel(logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record to OpenTelemetry; without another handler, to stderr too."""
        try:
            attributes = {name: value for name, value in vars(record).items() if name not in self._OWN_FIELDS}
            severity = _SEVERITIES.get(record.levelno, SeverityNumber.INFO)
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                severity_number=severity,
                severity_text=severity.name,
                body=record.getMessage(),
                event_name=attributes.pop(EVENT_NAME, None),
                attributes=attributes,
                exception=record.exc_info[1] if record.exc_info else None,
            )
        except Exception:  # noqa: BLE001 - logging must not raise
            self.handleError(record)
        # Because of this handler, logging's handler of last resort is not used, so stderr would stay silent.
        loggers = (logging.getLogger(record.name), _pool_log, logging.root)
        others = [handler for logger in loggers for handler in logger.handlers if handler is not self]
        if not others and (last := logging.lastResort) and record.levelno >= last.level:
            last.handle(record)


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


def rate_limit_sdk_loggers() -> None:
    """Limit the records of the SDK's loggers."""
    for name in REPEATING_LOGGERS:
        logging.getLogger(name).addFilter(RateLimitFilter())
