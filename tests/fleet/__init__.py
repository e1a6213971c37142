"""A fleet of worker processes: real ones behind PgBouncer, simulated ones beyond, and the telemetry of them all.

``python -m tests.fleet real`` (or ``simulate``, ``telemetry``) measures a part into ``tests/fleet/measured``; ``write``
writes docs/fleet.md from the measurements.
"""
