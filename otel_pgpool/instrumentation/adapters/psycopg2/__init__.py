"""The instrumentation of the pools of ``psycopg2.pool`` and of their subclasses."""
