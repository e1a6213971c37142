"""Options of the instrumentation. Invalid values are logged and replaced by the default; they never raise."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool.config import (
    DATABASE_STATES,
    SPAN_MODES,
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
    split_words,
)
from otel_pgpool.environment import CONFIG_FILE, DATABASE_STATE, FORK_REPAIR, POOLS, WAIT_TIMEOUT
from otel_pgpool.validation import invalid_option, validate_seconds

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
        tracer_provider: object = None,
        meter_provider: object = None,
        spans: object = None,
        slow: object = None,
        histograms: object = None,
        stack_skip: object = None,
        caller: object = None,
        long_hold: object = ...,
        wait_timeout: object = None,
        fork_repair: object = None,
        database_state: object = None,
        environ: Mapping[str, str] = os.environ,
    ) -> InstrumentationOptions:
        """Read the options. An argument overrides its environment variable, which overrides the default.

        An argument may come from a file of OpenTelemetry's declarative configuration. There, ``off`` is a boolean, and
        a list may be a text, as in a variable.
        """
        return cls(
            _read_or_default(_tracer_provider, tracer_provider, environ),
            _read_or_default(_meter_provider, meter_provider, environ),
            TelemetryConfig(
                _read_or_default(span_mode, _word(spans, SPAN_MODES), environ),
                _read_or_default(slow_threshold, slow, environ),
                _read_or_default(recorded_histograms, _names(histograms), environ),
                _read_or_default(skipped_packages, _names(stack_skip), environ),
                _read_or_default(reports_callers, _flag(caller), environ),
            ),
            _read_or_default(long_hold_threshold, long_hold, environ, unset=...),
            _read_or_default(_wait_timeout, wait_timeout, environ),
            _read_or_default(_fork_repair, _flag(fork_repair), environ),
            _read_or_default(_database_state, _word(database_state, DATABASE_STATES), environ) == "all",
        )


PROVIDERS = ("tracer_provider", "meter_provider")
"""The options that only a program can give, because their values are objects."""

OPTIONS = (
    *PROVIDERS,
    "spans",
    "slow",
    "histograms",
    "stack_skip",
    "caller",
    "long_hold",
    "wait_timeout",
    "fork_repair",
    "database_state",
    "pools",
)
"""The options of ``PgPoolInstrumentor.instrument``, in the order of the documentation."""


def known_options(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the options to name in a warning: without the providers if a file of OpenTelemetry configures them."""
    return tuple(option for option in OPTIONS if option not in PROVIDERS) if environ.get(CONFIG_FILE) else OPTIONS


def _tracer_provider(value: Any, _environ: Mapping[str, str]) -> TracerProvider | None:
    provider: TracerProvider | None = _provider("tracer_provider", value, "get_tracer")
    return provider


def _meter_provider(value: Any, _environ: Mapping[str, str]) -> MeterProvider | None:
    provider: MeterProvider | None = _provider("meter_provider", value, "get_meter")
    return provider


def _provider(option: str, value: Any, method: str) -> Any:
    if value is None or (callable(getattr(value, method, None)) and not isinstance(value, type)):
        return value
    raise invalid_option(option, value, "a provider of OpenTelemetry, which a program can give but no file, or None")


def _word(value: object, choices: Collection[str]) -> object:
    """Return the choice that YAML reads as a boolean, ``on`` or ``off``; any other value as it is."""
    word = "on" if value is True else "off" if value is False else value
    return word if word in choices else value


def _flag(value: object) -> object:
    """Return True for the number 1 and False for 0, as in the variables; any other value as it is."""
    return bool(value) if isinstance(value, int) and value in (0, 1) else value


def _names(value: object) -> object:
    """Return the names in a text, written as in a variable; any other value as it is."""
    if not isinstance(value, str):
        return value
    return [] if value.strip().lower() == "none" else split_words(value)


def _wait_timeout(value: object, environ: Mapping[str, str]) -> float | None:
    if value is not None:
        return validate_seconds(WAIT_TIMEOUT.option, value, none=True)
    return environment_seconds(WAIT_TIMEOUT, environ) if environ.get(WAIT_TIMEOUT.name, "").strip() else None


def _fork_repair(value: object, environ: Mapping[str, str]) -> bool:
    if value is None:
        return environment_choice(FORK_REPAIR, ("0", "1"), environ) == "1"
    if isinstance(value, bool):
        return value
    raise invalid_option(FORK_REPAIR.option, value, "True or False")


def _database_state(value: object, environ: Mapping[str, str]) -> str:
    if value is None:
        return environment_choice(DATABASE_STATE, DATABASE_STATES, environ)
    if isinstance(value, str) and value in DATABASE_STATES:
        return value
    raise invalid_option("database_state", value, f"one of {', '.join(DATABASE_STATES)}")


def chosen_kinds(value: object, known: Collection[str], environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the kinds of pools to instrument.

    Unknown names are logged, and the others count. If all are unknown, every kind is instrumented. A name may be
    written as that of the distribution, such as ``psycopg-pool``.

    Args:
        value: the names, or a text as in the variable; None to read ``OTEL_PGPOOL_POOLS``, of which the default is all.
        known: the names that are accepted.
        environ: the environment.
    """
    option = "pools"
    if value is None:
        option, value = POOLS.name, environment_words(POOLS, environ)
        if not value:
            return frozenset(known)
    accepted = f"a list of names among {', '.join(sorted(known))}"
    value = _names(value)
    if not isinstance(value, Iterable):
        logger.error("%s; the pools of all libraries are instrumented", invalid_option(option, value, accepted))
        return frozenset(known)
    kinds = [(name, str(name).strip().lower().replace("-", "_")) for name in value]
    chosen = frozenset(kind for _name, kind in kinds) & frozenset(known)
    effect = "this name is ignored" if chosen else "the pools of all libraries are instrumented"
    for name, kind in kinds:
        if kind not in known:
            logger.error("%s; %s", invalid_option(option, name, accepted), effect)
    return chosen if chosen or not kinds else frozenset(known)


def _read_or_default(
    read: Callable[[object, Mapping[str, str]], Value], value: object, environ: Mapping[str, str], unset: object = None
) -> Value:
    try:
        return read(value, environ)
    except ValueError as error:
        logger.error("%s; the default is used instead", error)  # noqa: TRY400 - the message is enough
    return read(unset, {})
