"""What contributors meet: CONTRIBUTING.md, the hooks before a commit, the forms of issues."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def checked(schema: str, file: Path) -> str:
    """Return what is wrong with a file; nothing if it follows a schema that check-jsonschema carries."""
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", schema, file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout


def variables(text: str) -> str:
    """Put the Makefile's variables in their places."""
    for name in ("BIN", "ENV", "LOOKED_AT"):
        (value,) = re.findall(rf"^{name} *:= (.*)$", MAKEFILE, re.MULTILINE)
        text = text.replace(f"$({name})", value)
    return text


def test_the_table_has_every_target() -> None:
    """Each that `make help` shows, but for itself."""
    shown = set(re.findall(r"^([a-z-]+):.*?## ", MAKEFILE, re.MULTILINE)) - {"help"}
    table = TEXT.partition("| command | what it does |")[2].partition("\n\n")[0]
    first_cells = " ".join(row.split("|")[1] for row in table.splitlines() if row.count("|") == 3)
    assert set(re.findall(r"`make ([a-z-]+)`", first_cells)) == shown


def test_the_hooks_before_a_commit_are_make_lint() -> None:
    """The same programs with the same arguments, in the same order, on the whole tree."""
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    commands = [re.split(r" >", line.strip().removeprefix("@"))[0] for line in recipe.splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == [variables(variables(line)) for line in commands]
    assert all((hook["language"], hook["pass_filenames"]) == ("system", False) for hook in repository["hooks"])


def test_pre_commit_takes_them() -> None:
    command = [Path(sys.executable).with_name("pre-commit"), "validate-config", ROOT / ".pre-commit-config.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_follows_the_schema(form: Path) -> None:
    assert checked("vendor.github-issue-forms", form) == ""


def test_issues_have_a_form() -> None:
    """One for what is wrong, which sends vulnerabilities elsewhere, and one for what is missing."""
    config = ROOT / ".github/ISSUE_TEMPLATE/config.yml"
    assert checked("vendor.github-issue-config", config) == ""
    assert yaml.safe_load(config.read_text())["blank_issues_enabled"] is False
    assert [form.name for form in FORMS] == ["bug.yml", "proposal.yml"]
    bug: dict[str, Any] = yaml.safe_load(FORMS[0].read_text())
    assert "SECURITY.md" in bug["body"][0]["attributes"]["value"]
    assert (ROOT / "SECURITY.md").is_file()
