"""The data of the live view: the pool's levels, the waits so far, the last log lines."""

from __future__ import annotations

import logging
import re
import threading
import time
from bisect import insort
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor

from otel_pgpool.cli.foreign import shown
from otel_pgpool.cli.report import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from otel_pgpool import ConnectionPool
    from otel_pgpool.stats import Holder, PoolStats

LOG_LINES = 6
FILE_EXPORTERS = "opentelemetry.exporter.otlp.json.file"
OTLP_EXPORTERS = "opentelemetry.exporter.otlp.proto"
FOLDERS = re.compile(r"(?<= at )/\S*/(?=[^/\s]+:\d+ )")
"""Folders in a call site, as in ``at /srv/shop/web.py:12 serve``."""
LOGGERS = {"otel_pgpool": logging.INFO, "opentelemetry": logging.WARNING}


@dataclass(frozen=True)
class LogLine:
    """A log record as displayed; ``at`` is in seconds since the start."""

    at: float
    level: str
    text: str
    notable: bool
    """Whether the level is WARNING or above."""
    times: int = 1
    """Number of consecutive records with this text."""

    def __str__(self) -> str:
        """Return the text, and the number of records if there were several."""
        return f"{self.text} ({self.times} times)" if self.times > 1 else self.text


class Waits(SpanProcessor):
    """The wait times, in seconds, of all checkouts that have ended, sorted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: list[float] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Add the wait time of a span."""
        wait = (span.attributes or {}).get("otel_pgpool.wait_time")
        if isinstance(wait, float):
            with self._lock:
                insort(self._ordered, wait)

    def percentiles(self, *ranks: float) -> Sequence[float | None]:
        """Return percentiles of the wait times; None as long as no checkout has left a span."""
        with self._lock:
            return [percentile(self._ordered, rank) if self._ordered else None for rank in ranks]


class Monitor(logging.Handler):
    """The state of one demo, as its view displays it."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scene = "starting"
        self.pool: ConnectionPool | None = None
        self.waits = Waits()
        self.lines: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.unseen: deque[LogLine] = deque(maxlen=1000)
        """Lines that `PlainView` has not printed yet."""
        self.write_error = ""
        """The error that kept the telemetry's files from being written; empty if there was none."""
        self._began = 0.0
        self._prefix = ""
        self._levels: dict[str, tuple[int, bool]] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the traffic began, or 0."""
        return time.monotonic() - self._began if self.pool else 0.0

    def begin(self, pool: ConnectionPool) -> None:
        """Note that the traffic begins now."""
        self._began = time.monotonic()
        self.pool = pool
        self._prefix = f"pool {pool.name}: "  # removed from the lines, because there is only one pool

    def levels(self) -> PoolStats | None:
        """Return the pool's figures, or None if there is no pool yet."""
        return self.pool.stats() if self.pool else None

    def long_holds(self, threshold: float) -> list[Holder]:
        """Return the holds that have lasted ``threshold`` seconds or more, the longest first."""
        holders = self.pool.holders() if self.pool else []
        return sorted((holder for holder in holders if holder.held >= threshold), key=lambda holder: -holder.held)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line of a record's message; exporters' tracebacks are not displayed."""
        text = FOLDERS.sub("", shown(record.getMessage().partition("\n")[0]).removeprefix(self._prefix))
        if record.name.startswith(OTLP_EXPORTERS):
            text = f"OTLP: {text}"
        if record.name.startswith(FILE_EXPORTERS):
            self.write_error = text
        line = LogLine(self.elapsed, record.levelname, text, record.levelno >= logging.WARNING)
        for lines in (self.lines, self.unseen):
            if lines and lines[-1].text == text:
                lines.append(replace(line, times=lines.pop().times + 1))
            else:
                lines.append(line)

    def attach(self) -> None:
        """Add this handler to the loggers, and keep their records off the terminal, where they would break the view."""
        for name, level in LOGGERS.items():
            logger = logging.getLogger(name)
            self._levels[name] = (logger.level, logger.propagate)
            logger.setLevel(level)
            logger.propagate = False
            logger.addHandler(self)

    def detach(self) -> None:
        """Restore the loggers."""
        for name, (level, propagate) in self._levels.items():
            logger = logging.getLogger(name)
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate
        self._levels.clear()
