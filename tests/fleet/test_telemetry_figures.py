"""What was measured of the telemetry of a fleet, and that the plan and the page say the same."""

from __future__ import annotations

import json

import pytest

from otel_pgpool.cli import plan_figures
from tests.fleet.telemetry import FILE, PROCESSES
from tests.fleet.telemetry_section import section

MEASURED = json.loads(FILE.read_text())


@pytest.mark.parametrize("kind", plan_figures.SERIES)
def test_the_series_of_the_plan_are_prometheuss(kind: str) -> None:
    found = MEASURED["prometheus"][kind]["measured"]
    assert [each["processes"] for each in found] == list(PROCESSES)
    assert [each["series"] for each in found] == [each * plan_figures.SERIES[kind] for each in PROCESSES]


def test_every_flagged_trace_was_kept() -> None:
    found = MEASURED["sampling"]
    assert found["traces"] == found["flagged"] + found["rest"] == 100_000
    assert found["flagged_kept"] == found["flagged"] > 0
    assert found["rest_kept"] / found["rest"] == pytest.approx(0.05, abs=0.005)


def test_nothing_was_refused() -> None:
    assert {each["refused"] for each in MEASURED["collector"].values()} == {0}


def test_the_section_has_the_figures() -> None:
    text = section()
    assert f"kept {MEASURED['sampling']['flagged_kept']:,} of them" in text
    for at in MEASURED["collector"].values():
        assert f"{at['checkouts']:,.0f}" in text
