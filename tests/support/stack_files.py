"""The files of the stack, as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")
"""One with a default, or one that has to be given."""


def load(path: str) -> Any:
    """Load a YAML file of the repository."""
    return yaml.safe_load((ROOT / path).read_text())


def defaults(path: str = ".env.example") -> dict[str, str]:
    """Return the variables of an env file."""
    lines = (ROOT / path).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def fill_in(text: str, variables: dict[str, str]) -> str:
    """Put variables in their places, and defaults where there are none."""
    return VARIABLE.sub(lambda match: variables.get(match[1]) or match[2] or "", text)


def compose() -> dict[str, Any]:
    """Return the services of docker-compose.yml, by name, with every variable at its default."""
    services: dict[str, Any] = yaml.safe_load(fill_in((ROOT / "docker-compose.yml").read_text(), {}))["services"]
    return services
