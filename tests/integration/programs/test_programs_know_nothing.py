"""The programs of this folder are ordinary code."""

from __future__ import annotations

import pytest

from tests.integration.programs.support.programs import PROGRAMS


@pytest.mark.parametrize("program", sorted(str(path.relative_to(PROGRAMS)) for path in PROGRAMS.rglob("*.py")))
def test_a_program_knows_of_no_telemetry(program: str) -> None:
    """A program mentions neither telemetry nor this package."""
    text = (PROGRAMS / program).read_text(encoding="utf-8").lower()
    assert [word for word in ("otel", "telemetry", "span", "metric", "trace") if word in text] == []
