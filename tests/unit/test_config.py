"""Options and variables: argument, then environment, then default, each bad value refused by name."""

from __future__ import annotations

import dataclasses
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from otel_pgpool.config import PoolConfig, TelemetryConfig

NAN = math.nan


class Indexed:
    """An integer of another library: it has ``__index__`` and is no ``int``."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number

    def __repr__(self) -> str:
        return f"Indexed({self._number})"


def pool_config(minconn: object = 1, maxconn: object = 2, environ: dict[str, str] | None = None, **options: Any) -> Any:
    return PoolConfig.of(minconn, maxconn, environ=environ or {}, **options)


def nothing(*_args: object) -> None:
    """Stand for a callable of the user's."""


def test_defaults() -> None:
    """Those that the table of options gives."""
    assert dataclasses.asdict(pool_config()) == {
        "minconn": 1,
        "maxconn": 2,
        "name": None,
        "timeout": 30.0,
        "max_waiting": 0,
        "max_attempts": None,
        "max_lifetime": 3600.0,
        "max_idle": 600.0,
        "keepalive": math.inf,
        "long_hold": 1.0,
        "check": "auto",
        "configure": None,
        "reset": None,
        "credentials": None,
        "evict_on": None,
        "reentrant": False,
        "reconnect_timeout": 300.0,
        "reconnect_failed": None,
        "is_monitored": True,
        "names_traces": False,
    }


def test_a_config_is_frozen() -> None:
    """What was validated stays so."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool_config().timeout = -1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"timeout": 0}, 0.0),
        ({"timeout": 5}, 5.0),
        ({"timeout": 0.25}, 0.25),
        ({"timeout": Fraction(1, 4)}, 0.25),
        ({"timeout": math.inf}, math.inf),
        ({"max_waiting": 7}, 7),
        ({"max_waiting": Indexed(7)}, 7),
        ({"max_attempts": None}, None),
        ({"max_attempts": 1}, 1),
        ({"max_attempts": Indexed(3)}, 3),
        ({"max_lifetime": None}, math.inf),
        ({"max_lifetime": math.inf}, math.inf),
        ({"max_lifetime": 0.5}, 0.5),
        ({"max_idle": None}, math.inf),
        ({"max_idle": 1}, 1.0),
        ({"keepalive": None}, math.inf),
        ({"keepalive": 30}, 30.0),
        ({"long_hold": None}, math.inf),
        ({"long_hold": 0}, math.inf),
        ({"long_hold": 2}, 2.0),
        ({"check": None}, None),
        ({"check": nothing}, nothing),
        ({"configure": nothing}, nothing),
        ({"reset": nothing}, nothing),
        ({"credentials": nothing}, nothing),
        ({"reconnect_timeout": 0}, 0.0),
        ({"reconnect_timeout": math.inf}, math.inf),
        ({"reconnect_failed": nothing}, nothing),
        ({"name": "shop"}, "shop"),
        ({"name": "Größe 4"}, "Größe 4"),
        ({"minconn": 0}, 0),
        ({"maxconn": Indexed(9)}, 9),
    ],
    ids=lambda value: getattr(value, "__name__", None) or re.sub(r"<function (\w+).*>", r"\1", repr(value)),
)
def test_accepted(options: dict[str, Any], kept: object) -> None:
    """Each value as the pool will use it; what is switched off is infinite."""
    [option] = options
    value = getattr(pool_config(**options), option)
    assert value == kept
    assert type(value) is type(kept)


SECONDS = "a number of seconds of at least 0 (math.inf allowed)"
ABOVE = "a number of seconds above 0 (math.inf allowed)"
SECONDS_OR_NONE, ABOVE_OR_NONE = f"{SECONDS} or None", f"{ABOVE} or None"
WHOLE = "a whole number of at least 0"
WHOLE_OR_NONE = f"{WHOLE} or None"
ATTEMPTS = "a whole number of at least 1 or None"
FROM_ONE = "a whole number of at least 1 and at most 262143"
NAME = "a printable string of 1 to 200 characters"
HUGE = 10**400

REFUSED: list[tuple[str, object, str]] = [
    *[
        ("timeout", bad, SECONDS_OR_NONE)
        for bad in (-1, -0.001, -math.inf, NAN, True, False, "5", "", b"5", [], Decimal(5), 5j)
    ],
    ("timeout", Indexed(5), SECONDS_OR_NONE),
    *[("long_hold", bad, SECONDS_OR_NONE) for bad in (-1, NAN, True, "1", {})],
    *[("max_lifetime", bad, ABOVE_OR_NONE) for bad in (0, 0.0, -1, NAN, True, "3600")],
    *[("max_idle", bad, ABOVE_OR_NONE) for bad in (0, -1, NAN, False, "600")],
    *[("keepalive", bad, ABOVE_OR_NONE) for bad in (0, -1, NAN, True, "30")],
    *[("max_waiting", bad, WHOLE) for bad in (-1, 1.0, 0.5, NAN, math.inf, True, "7", None, Indexed(-1))],
    *[("max_retries", bad, WHOLE_OR_NONE) for bad in (-1, 3.0, NAN, math.inf, False, "3", [], Indexed(-2))],
    *[("max_attempts", bad, ATTEMPTS) for bad in (0, -1, 3.0, NAN, False, "3", [], Indexed(0))],
    *[("minconn", bad, WHOLE) for bad in (-1, 1.0, NAN, math.inf, True, "1", None, Indexed(-1))],
    *[("maxconn", bad, FROM_ONE) for bad in (0, -1, 2.0, NAN, math.inf, True, "2", None, Indexed(0))],
    ("minconn", 3, "at most maxconn (2)"),
    *[("name", bad, NAME) for bad in ("", "  ", "a\nb", "a\x00b", "x" * 201, 5, b"shop", True, ["shop"])],
    *[("check", bad, "a callable or 'auto' or None") for bad in ("AUTO", "ping", "", 1, True, False)],
    *[("configure", bad, "a callable or None") for bad in ("SET x = 1", 1, True)],
    *[("reconnect_timeout", bad, SECONDS) for bad in (-1, NAN, True, "300", None)],
    *[("reconnect_failed", bad, "a callable or None") for bad in ("exit", 1, False)],
    *[("reset", bad, "a callable or None") for bad in ("DISCARD ALL", 1, False)],
]


@pytest.mark.parametrize(("option", "value", "accepted"), REFUSED, ids=[f"{o}={v!r:.20}" for o, v, _ in REFUSED])
def test_refused(option: str, value: object, accepted: str) -> None:
    """The error names the option, shows the value and says what is accepted."""
    with pytest.raises(ValueError, match=" must be ") as caught:
        pool_config(**{option: value})
    message = str(caught.value)
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    assert message == f"{option} must be {accepted}, not {shown}"


SIZES: list[tuple[dict[str, object], tuple[int, int]]] = [
    ({"minconn": 1, "maxconn": 2}, (1, 2)),
    ({"min_size": 1, "max_size": 2}, (1, 2)),
    ({"minconn": 0, "max_size": 3}, (0, 3)),
    ({"min_size": Indexed(2), "maxconn": 3}, (2, 3)),
]


@pytest.mark.parametrize(("given", "limits"), SIZES)
def test_sizes_by_either_name(given: dict[str, object], limits: tuple[int, int]) -> None:
    """`min_size` and `max_size`, the names of psycopg_pool, mean `minconn` and `maxconn`."""
    config = PoolConfig.of(**given, environ={})
    assert (config.minconn, config.maxconn) == limits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "minconn must be given, or min_size, which means the same"),
        ({"minconn": 1}, "maxconn must be given, or max_size, which means the same"),
        ({"max_size": 1}, "minconn must be given, or min_size, which means the same"),
        ({"minconn": 1, "min_size": 1, "max_size": 2}, "minconn and min_size are two names of one option: give one"),
        ({"minconn": 1, "maxconn": 2, "max_size": 2}, "maxconn and max_size are two names of one option: give one"),
        ({"minconn": "host=db", "min_size": 1, "max_size": 2}, "minconn and min_size .*: give a DSN as dsn=$"),
        ({"min_size": 3, "max_size": 2}, r"min_size must be at most max_size \(2\), not 3"),
        ({"min_size": "1", "max_size": 2}, "min_size must be a whole number of at least 0, not '1'"),
        ({"minconn": 0, "max_size": 0}, "max_size must be a whole number of at least 1 .*, not 0"),
        ({"min_size": None, "max_size": 1}, "min_size must be a whole number of at least 0, not None"),
    ],
)
def test_sizes_refused(given: dict[str, object], message: str) -> None:
    """The error has the names that the program uses, and never a DSN that stands in the wrong place."""
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        PoolConfig.of(**given, environ={})
    assert "host=db" not in str(caught.value)


@pytest.mark.parametrize(("older", "attempts"), [(0, 1), (1, 1), (2, 2), (Indexed(5), 5), (None, None)])
def test_the_older_name_of_max_attempts(older: object, attempts: int | None) -> None:
    """`max_retries` means the same; its 0 counts as 1, because a checkout cannot give up before an attempt."""
    assert pool_config(max_retries=older).max_attempts == attempts


@pytest.mark.parametrize("older", [0, 3, "3"])
def test_both_names_of_max_attempts(older: object) -> None:
    """The error names both, even if the numbers agree."""
    with pytest.raises(ValueError, match=r"^max_attempts and max_retries are two names of one option"):
        pool_config(max_attempts=3, max_retries=older)


@pytest.mark.parametrize("value", [{"password": "hunter2"}, "hunter2", ["hunter2"], 1, True])
def test_credentials_are_refused_without_being_shown(value: object) -> None:
    """Whoever gives them themselves, and not what asks for them, reads what kind of thing it was."""
    with pytest.raises(ValueError, match=r"^credentials must be a callable or None, not of type \w+$") as caught:
        pool_config(credentials=value)
    assert type(value).__name__ in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_number_too_large_to_be_seconds_is_refused() -> None:
    """By the same words, however many digits it has."""
    with pytest.raises(ValueError, match=r"^timeout must be a number of seconds .* not 1000.*\.\.\.$"):
        pool_config(timeout=HUGE)


@pytest.mark.parametrize(
    ("environ", "option", "value"),
    [
        ({}, "timeout", 30.0),
        ({"DB_CONNECTION_TIMEOUT": "5"}, "timeout", 5.0),
        ({"DB_CONNECTION_TIMEOUT": " 2.5 "}, "timeout", 2.5),
        ({"DB_CONNECTION_TIMEOUT": "0"}, "timeout", 0.0),
        ({"DB_CONNECTION_TIMEOUT": "inf"}, "timeout", math.inf),
        ({"DB_CONNECTION_TIMEOUT": ""}, "timeout", 30.0),
        ({"DB_CONNECTION_TIMEOUT": "  "}, "timeout", 30.0),
        ({"OTEL_PGPOOL_TIMEOUT": " 4 "}, "timeout", 4.0),
        ({"OTEL_PGPOOL_TIMEOUT": "0", "DB_CONNECTION_TIMEOUT": "5"}, "timeout", 0.0),
        ({"OTEL_PGPOOL_TIMEOUT": "4", "DB_CONNECTION_TIMEOUT": "soon"}, "timeout", 4.0),
        ({"OTEL_PGPOOL_TIMEOUT": " ", "DB_CONNECTION_TIMEOUT": "5"}, "timeout", 5.0),
        ({"OTEL_PGPOOL_TIMEOUT": ""}, "timeout", 30.0),
        ({}, "long_hold", 1.0),
        ({"OTEL_PGPOOL_LONG_HOLD": "0.5"}, "long_hold", 0.5),
        ({"OTEL_PGPOOL_LONG_HOLD": "0"}, "long_hold", math.inf),
        ({"OTEL_PGPOOL_LONG_HOLD": ""}, "long_hold", 1.0),
    ],
)
def test_environment(environ: dict[str, str], option: str, value: float) -> None:
    """A variable stands where no argument is given; unset and empty mean the default."""
    assert getattr(pool_config(environ=environ), option) == value


def test_an_argument_comes_before_the_environment() -> None:
    """Even before a variable that could not be used."""
    environ = {"DB_CONNECTION_TIMEOUT": "soon", "OTEL_PGPOOL_LONG_HOLD": "never"}
    config = pool_config(environ=environ, timeout=4, long_hold=None)
    assert (config.timeout, config.long_hold) == (4.0, math.inf)


def test_the_environment_is_read_when_the_pool_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the package is imported."""
    monkeypatch.setenv("DB_CONNECTION_TIMEOUT", "7")
    assert PoolConfig.of(1, 2).timeout == 7.0


FROM_TEXT = "a number of seconds of at least 0 (inf allowed)"
VARIABLES_REFUSED = [
    (variable, value)
    for variable in ("OTEL_PGPOOL_TIMEOUT", "DB_CONNECTION_TIMEOUT", "OTEL_PGPOOL_LONG_HOLD")
    for value in ("-1", "nan", "-inf", "soon", "5s", "1,5", "True", "0x10")
]


@pytest.mark.parametrize(("variable", "value"), VARIABLES_REFUSED)
def test_a_bad_variable_is_refused(variable: str, value: str) -> None:
    """The error names the variable, the value and what is accepted."""
    with pytest.raises(ValueError, match=variable) as caught:
        pool_config(environ={variable: value})
    assert str(caught.value) == f"{variable} must be {FROM_TEXT}, not {value!r}"


@pytest.mark.parametrize(
    ("value", "is_on"), [("", False), ("off", False), (" Off ", False), ("trace", True), (" TRACE ", True)]
)
def test_the_names_of_sessions(value: str, is_on: bool) -> None:
    """A sampled checkout names its session only if the variable asks for that."""
    assert pool_config(environ={"OTEL_PGPOOL_APPLICATION_NAME": value}).names_traces is is_on


def test_another_name_of_sessions_is_refused() -> None:
    """The error names the variable, the value and what is accepted."""
    with pytest.raises(ValueError, match=r"^OTEL_PGPOOL_APPLICATION_NAME must be one of off, trace, not 'on'$"):
        pool_config(environ={"OTEL_PGPOOL_APPLICATION_NAME": "on"})


# Telemetry


def telemetry_config(environ: dict[str, str] | None = None, **options: Any) -> TelemetryConfig:
    return TelemetryConfig.of(**options, environ=environ or {})


ALL = {"wait_time", "use_time", "create_time"}


@pytest.mark.parametrize(
    ("environ", "options", "expected"),
    [
        ({}, {}, ("always", 0.1, ALL)),
        ({"OTEL_PGPOOL_SPANS": "off"}, {}, ("off", 0.1, ALL)),
        ({"OTEL_PGPOOL_SPANS": " Parent "}, {}, ("parent", 0.1, ALL)),
        ({"OTEL_PGPOOL_SPANS": ""}, {}, ("always", 0.1, ALL)),
        ({"OTEL_PGPOOL_SPANS": "off"}, {"spans": "slow"}, ("slow", 0.1, ALL)),
        ({"OTEL_PGPOOL_SPANS": "loud"}, {"spans": "slow"}, ("slow", 0.1, ALL)),
        ({"OTEL_PGPOOL_SLOW": "0.25"}, {}, ("always", 0.25, ALL)),
        ({"OTEL_PGPOOL_SLOW": "0.25"}, {"slow": 0}, ("always", 0.0, ALL)),
        ({"OTEL_PGPOOL_HISTOGRAMS": "wait_time"}, {}, ("always", 0.1, {"wait_time"})),
        ({"OTEL_PGPOOL_HISTOGRAMS": " use_time , create_time,"}, {}, ("always", 0.1, {"use_time", "create_time"})),
        ({"OTEL_PGPOOL_HISTOGRAMS": "none"}, {}, ("always", 0.1, set())),
        ({"OTEL_PGPOOL_HISTOGRAMS": ""}, {}, ("always", 0.1, ALL)),
        ({"OTEL_PGPOOL_HISTOGRAMS": "none"}, {"histograms": ["use_time"]}, ("always", 0.1, {"use_time"})),
        ({}, {"histograms": []}, ("always", 0.1, set())),
        ({}, {"histograms": iter(["use_time"])}, ("always", 0.1, {"use_time"})),
    ],
)
def test_telemetry(environ: dict[str, str], options: dict[str, Any], expected: tuple[object, ...]) -> None:
    """Argument, then environment, then default."""
    config = telemetry_config(environ, **options)
    assert (config.spans, config.slow, config.histograms) == expected


@pytest.mark.parametrize(
    ("environ", "options", "expected"),
    [
        ({}, {}, set()),
        ({"OTEL_PGPOOL_STACK_SKIP": ""}, {}, set()),
        ({"OTEL_PGPOOL_STACK_SKIP": " acme , _acme_server,"}, {}, {"acme", "_acme_server"}),
        ({"OTEL_PGPOOL_STACK_SKIP": "acme"}, {"stack_skip": []}, set()),
        ({"OTEL_PGPOOL_STACK_SKIP": "no package"}, {"stack_skip": ["acme"]}, {"acme"}),
        ({}, {"stack_skip": iter(["acme"])}, {"acme"}),
    ],
)
def test_packages_above_the_program(environ: dict[str, str], options: dict[str, Any], expected: set[str]) -> None:
    """Argument, then environment, then none."""
    assert telemetry_config(environ, **options).stack_skip == expected


MODES = "one of always, parent, slow, off"
PACKAGES = "a list of names of top-level packages"
HISTOGRAMS = "a list of wait_time, use_time, create_time, or none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spans": "loud"}, f"spans must be {MODES}, not 'loud'"),
        ({"spans": "ALWAYS"}, f"spans must be {MODES}, not 'ALWAYS'"),
        ({"spans": True}, f"spans must be {MODES}, not True"),
        ({"spans": ["off"]}, f"spans must be {MODES}, not ['off']"),
        ({"slow": -1}, f"slow must be {SECONDS}, not -1"),
        ({"slow": NAN}, f"slow must be {SECONDS}, not nan"),
        ({"slow": True}, f"slow must be {SECONDS}, not True"),
        ({"slow": "0.1"}, f"slow must be {SECONDS}, not '0.1'"),
        ({"histograms": ["waits"]}, f"histograms must be {HISTOGRAMS}, not 'waits'"),
        ({"histograms": [["use_time"]]}, f"histograms must be {HISTOGRAMS}, not ['use_time']"),
        ({"histograms": "use_time"}, f"histograms must be {HISTOGRAMS}, not 'use_time'"),
        ({"histograms": 5}, f"histograms must be {HISTOGRAMS}, not 5"),
        ({"stack_skip": "acme"}, f"stack_skip must be {PACKAGES}, not 'acme'"),
        ({"stack_skip": 5}, f"stack_skip must be {PACKAGES}, not 5"),
        ({"stack_skip": [b"acme"]}, f"stack_skip must be {PACKAGES}, not b'acme'"),
        ({"stack_skip": ["acme.server"]}, f"stack_skip must be {PACKAGES}, not 'acme.server'"),
        (
            {"environ": {"OTEL_PGPOOL_STACK_SKIP": "acme/server"}},
            f"OTEL_PGPOOL_STACK_SKIP must be {PACKAGES}, not 'acme/server'",
        ),
        ({"histograms": True}, f"histograms must be {HISTOGRAMS}, not True"),
        ({"environ": {"OTEL_PGPOOL_SPANS": "Loud"}}, f"OTEL_PGPOOL_SPANS must be {MODES}, not 'Loud'"),
        ({"environ": {"OTEL_PGPOOL_SLOW": "fast"}}, f"OTEL_PGPOOL_SLOW must be {FROM_TEXT}, not 'fast'"),
        (
            {"environ": {"OTEL_PGPOOL_SLOW": "-1"}},
            "OTEL_PGPOOL_SLOW must be a number of seconds of at least 0 (inf allowed), not '-1'",
        ),
        (
            {"environ": {"OTEL_PGPOOL_HISTOGRAMS": "use_time,waits"}},
            f"OTEL_PGPOOL_HISTOGRAMS must be {HISTOGRAMS}, not 'waits'",
        ),
    ],
)
def test_telemetry_refused(options: dict[str, Any], message: str) -> None:
    """As the pool's own options are."""
    with pytest.raises(ValueError, match=" must be ") as caught:
        telemetry_config(**options)
    assert str(caught.value) == message
