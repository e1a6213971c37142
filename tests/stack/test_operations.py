"""docs/operations.md against what it speaks of: alerts, panels, and its own arithmetic."""

from __future__ import annotations

import json
import math
import re
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from otel_pgpool.demo.postgres import PostgresServer
from tests.stack.stack import ROOT, load
from tests.support.documents import read, table, text_of
from tests.support.helpers import in_thread, wait_until

OPERATIONS = "docs/operations.md"
TEXT = text_of(OPERATIONS)


def alerts() -> dict[str, dict[str, Any]]:
    groups = load("prometheus/rules.yaml")["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def panels() -> set[str]:
    """Return the titles of the dashboard's panels, including those in collapsed rows."""
    dashboard = json.loads((ROOT / "grafana/dashboards/otel-pgpool.json").read_text())
    found = [*dashboard["panels"]]
    for row in dashboard["panels"]:
        found += row.get("panels") or []
    return {panel["title"] for panel in found if panel["type"] != "row"}


def test_every_alert_has_its_section() -> None:
    """The runbook has a heading for each alert, and for no other; the alert's annotation leads to it."""
    section = TEXT[TEXT.index("\n## Alerts") : TEXT.index("\n## Sizing")]
    assert set(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"].endswith(f"/{Path(OPERATIONS).name}#{name.lower()}")


def test_every_panel_that_it_names_exists() -> None:
    named = set(re.findall(r"\*([A-Z][^*]+)\*", TEXT.replace("\n", " ").replace("**", "")))
    assert named
    assert named <= panels(), named - panels()


@pytest.mark.parametrize("row", table(OPERATIONS, "sizing"), ids=lambda row: row[0])
def test_the_sizing_is_right(row: list[str]) -> None:
    """Little's law holds in each row: the rate is what was asked for by the seconds, L the rate by the hold."""
    _label, *figures = row
    asked, seconds, rate, hold, used = map(float, figures)
    assert math.isclose(rate, asked / seconds, rel_tol=0.01)
    assert math.isclose(used, rate * hold, rel_tol=0.1)


def test_the_statement_names_the_one_who_blocks() -> None:
    """Of a holder and two who queue up behind it, of whom one waits for the other."""
    (statement,) = read(OPERATIONS).statements
    lock = "update product set stock = stock - 1"
    with ExitStack() as opened:
        dsn = opened.enter_context(PostgresServer()).dsn
        holder, first, second, admin = (opened.enter_context(closing(psycopg2.connect(dsn))) for _ in range(4))
        first.autocommit = second.autocommit = admin.autocommit = True
        with admin.cursor() as cur:
            cur.execute("create table product (stock int); insert into product values (9)")
            holder.cursor().execute(lock)
            queue = [in_thread(lambda conn=conn: conn.cursor().execute(lock)) for conn in (first, second)]

            def all_wait() -> bool:
                cur.execute("select count(*) from pg_locks where not granted")
                return bool(cur.fetchone()[0] == len(queue))

            assert wait_until(all_wait)
            cur.execute(statement)
            found = cur.fetchall()
            cur.execute("select pg_terminate_backend(%s)", (found[0][0],))
        assert [row[:2] for row in found] == [(holder.info.backend_pid, "idle in transaction")]
        for each in queue:
            each.result(20)
