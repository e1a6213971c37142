"""The former name of the target that connects."""

from otel_pgpool.driver.connect_target import ConnectTarget as Target

__all__ = ["Target"]
