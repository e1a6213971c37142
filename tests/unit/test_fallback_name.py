"""The name of a pool's sessions, for a program that sets none: service and pool, printable, of at most 63 bytes."""

from __future__ import annotations

from typing import Any

import pytest

from otel_pgpool.driver.connect_target import ConnectTarget
from otel_pgpool.driver.fallback_name import LONGEST_BYTES, fallback_name, service_name
from otel_pgpool.pool.base import Notifier


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "unknown_service"),
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_SERVICE_NAME": "  "}, "unknown_service"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,service.version=2"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": " a = b , service.name = my%20shop%2C%20two "}, "my shop, two"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=,nonsense,=,service.names=other"}, "unknown_service"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=other", "OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=%ff"}, "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_environments_service(environ: dict[str, str], expected: str) -> None:
    """As the specification of OpenTelemetry's resource reads its two variables."""
    assert service_name(environ) == expected


@pytest.mark.parametrize(
    ("service", "pool", "expected"),
    [
        ("shop", "orders", "shop/orders"),
        ("Lädchen", "größe", "Lädchen/größe"),
        ("a\nb\0c", "d\x7f", r"a\nb\x00c/d\x7f"),
        ("\udcff", "orders", r"\udcff/orders"),
        ("s" * 62, "orders", "s" * 62 + "/"),
        ("s" * 61 + "ä", "orders", "s" * 61 + "ä"),
        ("s" * 62 + "ä", "orders", "s" * 62),
        ("\N{SLICE OF PIZZA}" * 20, "orders", "\N{SLICE OF PIZZA}" * 15),
    ],
)
def test_the_name_is_printable_and_short(service: str, pool: str, expected: str) -> None:
    """It is cut between two characters."""
    assert fallback_name(service, pool) == expected
    assert len(expected.encode()) <= LONGEST_BYTES


@pytest.mark.parametrize("service", [None, "", 7])
def test_without_a_service_the_environment_counts(service: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider may have no name, or one of a wrong type."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    assert fallback_name(service, "orders") == "shop/orders"


@pytest.mark.parametrize(
    ("args", "kwargs", "credentials"),
    [
        (("host=db application_name=mine",), {}, None),
        (("postgresql://db/shop?application_name=mine",), {}, None),
        (("postgresql://db/shop?fallback_application_name=mine",), {}, None),
        ((), {"host": "db", "application_name": "mine"}, None),
        ((), {"host": "db", "fallback_application_name": ""}, None),
        (("host=db",), {}, lambda: {"application_name": "mine"}),
    ],
)
def test_a_programs_name_is_the_only_one(
    args: tuple[Any, ...], kwargs: dict[str, Any], credentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is added to a connect whose program names its sessions, wherever it does."""
    connects: list[dict[str, Any]] = []
    monkeypatch.setattr("psycopg2.connect", lambda *_args, **kwargs: connects.append(kwargs))
    target = ConnectTarget(args, kwargs, credentials)
    target.fallback_name = lambda: "shop/orders"
    target.connect()
    assert "shop/orders" not in connects[0].values()


def test_an_observer_that_raises_costs_the_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's service is used then."""

    class Hostile:
        def service_name(self) -> str:
            raise ZeroDivisionError

    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    observer: Any = Hostile()
    notifier = Notifier(observer)
    notifier.pool_name = "orders"
    assert notifier.session_name() == "shop/orders"
