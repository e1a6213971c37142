"""The command ``otel-pgpool plan``: its sums, its findings, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from otel_pgpool.cli import main, plan_figures
from otel_pgpool.cli.plan import EXACT, Load, connections_for, make_plan
from tests.support.documents import table
from tests.support.stack_files import ROOT

GOOD = {"--processes": "2000", "--max-connections": "500", "--arrivals": "500", "--hold": "0.012"}
README = "collector-config/README.md"


def arguments(changed: dict[str, str]) -> list[str]:
    return ["plan", *(word for pair in (GOOD | changed).items() for word in pair)]


def values(load: Load) -> dict[str, float]:
    return {line.name: line.value for line in make_plan(load).lines}


@pytest.mark.parametrize(("busy", "connections"), [(0.0, 1), (0.001, 1), (0.01, 1), (0.011, 2), (1.0, 5), (6.0, 13)])
def test_the_fewest_connections_of_erlang_c(busy: float, connections: int) -> None:
    """Compared with the sum of Erlang's formula, for this number and for one fewer."""

    def waits(count: int) -> float:
        if busy >= count:
            return 1.0
        last = busy**count / math.factorial(count) * count / (count - busy)
        return last / (sum(busy**k / math.factorial(k) for k in range(count)) + last)

    assert connections_for(busy) == connections
    assert waits(connections) <= 0.01
    assert connections == 1 or waits(connections - 1) > 0.01


def test_the_rule_for_many_continues_erlangs() -> None:
    below, above = connections_for(EXACT), connections_for(EXACT + 0.001)
    assert below <= above <= below * 1.01


def test_a_fleet_that_cannot_be_served() -> None:
    """What is missing is said, and what would be needed for it; with that it is served."""
    (finding,) = make_plan(Load(2000, 500, 500.0, 0.012)).findings
    assert "12,000 connections would be in use" in finding
    for needed in ("holds below 0.000397 s", "arrivals below 16.5 a second", "at least 15,005", "give 0.25."):
        assert needed in finding
    assert "grows without end" in make_plan(Load(2000, 15_004, 500.0, 0.012)).findings[0]
    assert "grows without end" not in make_plan(Load(2000, 15_005, 500.0, 0.012)).findings[0]


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_hardly_any_connections(most: int) -> None:
    (finding,) = make_plan(Load(2000, most, 500.0, 1e-12)).findings
    assert "at least 5" in finding


def test_a_fleet_without_pgbouncer() -> None:
    (finding,) = make_plan(Load(10, 100, 1.0, 0.001)).findings
    assert "PgBouncer is not needed" in finding


def test_waits_at_the_server() -> None:
    (finding,) = make_plan(Load(2000, 500, 16.0, 0.012)).findings
    assert "waits for the server are not rare" in finding


def test_a_fleet_that_fits() -> None:
    load = Load(2000, 500, 5.0, 0.012)
    assert make_plan(load).findings == ()
    found = values(load)
    parts = found["PgBouncer: default_pool_size"] + found["PgBouncer: reserve_pool_size"]
    assert parts == found["PgBouncer: max_db_connections"]
    assert found["PgBouncer: processes"] * parts <= found["connections for the pools"] == 397
    assert found["PgBouncer: max_client_conn"] == 2 * 2000 * (found["maxconn of each pool"] + 1)


def test_the_telemetry_of_a_fleet() -> None:
    found = values(Load(2000, 500, 500.0, 0.012))
    assert found["series, classic"] == 2000 * plan_figures.SERIES["classic"]
    assert found["samples a second, native"] == pytest.approx(2000 * plan_figures.SERIES["native"] / 60)
    assert found["gateways of one core"] == 100
    assert found["spans a second"] == pytest.approx(2_100_000)


def test_extremes_are_planned() -> None:
    for load in (Load(1, 1, 5e-324, 5e-324), Load(1_000_000, 262_143, 1e6, 3600.0), Load(1_000_000, 1, 1e6, 3600.0)):
        assert all(math.isfinite(line.value) for line in make_plan(load).lines)


@pytest.mark.parametrize("option", GOOD)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e400", "9" * 30, "", "many"])
def test_bad_input_is_named(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*arguments({}), f"{option}={value}"])
    told = capsys.readouterr().err
    assert f"argument {option}: {value!r} is not a" in told
    assert "up to" in told or "from 1 to" in told


def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """The same for people and for programs."""
    assert main(arguments({})) == 0
    shown = capsys.readouterr().out
    assert main([*arguments({}), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown.startswith("2,000 processes, each with 500 checkouts a second of 0.012 s: 1,000,000 a second in all")
    for line in document["lines"]:
        assert line["name"] in shown
        assert line["formula"] in shown
    assert document["load"]["max_connections"] == 500
    assert document["findings"][0] in shown


def test_the_figures_are_the_documents() -> None:
    """Of the series, those of a pool at work and one for its process; of the Collectors, what their page sums up."""
    _of, classic, native = table("docs/operations.md", "series")[0]
    assert {"classic": int(classic) + 1, "native": int(native) + 1} == plan_figures.SERIES
    memory = {row[0]: row[1:] for row in table("docs/operations.md", "fleet")}["memory after an hour, MB"]
    found = values(Load(2000, 500, 5.0, 0.012))
    assert [found[f"MB of Prometheus, {kind}"] for kind in ("classic", "native")] == [int(each) for each in memory[:2]]
    text = " ".join((ROOT / README).read_text().split())
    assert f"carries about {plan_figures.AGENT_CHECKOUTS:,} checkouts a second for each core" in text
    assert f"one gateway about {plan_figures.GATEWAY_CHECKOUTS:,}" in text
    assert f"of {plan_figures.SPANS_A_CHECKOUT} spans" in text


def test_the_example_of_the_operations_page(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    (command,) = re.findall(r"^otel-pgpool (plan .*)$", text, re.MULTILINE)
    assert main(command.split()) == 0
    shown = capsys.readouterr().out
    for figure in ("12,000 connections would be in use at a time", "the pools may have 397"):
        assert figure in shown
        assert figure in " ".join(text.split())
