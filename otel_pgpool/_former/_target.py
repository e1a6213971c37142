"""The former name of `otel_pgpool.driver.dsn`."""

import sys

from otel_pgpool.driver import dsn

sys.modules[__name__] = dsn
