"""The releases of libraries that the adapters accept, and those that are installed."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.metadata import PackageNotFoundError

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

DISTRIBUTIONS = {
    "psycopg2.pool": ("psycopg2 >= 2.9", "psycopg2-binary >= 2.9"),
    "psycopg_pool": ("psycopg-pool >= 3.2",),
    "sqlalchemy": ("SQLAlchemy >= 1.4",),
    "asyncpg.pool": ("asyncpg >= 0.29",),
}
"""The requirement for each distribution that contains a module, by module."""

version = cache(metadata.version)  # parses all metadata of a distribution, which takes a millisecond


def met_requirements() -> tuple[str, ...]:
    """Return the requirements that installed distributions meet by OpenTelemetry's rules.

    OpenTelemetry may refuse a pre-release, and instruments nothing at all if one requirement is not met.
    """
    every = [requirement for requirements in DISTRIBUTIONS.values() for requirement in requirements]
    return tuple(requirement for requirement in every if _is_met(requirement, prereleases=None))


def refused_release(module: str) -> str | None:
    """Return the installed release of a library and what is accepted; None if the adapter accepts the release.

    A library whose distribution is not known, or whose version cannot be read, is accepted.
    """
    requirements = DISTRIBUTIONS.get(module, ())
    met = {requirement: _is_met(requirement, prereleases=True) for requirement in requirements}
    refused = [requirement for requirement, is_met in met.items() if is_met is False]
    if not refused or any(met.values()):
        return None
    installed = ", ".join(f"{name} {version(name)}" for name in (Requirement(each).name for each in refused))
    return f"{installed}; accepted: {' or '.join(requirements)}"


def _is_met(requirement: str, *, prereleases: bool | None) -> bool | None:
    """Return whether an installed distribution meets its requirement; None if that is unknown."""
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(Version(version(wanted.name)), prereleases)
    except (PackageNotFoundError, InvalidVersion, TypeError, KeyError):  # not installed, or without a readable version
        return None
