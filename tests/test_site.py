"""docs/ as a site: every page has its place, every record its form, and MkDocs builds it where it is installed."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECORDS = sorted(path for path in (DOCS / "decisions").glob("*.md") if path.name != "index.md")
MKDOCS = [path for path in (Path(sys.executable).with_name("mkdocs"), ROOT / ".venv/docs/bin/mkdocs") if path.is_file()]


def test_every_page_is_in_the_navigation() -> None:
    """The records of decisions are reached by their index, every other page by the navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2].partition("\n\n")[0]
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path not in RECORDS}
    assert set(re.findall(r"- ([\w/-]+\.md)$", navigation, re.MULTILINE)) == pages


def test_the_index_lists_every_record() -> None:
    """With its number, its title and the day of the decision, in order."""
    index = (DOCS / "decisions/index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\d{4})\]\((\1-[\w-]+\.md)\) \| (.+) \| ([\d-]+) \|$", index, re.MULTILINE)
    assert [name for _number, name, _title, _date in listed] == [path.name for path in RECORDS]
    for number, name, title, date in listed:
        record = (DOCS / "decisions" / name).read_text(encoding="utf-8")
        assert record.startswith(f"# {number}: {title}\n\nDate: {date}")


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_context_decision_and_consequences(record: Path) -> None:
    """And the numbers of the records have no gap."""
    headings = re.findall(r"^## (.+)$", record.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences"]
    assert int(record.name[:4]) == RECORDS.index(record) + 1


def test_links_out_of_the_documents_are_text_on_the_site() -> None:
    """The site holds docs/ only: a link to another file of the repository would lead nowhere."""
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="design/telemetry.md"))
    written = "[in](../guide.md#limits), [out](../../SECURITY.md), [away](https://a.b), ![seen](../pictures/a.png)"
    shown = "[in](../guide.md#limits), out, [away](https://a.b), ![seen](../pictures/a.png)"
    assert hooks["on_page_markdown"](written, page=page) == shown


@pytest.mark.skipif(not MKDOCS, reason="MkDocs is not installed here: make docs installs it, for itself")
def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a broken link, a missing anchor or a page without a place is an error. The API is in it."""
    command = [MKDOCS[0], "build", "--strict", "--site-dir", tmp_path / "site"]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
    assert 'id="otel_pgpool.ConnectionPool.connection"' in api
