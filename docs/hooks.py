"""What `make docs` changes in the pages."""

from __future__ import annotations

import posixpath
import re
from typing import Protocol

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


class File(Protocol):
    """The part of MkDocs' file that is used here."""

    src_uri: str


class Page(Protocol):
    """The part of MkDocs' page that is used here."""

    file: File


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Show links to the repository's other files as text: the site holds docs/ only."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] if target.startswith("..") else link[0]

    return LINK.sub(shown, markdown)
