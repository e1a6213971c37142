"""The pool beside its peers, on a real PostgreSQL: ``python -m benchmarks`` writes RESULTS.md."""
