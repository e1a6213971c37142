"""Build sdist and wheel into ``dist/``, check both, install each in an empty environment, and try it there.

``RELEASE_TAG`` is the tag of a release, which has to name the version.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from otel_pgpool import __version__
from tests.release.versions import check_tag
from tests.support.artifacts import ROOT, build, check, empty_environment, install, run

DIST = ROOT / "dist"
SECONDS = "4"  # the whole scenario of the demo


def try_out(artifact: Path) -> None:
    """Install a distribution with all that the demo needs, and run the demo, from a folder that holds nothing else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = empty_environment(folder / "environment")
        install(python, f"{artifact}[demo]")
        imported = run(python, "-c", "import otel_pgpool; print(otel_pgpool.__file__)", cwd=folder)
        assert Path(imported.strip()).is_relative_to(folder), imported
        command = python.with_name("otel-pgpool")
        assert run(command, "--version").split()[-1] == __version__
        report = json.loads(run(command, "demo", "--seconds", SECONDS, "--json", "--out", folder / "out", cwd=folder))
        assert report["checkouts"], "the demo has not checked out a connection"


def main() -> None:
    """Leave ``dist/`` as it may be uploaded, or say what is wrong."""
    if tag := os.environ.get("RELEASE_TAG"):
        try:
            check_tag(tag, __version__, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
        except ValueError as error:
            sys.exit(str(error))
    shutil.rmtree(DIST, ignore_errors=True)
    artifacts = build(DIST)
    check(*artifacts)
    for artifact in artifacts:
        print(f"{artifact.relative_to(ROOT)} is installed in an empty environment and tried", flush=True)
        try_out(artifact)
    print("both can be released")


if __name__ == "__main__":
    main()
