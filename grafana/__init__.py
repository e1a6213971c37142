"""Grafana's data sources and dashboard: ``make dashboard`` writes the latter."""
