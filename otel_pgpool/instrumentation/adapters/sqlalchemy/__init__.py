"""The instrumentation of SQLAlchemy's pools on drivers of PostgreSQL, for SQLAlchemy 1.4 and 2."""
