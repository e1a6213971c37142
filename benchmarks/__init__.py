"""Measurements of the pool and of other pools on a real PostgreSQL: ``python -m benchmarks`` writes RESULTS.md."""
