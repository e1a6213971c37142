"""The workflow files: valid, with the least rights, and with nothing in them that may change under its name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github/workflows").glob("*.y*ml"))

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def jobs(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())["jobs"]
    return loaded


def test_what_is_installed_is_audited_by_itself_too() -> None:
    """Once a week: what was safe at the last change may be known not to be since."""
    (audit,) = [file for file in FILES if "make audit" in file.read_text()]
    assert "schedule:" in audit.read_text()
    assert [list(jobs(audit)), [step.get("run") for step in jobs(audit)["audit"]["steps"]][-1]] == [
        ["audit"],
        "make audit",
    ]


@every_file
def test_it_follows_the_schema(file: Path) -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.github-workflows", file]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@every_file
def test_a_job_may_read_and_no_more(file: Path) -> None:
    """The file gives no rights; a job that has some has these, and leaves no token behind in the checkout."""
    assert yaml.safe_load(file.read_text())["permissions"] == {}
    for job in jobs(file).values():
        assert job.get("permissions", {}).items() <= {"contents": "read"}.items()
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@every_file
def test_actions_are_commits(file: Path) -> None:
    """Not tags, which may be moved."""
    used = [step["uses"] for job in jobs(file).values() for step in job["steps"] if "uses" in step]
    assert used
    assert [each for each in used if not re.search(r"@[0-9a-f]{40}$", each)] == []
