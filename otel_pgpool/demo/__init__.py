"""The demo: a small shop's traffic on a pool, with a live view and a recording; and the PostgreSQL that it starts."""
