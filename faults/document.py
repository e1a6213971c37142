"""What docs/reliability.md looks like."""

WIDTH = 118
"""Characters of a line, at most."""
