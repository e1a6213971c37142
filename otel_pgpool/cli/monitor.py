"""What the live view shows, gathered while the demo runs: the pool's levels, the waits so far, the last log lines."""

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
    from otel_pgpool._observer import Holder, PoolStats

LOG_LINES = 6
FILE_EXPORTERS = "opentelemetry.exporter.otlp.json.file"
OTLP_EXPORTERS = "opentelemetry.exporter.otlp.proto"
FOLDERS = re.compile(r"(?<= at )/\S*/(?=[^/\s]+:\d+ )")
"""Of a place in the program, as in ``at /srv/shop/web.py:12 serve``."""
LOGGERS = {"otel_pgpool": logging.INFO, "opentelemetry": logging.WARNING}


@dataclass(frozen=True)
class LogLine:
    """A record as shown: ``at`` in s since the start."""

    at: float
    level: str
    text: str
    notable: bool
    """WARNING or worse."""
    times: int = 1
    """How often it came, one time after the other."""

    def __str__(self) -> str:
        """The text, and how often it came."""
        return f"{self.text} ({self.times} times)" if self.times > 1 else self.text


class Waits(SpanProcessor):
    """The wait times of all checkouts that have ended, in order. Times in s."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: list[float] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Take the wait time, as the exporters do."""
        wait = (span.attributes or {}).get("otel_pgpool.wait_time")
        if isinstance(wait, float):
            with self._lock:
                insort(self._ordered, wait)

    def percentiles(self, *ranks: float) -> Sequence[float | None]:
        """None before the first checkout with a span, and so for ever where a sampler leaves none."""
        with self._lock:
            return [percentile(self._ordered, rank) if self._ordered else None for rank in ranks]


class Monitor(logging.Handler):
    """One demo's state, as its view asks for it."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scene = "starting"
        self.pool: ConnectionPool | None = None
        self.waits = Waits()
        self.lines: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.unseen: deque[LogLine] = deque(maxlen=1000)
        """For a view that prints each line once."""
        self.write_error = ""
        """What kept the telemetry's files from being written."""
        self._began = 0.0
        self._prefix = ""
        self._levels: dict[str, tuple[int, bool]] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the traffic began; 0 before."""
        return time.monotonic() - self._began if self.pool else 0.0

    def begin(self, pool: ConnectionPool) -> None:
        """The traffic begins now."""
        self._began = time.monotonic()
        self.pool = pool
        self._prefix = f"pool {pool.name}: "  # there is one only

    def levels(self) -> PoolStats | None:
        """None before the pool is there."""
        return self.pool.stats() if self.pool else None

    def long_holds(self, threshold: float) -> list[Holder]:
        """Who has held for longer than ``threshold`` s, the longest first."""
        holders = self.pool.holders() if self.pool else []
        return sorted((holder for holder in holders if holder.held >= threshold), key=lambda holder: -holder.held)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line of the message; tracebacks of exporters are not for this view."""
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
        """Listen, and keep the records from the terminal, where they would run through the view."""
        for name, level in LOGGERS.items():
            logger = logging.getLogger(name)
            self._levels[name] = (logger.level, logger.propagate)
            logger.setLevel(level)
            logger.propagate = False
            logger.addHandler(self)

    def detach(self) -> None:
        """Leave the loggers as they were."""
        for name, (level, propagate) in self._levels.items():
            logger = logging.getLogger(name)
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate
        self._levels.clear()
