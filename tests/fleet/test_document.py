"""The document of the fleet."""

from __future__ import annotations

from tests.fleet.write import DOCUMENT, document


def test_the_document_is_made_from_the_measured_figures() -> None:
    """It is what ``python -m tests.fleet write`` writes."""
    assert DOCUMENT.read_text() == document()
