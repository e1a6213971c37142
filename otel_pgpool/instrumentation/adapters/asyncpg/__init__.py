"""The instrumentation of asyncpg's pools."""
