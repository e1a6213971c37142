"""The driver psycopg 3, for the pools that use it."""
