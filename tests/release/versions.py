"""The changelog and a tag against the version of the package."""

from __future__ import annotations

import re

NUMBER = re.compile(r"\d+\.\d+\.\d+")
RELEASE = re.compile(rf"## \[({NUMBER.pattern})\] - (\d{{4}}-\d{{2}}-\d{{2}})")
UNRELEASED = "## [Unreleased]"


def releases(changelog: str) -> dict[str, str]:
    """Return the released versions of a changelog with their days, in its order."""
    return {match[1]: match[2] for line in changelog.splitlines() if (match := RELEASE.fullmatch(line))}


def check_tag(tag: str, version: str, changelog: str) -> None:
    """Refuse a tag that does not name the version, or a version without a dated section of the changelog."""
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag!r} and the version {version!r}: v{version} is accepted")
    if version not in releases(changelog):
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
