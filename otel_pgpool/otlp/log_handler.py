"""A handler that passes the records of the logger ``otel_pgpool`` to OpenTelemetry."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry._logs import SeverityNumber

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
        self._set_level = False

    def attach(self) -> None:
        """Add the handler to the logger; set the logger's level to INFO if the logger has none."""
        _pool_log.addHandler(self)
        if _pool_log.level == logging.NOTSET:
            _pool_log.setLevel(logging.INFO)
            self._set_level = True

    def detach(self) -> None:
        """Undo `attach`."""
        _pool_log.removeHandler(self)
        if self._set_level and _pool_log.level == logging.INFO:
            _pool_log.setLevel(logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record to OpenTelemetry; without another handler, to stderr too."""
        try:
            severity = _SEVERITIES.get(record.levelno, SeverityNumber.INFO)
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                severity_number=severity,
                severity_text=severity.name,
                body=record.getMessage(),
                attributes={name: value for name, value in vars(record).items() if name not in self._OWN_FIELDS},
                exception=record.exc_info[1] if record.exc_info else None,
            )
        except Exception:  # noqa: BLE001 - logging must not raise
            self.handleError(record)
        # Because of this handler, logging's handler of last resort is not used, so stderr would stay silent.
        loggers = (logging.getLogger(record.name), _pool_log, logging.root)
        others = [handler for logger in loggers for handler in logger.handlers if handler is not self]
        if not others and (last := logging.lastResort) and record.levelno >= last.level:
            last.handle(record)
