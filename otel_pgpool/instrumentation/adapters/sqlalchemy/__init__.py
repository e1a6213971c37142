"""The instrumentation of SQLAlchemy's pools on psycopg2, for SQLAlchemy 1.4 and 2."""
