"""The distributions of the package: built, looked into, and installed in empty environments."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_PACKED = (".ci/",)
"""What the repository has and the sdist has not."""
GENERATED = {"PKG-INFO"}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what a command prints; it has to succeed. Its Python finds no modules but those of its environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel, as a package index's users would."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def packed(sdist: Path) -> set[str]:
    """Return the files of an sdist."""
    with tarfile.open(sdist) as archive:
        return {member.name.split("/", 1)[1] for member in archive if not member.isdir()}


def of_the_repository(*options: str) -> set[str]:
    """Return the files that belong into an sdist, as git lists them; none where there is no repository."""
    if not (ROOT / ".git").exists():
        return set()
    names = run("git", "ls-files", "-z", *options, cwd=ROOT).split("\0")
    return {name for name in names if (ROOT / name).is_file() and not name.startswith(NOT_PACKED)}


def check(sdist: Path, wheel: Path, *options: str) -> None:
    """Look for what a package index or its users would stumble over.

    The sdist has what the repository has, nothing more and nothing less; options of ``git ls-files`` may add files that
    are not committed. The metadata are complete, and the README can be shown. The wheel has each file of the package,
    and no other.
    """
    expected = of_the_repository(*options)
    if expected:
        found = packed(sdist) - GENERATED
        assert found == expected, f"stray: {sorted(found - expected)}, missing: {sorted(expected - found)}"
    run(tool("twine"), "check", "--strict", sdist, wheel)
    run(tool("check-wheel-contents"), "--package", ROOT / "otel_pgpool", "--toplevel", "otel_pgpool", wheel)


def tool(name: str) -> Path:
    """Return a program of this environment."""
    return Path(sys.executable).with_name(name)


def empty_environment(folder: Path) -> Path:
    """Make an environment without any package; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin/python"


def install(python: Path, *packages: str | Path) -> None:
    """Install packages in another environment."""
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *packages)
