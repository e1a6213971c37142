"""The names of callers: short, the same on every machine, without anything of a URL's parameters."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.runtime.text import LONGEST_NAME
from otel_pgpool.telemetry.caller_names import name_of_code, name_of_span, name_without_path

if TYPE_CHECKING:
    from pathlib import Path

UUID = "550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize(
    "name",
    [
        "GET",
        "GET /orders",
        "GET /orders/{order_id}",
        "GET orders/<int:pk>/",
        "GET /api/v1/orders",
        "POST /v2.1/orders/:id/pay",
        "shop.v1.Orders/Place",
        "/shop.v1.Orders/Place",
        "/grpc.health.v1.Health/Check",
        "/shop.orders.v1beta2.Orders/Place",
        "POST /oauth2/token",
        "run/shop.tasks.sync_s3",
        "topic-3 process",
        "nightly report",
        "OrdersController#show",
        "Zażółć gęślą",
    ],
)
def test_a_route_or_a_job_is_named_as_it_is(name: str) -> None:
    assert name_of_span(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("GET /orders/17?token=s3cret", "GET /orders/{id}"),
        ("GET /orders?name=John Smith&x=1 HTTP", "GET /orders"),
        ("GET /orders#s3cret", "GET /orders"),
        ("GET /orders;jsessionid=s3cret/lines", "GET /{id}/lines"),
        ("GET /orders&token=s3cret", "GET /{id}"),
        ("GET /orders%3Ftoken%3Ds3cret", "GET /{id}"),
        ("GET /users/alice@example.com", "GET /users/{id}"),
        ("GET /users/bob7/orders", "GET /users/{id}/orders"),
        ("GET /users/bob7.v1/orders", "GET /users/{id}/orders"),
        ("GET /users/v1.bob7/orders", "GET /users/{id}/orders"),
        ("GET /keys/v1.1234567/use", "GET /keys/{id}/use"),
        ("GET /keys/oauth27", "GET /keys/{id}"),
        ("GET /a b/17", "GET /a b/{id}"),
        ("/search for 17", "/search for {id}"),
        ("GET orders/a1", "GET orders/{id}"),
        (f"GET /orders/{UUID}/", "GET /orders/{id}/"),
        (f"GET /reset/{'x' * 65}", "GET /reset/{id}"),
        ("GET https://user:s3cret@shop:8443/orders/17?token=s3cret", "GET /orders/{id}"),
        ("GET https://shop?token=s3cret", "GET"),
        (r"GET ^orders/(?P<pk>\d+)/lines/(?P<line>(a|b)+)$", "GET ^orders/{id}/lines/{id}$"),
        ("process order 17", "process order {id}"),
        (f"import {UUID}", "import {id}"),
        ("report 2026-12-01", "report {id}"),
        ("pay token=s3cret", "pay {id}"),
        ("orders\n17", "orders {id}"),
        ("password: s3cret", ""),
        ("?token=s3cret", ""),
        ("", ""),
    ],
)
def test_values_are_replaced(name: str, shown: str) -> None:
    assert name_of_span(name) == shown


@pytest.mark.parametrize("name", ["x" * 100_000, "x " * 50_000, "(?P<a>(" * 20_000, "1_" * 50_000, "GET /" * 20_000])
def test_a_name_is_bounded(name: str) -> None:
    """Whatever its length, it costs no time worth mentioning."""
    assert len(name_of_span(name)) <= LONGEST_NAME


def code_in(file: str) -> str:
    namespace: dict[str, object] = {}
    exec(compile("def load(): pass", file, "exec"), namespace)  # noqa: S102 - a function of another file
    return name_of_code(namespace["load"].__code__)  # type: ignore[attr-defined]


def test_a_file_is_named_from_where_python_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost such folder counts. No line, and nothing of the machine."""
    monkeypatch.setattr(sys, "path", ["", "/srv/app", "/srv/app/parts", "/srv/application", "/"])
    assert code_in("/srv/app/shop/orders.py") == "shop/orders.py:load"
    assert code_in("/srv/app/parts/shop.py") == "shop.py:load"
    assert code_in("/home/alice/shop.py") == "shop.py:load"
    assert code_in("<string>") == "<string>:load"
    assert len(code_in(f"/srv/app/{'x' * 1000}.py")) <= LONGEST_NAME


@pytest.mark.parametrize(
    ("name", "attributes", "shown"),
    [
        ("GET /reset/AbCdEfGh", {"url.path": "/reset/AbCdEfGh"}, "GET"),
        ("GET /users/alice/delete", {"http.url": "http://shop/users/alice/delete?x=1"}, "GET"),
        ("GET /users/alice", {"http.target": "/users/alice?token=s3cret"}, "GET"),
        ("/users/alice", {"url.full": "https://shop/users/alice"}, ""),
        ("GET /orders", {"url.path": "/orders", "http.route": "/orders"}, "GET /orders"),
        ("GET /", {"url.path": "/"}, "GET /"),
        ("nightly report", {}, "nightly report"),
        ("nightly report", None, "nightly report"),
    ],
)
def test_a_path_that_is_no_route(name: str, attributes: dict[str, Any] | None, shown: str) -> None:
    """It may contain a secret in letters only, so nothing of it is shown."""
    assert name_without_path(SimpleNamespace(name=name, attributes=attributes)) == shown


def test_a_working_directory_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a call site does not need it."""
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    os.rmdir(folder)  # noqa: PTH106 - as a shell does
    assert name_of_code(test_a_working_directory_that_was_deleted.__code__).endswith(
        "test_caller_names.py:test_a_working_directory_that_was_deleted"
    )
