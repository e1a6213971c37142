"""The former name of `otel_pgpool.demo.postgres`; it goes with `otel_pgpool._former`."""

import sys

from otel_pgpool.demo import postgres

sys.modules[__name__] = postgres
