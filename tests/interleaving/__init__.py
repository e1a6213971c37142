"""Every order of two threads' steps: a deterministic scheduler, the pool's operations, and mutants of the hot path."""
