"""Options of the instrumentation. Invalid values are logged and replaced by the default; they never raise."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from otel_pgpool.config import (
    DATABASE_STATES,
    TelemetryConfig,
    environment_choice,
    environment_seconds,
    environment_words,
    long_hold_threshold,
    recorded_histograms,
    reports_callers,
    skipped_packages,
    slow_threshold,
    span_mode,
)
from otel_pgpool.environment import DATABASE_STATE, FORK_REPAIR, POOLS, WAIT_TIMEOUT
from otel_pgpool.validation import invalid_option

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

Value = TypeVar("Value")


logger = logging.getLogger("otel_pgpool")


@dataclass(frozen=True)
class InstrumentationOptions:
    """Validated options of the instrumentation. Durations are in seconds."""

    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    telemetry: TelemetryConfig
    long_hold: float
    """Threshold of a long hold; infinite if switched off."""
    wait_timeout: float | None
    """Time that callers wait for an exhausted pool that does not wait itself; None if they get its error at once."""
    fork_repair: bool
    """Whether a pool of ``psycopg_pool`` or ``asyncpg`` begins anew in a forked child."""
    is_monitored: bool
    """Whether the server is asked about long holds, over a connection of its own."""

    @classmethod
    def of(
        cls,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        spans: object = None,
        long_hold: object = ...,
        environ: Mapping[str, str] = os.environ,
    ) -> InstrumentationOptions:
        """Read the options. An argument overrides its environment variable, which overrides the default."""
        return cls(
            tracer_provider,
            meter_provider,
            TelemetryConfig(
                _read_or_default(span_mode, spans, environ),
                _read_or_default(slow_threshold, None, environ),
                _read_or_default(recorded_histograms, None, environ),
                _read_or_default(skipped_packages, None, environ),
                _read_or_default(reports_callers, None, environ),
            ),
            _read_or_default(long_hold_threshold, long_hold, environ, unset=...),
            _read_or_default(wait_timeout, None, environ),
            _read_or_default(fork_repair, None, environ),
            _read_or_default(is_monitored, None, environ),
        )


def wait_timeout(_value: object, environ: Mapping[str, str]) -> float | None:
    """Read ``OTEL_PGPOOL_WAIT_TIMEOUT``, for which there is no argument.

    Raises:
        ValueError: the variable is invalid.
    """
    return environment_seconds(WAIT_TIMEOUT, environ) if environ.get(WAIT_TIMEOUT.name, "").strip() else None


def fork_repair(_value: object, environ: Mapping[str, str]) -> bool:
    """Read ``OTEL_PGPOOL_FORK_REPAIR``, for which there is no argument.

    Raises:
        ValueError: the variable is invalid.
    """
    return environment_choice(FORK_REPAIR, ("0", "1"), environ) == "1"


def is_monitored(_value: object, environ: Mapping[str, str]) -> bool:
    """Return whether ``OTEL_PGPOOL_DATABASE_STATE``, for which there is no argument, includes instrumented pools.

    Raises:
        ValueError: the variable is invalid.
    """
    return environment_choice(DATABASE_STATE, DATABASE_STATES, environ) == "all"


def chosen_kinds(value: object, known: Collection[str], environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the kinds of pools to instrument.

    Unknown names are logged, and the others count. If all are unknown, every kind is instrumented. A name may be
    written as that of the distribution, such as ``psycopg-pool``.

    Args:
        value: the names, or one name; None to read ``OTEL_PGPOOL_POOLS``, of which the default is all.
        known: the names that are accepted.
        environ: the environment.
    """
    option = "pools"
    if value is None:
        option, value = POOLS.name, environment_words(POOLS, environ)
        if not value:
            return frozenset(known)
    accepted = f"a list of names among {', '.join(sorted(known))}"
    if not isinstance(value, Iterable):
        logger.error("%s; the pools of all libraries are instrumented", invalid_option(option, value, accepted))
        return frozenset(known)
    names = [value] if isinstance(value, str) else [*value]
    kinds = {name: str(name).strip().lower().replace("-", "_") for name in names}
    chosen = frozenset(kinds.values()) & frozenset(known)
    effect = "this name is ignored" if chosen else "the pools of all libraries are instrumented"
    for name, kind in kinds.items():
        if kind not in known:
            logger.error("%s; %s", invalid_option(option, name, accepted), effect)
    return chosen if chosen or not names else frozenset(known)


def _read_or_default(
    read: Callable[[object, Mapping[str, str]], Value], value: object, environ: Mapping[str, str], unset: object = None
) -> Value:
    try:
        return read(value, environ)
    except ValueError as error:
        logger.error("%s; the default is used instead", error)  # noqa: TRY400 - the message is enough
    return read(unset, {})
