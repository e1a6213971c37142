"""A fleet of worker processes behind PgBouncer.

``python -m tests.fleet real`` measures the fleet into ``tests/fleet/measured``; ``write`` writes docs/fleet.md from the
figures.
"""
