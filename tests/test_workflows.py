"""The workflow files: valid, with the least rights, and with nothing in them that may change under its name."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github/workflows"
FILES = sorted(FOLDER.glob("*.y*ml"))

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def loaded(file: Path) -> dict[str, Any]:
    """Return a workflow; YAML takes its key `on` for a boolean."""
    return {{True: "on"}.get(key, key): value for key, value in yaml.safe_load(file.read_text()).items()}


def jobs(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = loaded(file)["jobs"]
    return found


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
        if job.get("environment") != "pypi":
            assert job.get("permissions", {}).items() <= {"contents": "read"}.items()
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_release_is_published_by_whom_the_index_trusts() -> None:
    """Without a token, with attestations, after all checks; nothing of the repository runs where the rights are."""
    build, publish = jobs(FOLDER / "release.yaml").values()
    assert loaded(FOLDER / "release.yaml")["on"] == {"push": {"tags": ["v*"]}}
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert commands == ["make lint types test", "make release-check"]
    assert build["steps"][2]["env"] == {"RELEASE_TAG": "${{ github.ref_name }}"}
    assert publish["needs"] == "build"
    assert publish["environment"] == "pypi"
    assert publish["permissions"] == {"id-token": "write", "attestations": "write"}
    assert [step["uses"].partition("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]
    assert publish["steps"][2]["with"] == {"attestations": True}
    assert "secrets." not in (FOLDER / "release.yaml").read_text()


def test_every_python_and_every_release_of_sqlalchemy_is_tried() -> None:
    """The Pythons that the package names, and the releases that `make versions` has."""
    text = (ROOT / "pyproject.toml").read_text()
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    (sqlalchemys,) = re.findall(r"^SQLALCHEMYS +:= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found = jobs(FOLDER / "tests.yaml")
    assert found["test"]["strategy"]["matrix"] == {"python": pythons}
    assert found["sqlalchemy"]["strategy"]["matrix"] == {"python": pythons, "sqlalchemy": sqlalchemys.split()}


@every_file
def test_jobs_call_targets_that_there_are(file: Path) -> None:
    """What runs is `make`, so that whoever contributes can run it too; variables that it sets are the Makefile's."""
    makefile = (ROOT / "Makefile").read_text()
    commands = [step["run"] for job in jobs(file).values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        make, *words = shlex.split(command)
        assert make == "make"
        for word in words:
            name, is_set, _value = word.partition("=")
            assert re.search(rf"^{name} *[?:]?=" if is_set else rf"^{name}:", makefile, re.MULTILINE), word


@every_file
def test_a_job_ends(file: Path) -> None:
    """In minutes, and on a machine whose version is named."""
    for job in jobs(file).values():
        assert 0 < job["timeout-minutes"] <= 60
        assert not job["runs-on"].endswith("-latest")


def test_what_is_pinned_is_renewed() -> None:
    """Actions, and the images of the stack."""
    file = FOLDER.parent / "dependabot.yml"
    checker = Path(sys.executable).with_name("check-jsonschema")
    checked = subprocess.run([checker, "--builtin-schema", "vendor.dependabot", file], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
    kinds = {each["package-ecosystem"] for each in yaml.safe_load(file.read_text())["updates"]}
    assert kinds == {"github-actions", "docker-compose"}


def test_a_linter_of_workflows_finds_nothing() -> None:
    """zizmor, which looks for injections, too many rights and actions that may change."""
    command = [Path(sys.executable).with_name("zizmor"), "--offline", "--no-progress", ROOT / ".github"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@every_file
def test_actions_are_commits(file: Path) -> None:
    """Not tags, which may be moved."""
    used = [step["uses"] for job in jobs(file).values() for step in job["steps"] if "uses" in step]
    assert used
    assert [each for each in used if not re.search(r"@[0-9a-f]{40}$", each)] == []
