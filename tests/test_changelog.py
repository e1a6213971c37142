"""CHANGELOG.md: one form, that of Keep a Changelog, which the check of a release reads."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from otel_pgpool import __version__
from tests.release.versions import NUMBER, UNRELEASED, check_tag, releases

TEXT = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
SECTIONS = [part.split("\n", 1) for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]]
RELEASED = "## [0.2.0] - 2026-12-24\n\n### Added\n\n- A thing.\n"


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def test_it_says_which_form_it_has() -> None:
    """The title, then the two conventions that it follows."""
    assert TEXT.startswith("# Changelog\n\n")
    assert "https://keepachangelog.com/en/1.1.0/" in TEXT.partition("\n## ")[0]
    assert "https://semver.org/spec/v2.0.0.html" in TEXT.partition("\n## ")[0]


def test_what_is_not_released_comes_first() -> None:
    """Then the releases, the newest first, each with its day."""
    headings = re.findall(r"^## .*$", TEXT, re.MULTILINE)
    found = releases(TEXT)
    assert headings == [UNRELEASED, *(f"## [{version}] - {day}" for version, day in found.items())]
    assert list(found) == sorted(found, key=numbers, reverse=True)
    assert [date.fromisoformat(day) for day in found.values()] == sorted(
        map(date.fromisoformat, found.values()), reverse=True
    )


@pytest.mark.parametrize(("heading", "text"), SECTIONS, ids=[heading for heading, _text in SECTIONS])
def test_a_section_has_entries_by_kind(heading: str, text: str) -> None:
    """Each kind once, in the order of the convention, and with nothing but sentences in a list."""
    before, *parts = re.split(r"^### ", text, flags=re.MULTILINE)
    assert before.strip() == ""
    kinds = [part.split("\n", 1)[0] for part in parts]
    assert kinds == [kind for kind in KINDS if kind in kinds]
    assert kinds or heading == "[Unreleased]"
    for part in parts:
        entries = re.split(r"\n(?=- )", part.split("\n", 1)[1].strip())
        assert all(re.fullmatch(r"- [^\n]+(\n  \S[^\n]*)*", entry) for entry in entries)
        assert [entry for entry in entries if not entry.endswith((".", "?*."))] == []


def test_the_version_is_one_that_it_may_release() -> None:
    """The version in the code is the newest release, or one after it."""
    assert NUMBER.fullmatch(__version__)
    assert numbers(__version__) >= numbers(next(iter(releases(TEXT)), "0.0.0"))


def test_a_tag_names_the_version_and_its_section() -> None:
    check_tag("v0.2.0", "0.2.0", RELEASED)


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "named"),
    [
        ("v0.2.1", "0.2.0", RELEASED, "the tag is 'v0.2.1' and the version '0.2.0': v0.2.0 is accepted"),
        ("0.2.0", "0.2.0", RELEASED, "v0.2.0 is accepted"),
        ("v0.3.0", "0.3.0", RELEASED, r"no section '## \[0.3.0\] - YYYY-MM-DD'"),
        ("v0.2.0", "0.2.0", RELEASED.replace("2026-12-24", "Unreleased"), "no section"),
    ],
)
def test_another_tag_is_refused(tag: str, version: str, changelog: str, named: str) -> None:
    """Before anything is built."""
    with pytest.raises(ValueError, match=named):
        check_tag(tag, version, changelog)
