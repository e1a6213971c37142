"""What can be seen of the machine's processes."""

from __future__ import annotations

import subprocess


def arguments_of_all() -> str:
    """Return every process's arguments, which any user of the machine may read."""
    return subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
