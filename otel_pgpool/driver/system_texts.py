"""Texts of the operating system's errors; independent of any driver."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl

from otel_pgpool.driver.messages import known
from otel_pgpool.runtime.text import text_of

NUMBER_OF_ERROR = re.compile(r"\[Errno (\d+)\]")
REASON_OF_SSL = re.compile("[A-Z0-9_]+")


def text_of_system(error: BaseException | None) -> str:
    """Return the system's texts for the numbers of an error, as the error's own text contains addresses.

    The result is empty for an error of another kind.
    """
    if not isinstance(error, OSError):
        return ""
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason or "")
        return reason.replace("_", " ").lower() if REASON_OF_SSL.fullmatch(reason) else ""
    if isinstance(error, socket.gaierror):
        return known(str(error.strerror), ())
    numbers = [error.errno] if error.errno else map(int, NUMBER_OF_ERROR.findall(text_of(error)))  # of several hosts
    return "; ".join(dict.fromkeys(os.strerror(number) for number in numbers if number in errno.errorcode))
