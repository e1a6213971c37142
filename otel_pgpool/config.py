"""The options of a pool and of its telemetry, validated: argument, then environment variable, then default."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from otel_pgpool import environment
from otel_pgpool.runtime.text import LONGEST_NAME, may_hold_password
from otel_pgpool.validation import (
    invalid_option,
    validate_attempts,
    validate_bool,
    validate_callable,
    validate_integer,
    validate_limits,
    validate_seconds,
)

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.environment import Variable

    EvictOn = Callable[[BaseException], object] | frozenset[str] | None
    Check = Callable[[connection], object] | Literal["auto"] | None


def environment_seconds(variable: Variable, environ: Mapping[str, str]) -> float:
    """Read a duration in seconds from the environment. An unset or empty variable means the default.

    OpenTelemetry's specification treats empty ``OTEL_*`` variables as unset, and so does this package.

    Raises:
        ValueError: the value is not a number of at least 0.
    """
    text = environ.get(variable.name, "").strip() or variable.default
    with suppress(ValueError):
        if (number := float(text)) >= 0:
            return number
    raise invalid_option(variable.name, text, "a number of seconds of at least 0 (inf allowed)")


def environment_choice(variable: Variable, choices: tuple[str, ...], environ: Mapping[str, str]) -> str:
    """Read one of ``choices`` from the environment. An unset or empty variable means the default.

    Raises:
        ValueError: the value is not one of the choices.
    """
    text = environ.get(variable.name, "").strip().lower()
    if text and text not in choices:
        raise invalid_option(variable.name, environ[variable.name], f"one of {', '.join(choices)}")
    return text or variable.default


def validate_name(option: str, value: object) -> str | None:
    """Validate the name of a pool, or None.

    Raises:
        ValueError: the value is too long, not printable, or a connection string.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value.strip()) <= LONGEST_NAME:
        raise invalid_option(option, value, f"a printable string of 1 to {LONGEST_NAME} characters")
    if may_hold_password(value):  # a name appears in spans, metrics and logs
        raise invalid_option(option, value, "a name, not a connection string")
    return value


SQLSTATE = re.compile("[0-9A-Z]{5}|[0-9A-Z]{2}")
"""A SQLSTATE, or its class."""

APPLICATION_NAMES = ("off", "trace")


@dataclass(frozen=True)
class PoolConfig:
    """Validated options of a pool. Durations are in seconds, and infinite if switched off."""

    minconn: int
    maxconn: int
    name: str | None
    timeout: float
    max_waiting: int
    max_attempts: int | None
    max_lifetime: float
    max_idle: float
    keepalive: float
    long_hold: float
    check: Check
    configure: Callable[[connection], object] | None
    reset: Callable[[connection], object] | None
    credentials: Callable[[], Mapping[str, Any]] | None
    evict_on: EvictOn
    reentrant: bool
    reconnect_timeout: float
    reconnect_failed: Callable[[Any], object] | None
    is_monitored: bool
    """Whether the server is asked about long holds."""
    names_traces: bool
    """Whether a sampled checkout names its session by its trace."""

    @classmethod
    def of(
        cls,
        minconn: object = ...,
        maxconn: object = ...,
        *,
        min_size: object = ...,
        max_size: object = ...,
        name: object = None,
        timeout: object = None,
        max_waiting: object = 0,
        max_attempts: object = None,
        max_retries: object = None,
        max_lifetime: object = 3600.0,
        max_idle: object = 600.0,
        keepalive: object = None,
        long_hold: object = ...,
        check: object = "auto",
        configure: object = None,
        reset: object = None,
        credentials: object = None,
        evict_on: object = None,
        reentrant: object = False,
        reconnect_timeout: object = 300.0,
        reconnect_failed: object = None,
        environ: Mapping[str, str] = os.environ,
    ) -> PoolConfig:
        """Validate a pool's options. An argument overrides its environment variable, which overrides the default.

        Raises:
            ValueError: an option or variable is invalid; the message contains its name and what is accepted.
        """
        least, most = validate_limits(minconn, maxconn, min_size, max_size)
        return cls(
            minconn=least,
            maxconn=most,
            name=validate_name("name", name),
            timeout=checkout_timeout(timeout, environ),
            max_waiting=validate_integer("max_waiting", max_waiting),
            max_attempts=validate_attempts(max_attempts, max_retries),
            max_lifetime=validate_seconds_or_never("max_lifetime", max_lifetime),
            max_idle=validate_seconds_or_never("max_idle", max_idle),
            keepalive=validate_seconds_or_never("keepalive", keepalive),
            long_hold=long_hold_threshold(long_hold, environ),
            check=check if check == "auto" else validate_callable("check", check, also="'auto' or None"),
            configure=validate_callable("configure", configure),
            reset=validate_callable("reset", reset),
            credentials=_credentials(credentials),
            evict_on=_evict_on(evict_on),
            reentrant=validate_bool("reentrant", reentrant),
            reconnect_timeout=validate_seconds("reconnect_timeout", reconnect_timeout),
            reconnect_failed=validate_callable("reconnect_failed", reconnect_failed),
            is_monitored=environment_choice(environment.DATABASE_STATE, DATABASE_STATES, environ) != "off",
            names_traces=environment_choice(environment.APPLICATION_NAME, APPLICATION_NAMES, environ) == "trace",
        )


def checkout_timeout(value: object, environ: Mapping[str, str] = os.environ) -> float:
    """Return the longest wait of a checkout in seconds. None reads the environment.

    Raises:
        ValueError: the value is not a duration.
    """
    is_set = environ.get(environment.TIMEOUT.name, "").strip()
    return _seconds(environment.TIMEOUT if is_set else environment.FALLBACK_TIMEOUT, value, environ, none=True)


def _credentials(value: Any) -> Any:
    if value is not None and not callable(value):  # not `invalid_option`: the value may be a password in plain text
        raise ValueError(f"credentials must be a callable or None, not of type {type(value).__name__}")
    return value


def _evict_on(value: Any) -> EvictOn:
    """Validate ``evict_on``. The class of an error is refused: it is callable, and as a function of no use."""
    accepted = "a callable, a list of SQLSTATEs (5 characters) and of their classes (2 characters), or None"
    if value is None or (callable(value) and not isinstance(value, type)):
        return value
    return _names("evict_on", value, accepted, lambda code: isinstance(code, str) and bool(SQLSTATE.fullmatch(code)))


def long_hold_threshold(value: object, environ: Mapping[str, str] = os.environ) -> float:
    """Return the hold time in seconds after which a hold is long; infinite for never. ``...`` reads the environment.

    Raises:
        ValueError: the value is not a duration.
    """
    if value is ...:
        threshold = environment_seconds(environment.LONG_HOLD, environ)
    else:
        threshold = 0.0 if value is None else validate_seconds("long_hold", value, none=True)
    return threshold or math.inf


def validate_expected_hold(value: object) -> float:
    """Validate the expected duration of a hold in seconds; return infinity for None.

    Raises:
        ValueError: the value is not a duration above 0.
    """
    return validate_seconds_or_never("expected_hold", value)


def _seconds(variable: Variable, value: object, environ: Mapping[str, str], *, none: bool = False) -> float:
    """Validate a duration. None reads the environment."""
    if value is None:
        return environment_seconds(variable, environ)
    return validate_seconds(variable.option, value, none=none)


def validate_seconds_or_never(option: str, value: object) -> float:
    """Validate a duration in seconds above 0; return infinity for None.

    Raises:
        ValueError: the value is neither such a duration nor None.
    """
    return math.inf if value is None else validate_seconds(option, value, above=True, none=True)


DATABASE_STATES = ("on", "off", "all")
HISTOGRAMS = ("wait_time", "use_time", "create_time")
SPAN_MODES = ("always", "parent", "slow", "off")


@dataclass(frozen=True)
class TelemetryConfig:
    """Validated options of `Telemetry`: which checkouts get spans, and which histograms are recorded."""

    spans: str
    slow: float
    histograms: frozenset[str]
    stack_skip: frozenset[str] = frozenset()
    """Top-level packages to leave out of call sites, in addition to the built-in list."""
    caller: bool = False
    """Whether waits, holds and held connections are reported by the caller."""

    @classmethod
    def of(
        cls,
        spans: object = None,
        slow: object = None,
        histograms: object = None,
        stack_skip: object = None,
        *,
        caller: object = None,
        environ: Mapping[str, str] = os.environ,
    ) -> TelemetryConfig:
        """Validate telemetry options. An argument overrides its environment variable, which overrides the default.

        Raises:
            ValueError: an option or variable is invalid; the message contains its name and what is accepted.
        """
        return cls(
            span_mode(spans, environ),
            slow_threshold(slow, environ),
            recorded_histograms(histograms, environ),
            skipped_packages(stack_skip, environ),
            reports_callers(caller, environ),
        )


def span_mode(value: object, environ: Mapping[str, str]) -> str:
    """Validate the choice of checkouts that get spans. None reads the environment.

    Raises:
        ValueError: the value is not a known mode.
    """
    if value is None:
        return environment_choice(environment.SPANS, SPAN_MODES, environ)
    if isinstance(value, str) and value in SPAN_MODES:
        return value
    raise invalid_option("spans", value, f"one of {', '.join(SPAN_MODES)}")


def slow_threshold(value: object, environ: Mapping[str, str]) -> float:
    """Validate the time in seconds after which a checkout is slow. None reads the environment.

    Raises:
        ValueError: the value is not a duration.
    """
    return _seconds(environment.SLOW, value, environ)


def recorded_histograms(value: object, environ: Mapping[str, str]) -> frozenset[str]:
    """Validate the set of histograms to record. None reads the environment.

    Raises:
        ValueError: a name is not that of a histogram.
    """
    option = "histograms"
    if value is None:
        option, value = environment.HISTOGRAMS.name, environment_words(environment.HISTOGRAMS, environ)
        if value == ["none"]:
            value = []
    return _names(option, value, f"a list of {', '.join(HISTOGRAMS)}, or none", HISTOGRAMS.__contains__)


def skipped_packages(value: object, environ: Mapping[str, str]) -> frozenset[str]:
    """Validate the packages to leave out of call sites. None reads the environment.

    Raises:
        ValueError: an item is not the name of a top-level package.
    """
    option = "stack_skip"
    if value is None:
        option, value = environment.STACK_SKIP.name, environment_words(environment.STACK_SKIP, environ)
    return _names(
        option,
        value,
        "a list of names of top-level packages",
        lambda name: isinstance(name, str) and name.isidentifier(),
    )


def reports_callers(value: object, environ: Mapping[str, str]) -> bool:
    """Validate whether metrics are reported by the caller. None reads the environment.

    Raises:
        ValueError: the value is neither True nor False.
    """
    if value is None:
        return environment_choice(environment.CALLER, ("0", "1"), environ) == "1"
    if isinstance(value, bool):
        return value
    raise invalid_option("caller", value, "True or False")


def environment_words(variable: Variable, environ: Mapping[str, str]) -> list[str]:
    """Read a comma-separated list from the environment. An unset or empty variable means the default."""
    return split_words(environ.get(variable.name, "")) or split_words(variable.default)


def split_words(text: str) -> list[str]:
    """Split a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _names(option: str, chosen: object, accepted: str, is_accepted: Callable[[object], bool]) -> frozenset[str]:
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        raise invalid_option(option, chosen, accepted)
    names = list(chosen)
    for name in names:
        if not is_accepted(name):
            raise invalid_option(option, name, accepted)
    return frozenset(names)
