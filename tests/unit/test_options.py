"""What the instrumentation was told: argument, then environment, then default; and never an error."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from otel_pgpool.config import HISTOGRAMS
from otel_pgpool.instrumentation.options import InstrumentationOptions


def of(environ: dict[str, str] | None = None, **options: Any) -> InstrumentationOptions:
    return InstrumentationOptions.of(environ=environ or {}, **options)


def test_defaults(caplog: pytest.LogCaptureFixture) -> None:
    """Every span, 1 s until a hold is long, no wait; nothing is logged."""
    settings = of()
    assert (settings.tracer_provider, settings.meter_provider) == (None, None)
    assert settings.telemetry.spans == "always"
    assert settings.telemetry.slow == 0.1
    assert settings.telemetry.histograms == set(HISTOGRAMS)
    assert (settings.long_hold, settings.wait_timeout) == (1.0, None)
    assert caplog.records == []


def test_environment() -> None:
    """Each has its variable."""
    settings = of(
        {
            "OTEL_PGPOOL_SPANS": " Parent ",
            "OTEL_PGPOOL_SLOW": "2",
            "OTEL_PGPOOL_HISTOGRAMS": "use_time",
            "OTEL_PGPOOL_STACK_SKIP": "acme",
            "OTEL_PGPOOL_CALLER": "1",
            "OTEL_PGPOOL_LONG_HOLD": "0",
            "OTEL_PGPOOL_WAIT_TIMEOUT": " 2.5 ",
        }
    )
    assert settings.telemetry.spans == "parent"
    assert settings.telemetry.slow == 2.0
    assert settings.telemetry.histograms == {"use_time"}
    assert settings.telemetry.stack_skip == {"acme"}
    assert settings.telemetry.caller
    assert (settings.long_hold, settings.wait_timeout) == (math.inf, 2.5)


def test_arguments() -> None:
    """Each option is an argument too; a list may be a text, as in a variable, and YAML's booleans are words."""
    settings = of(
        spans=False,
        slow=2,
        histograms=["use_time"],
        stack_skip="acme, umbrella",
        wait_timeout=2.5,
        fork_repair=True,
        database_state="all",
    )
    assert (settings.telemetry.spans, settings.telemetry.slow, settings.telemetry.histograms) == (
        "off",
        2,
        {"use_time"},
    )
    assert settings.telemetry.stack_skip == {"acme", "umbrella"}
    assert (settings.wait_timeout, settings.fork_repair, settings.is_monitored) == (2.5, True, True)
    assert of(histograms="none").telemetry.histograms == of(histograms=[]).telemetry.histograms == set()
    assert of({"OTEL_PGPOOL_DATABASE_STATE": "all"}, database_state=True).is_monitored is False
    assert of({"OTEL_PGPOOL_FORK_REPAIR": "1"}, fork_repair=0).fork_repair is False
    assert of(caller=1).telemetry.caller is of(caller=True).telemetry.caller is True


def test_providers() -> None:
    """Those of a program are taken as they are."""
    tracers, meters = NoOpTracerProvider(), NoOpMeterProvider()
    settings = of(tracer_provider=tracers, meter_provider=meters)
    assert (settings.tracer_provider, settings.meter_provider) == (tracers, meters)


def test_none_is_not_given() -> None:
    """An option that a file leaves empty has the value of its variable; only `long_hold` is switched off by it."""
    environ = {"OTEL_PGPOOL_SPANS": "off", "OTEL_PGPOOL_WAIT_TIMEOUT": "3", "OTEL_PGPOOL_FORK_REPAIR": "1"}
    settings = of(environ, spans=None, wait_timeout=None, fork_repair=None, database_state=None, histograms=None)
    assert (settings.telemetry.spans, settings.wait_timeout, settings.fork_repair) == ("off", 3.0, True)


def test_arguments_come_first() -> None:
    """An argument hides its variable, a bad one included."""
    environ = {"OTEL_PGPOOL_SPANS": "nonsense", "OTEL_PGPOOL_LONG_HOLD": "nonsense"}
    settings = of(environ, spans="off", long_hold=3)
    assert (settings.telemetry.spans, settings.long_hold) == ("off", 3.0)


@pytest.mark.parametrize("value", [None, 0, math.inf])
def test_no_hold_is_long(value: object) -> None:
    """None, 0 and infinity switch it off."""
    assert of(long_hold=value).long_hold == math.inf


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_is_unset(text: str) -> None:
    """As for the variables of OpenTelemetry: an exhausted pool does not begin to wait for want of a number."""
    assert of({"OTEL_PGPOOL_WAIT_TIMEOUT": text}).wait_timeout is None


@pytest.mark.parametrize(("text", "expected"), [("", False), ("on", False), ("off", False), (" All ", True)])
def test_database_state(text: str, expected: bool) -> None:
    """Only ``all`` lets a monitor watch instrumented pools."""
    assert of({"OTEL_PGPOOL_DATABASE_STATE": text}).is_monitored is expected


@pytest.mark.parametrize(("text", "expected"), [("0", 0.0), ("inf", math.inf), ("1e2", 100.0)])
def test_wait_timeout(text: str, expected: float) -> None:
    """Any number of seconds."""
    assert of({"OTEL_PGPOOL_WAIT_TIMEOUT": text}).wait_timeout == expected


@pytest.mark.parametrize(
    ("environ", "options"),
    [
        ({"OTEL_PGPOOL_SPANS": "some"}, {}),
        ({"OTEL_PGPOOL_DATABASE_STATE": "everything"}, {}),
        ({"OTEL_PGPOOL_SLOW": "fast"}, {}),
        ({"OTEL_PGPOOL_HISTOGRAMS": "all"}, {}),
        ({"OTEL_PGPOOL_STACK_SKIP": "acme.server"}, {}),
        ({"OTEL_PGPOOL_CALLER": "true"}, {}),
        ({"OTEL_PGPOOL_LONG_HOLD": "-1"}, {}),
        ({"OTEL_PGPOOL_WAIT_TIMEOUT": "nan"}, {}),
        ({}, {"tracer_provider": {}}),
        ({}, {"meter_provider": True}),
        ({}, {"meter_provider": NoOpMeterProvider}),
        ({}, {"spans": "some"}),
        ({}, {"spans": b"off"}),
        ({}, {"long_hold": "1"}),
        ({}, {"long_hold": True}),
        ({}, {"spans": True}),
        ({}, {"spans": ["off"]}),
        ({}, {"slow": "0.1"}),
        ({}, {"histograms": False}),
        ({}, {"histograms": "all"}),
        ({}, {"stack_skip": [["acme"]]}),
        ({}, {"wait_timeout": -1}),
        ({}, {"wait_timeout": False}),
        ({}, {"fork_repair": "1"}),
        ({}, {"fork_repair": 2}),
        ({}, {"caller": "1"}),
        ({}, {"database_state": "everything"}),
    ],
)
def test_bad_values(caplog: pytest.LogCaptureFixture, environ: dict[str, str], options: dict[str, Any]) -> None:
    """One record of level ERROR with the name and the value, and the default of that one alone."""
    assert of(environ, **options) == of()
    (record,) = caplog.records
    assert (record.levelno, record.name, record.exc_info) == (logging.ERROR, "otel_pgpool", None)
    name, value = next(iter({**environ, **options}.items()))
    assert name in record.getMessage()
    assert repr(value).strip("[]") in record.getMessage()


def test_bad_argument_does_not_bring_the_variable_back() -> None:
    """Its default is used, not what the environment says of another kind of program."""
    assert of({"OTEL_PGPOOL_SPANS": "off"}, spans="some").telemetry.spans == "always"
