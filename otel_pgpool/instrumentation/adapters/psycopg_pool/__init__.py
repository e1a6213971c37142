"""The instrumentation of the pools of ``psycopg_pool``, with and without asyncio, and of their subclasses."""
