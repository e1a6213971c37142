"""Threads, locks, clocks, forks and the garbage collector: what every pool needs and no pool owns."""
