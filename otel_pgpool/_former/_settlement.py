"""The former name of `otel_pgpool.driver.error_text`."""

import sys

from otel_pgpool.driver import error_text

sys.modules[__name__] = error_text
