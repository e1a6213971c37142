"""The former name of `otel_pgpool.pool.health`."""

import sys

from otel_pgpool.pool import health

sys.modules[__name__] = health
