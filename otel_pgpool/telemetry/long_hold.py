"""The attributes of a long hold, for the event of its span and for its log record."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.text import file_of, function_of, line_of, thread_names
from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.names import DIGITS
from otel_pgpool.telemetry.stacks import stack_of
from otel_pgpool.types import TRANSACTION_STATUSES, TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opentelemetry.util.types import AttributeValue

    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.checkout import Checkout


def transaction_status(conn: Any) -> TransactionStatus:
    """Return the status of a psycopg2 connection's transaction, as libpq reports it."""
    number: int = conn.get_transaction_status()
    return TRANSACTION_STATUSES[number]


def long_hold_attributes(
    checkout: Checkout,
    threshold: float,
    skipped: Collection[str],
    transaction_status: Callable[[Any], TransactionStatus],
) -> dict[str, AttributeValue]:
    """Return the attributes of a hold in progress, such as whether a query runs and the holder's stack."""
    conn = checkout.slot.ref()
    status = TransactionStatus.UNKNOWN
    if conn is not None:
        with suppress(Exception):  # an instrumented pool's connections may be of any kind
            status = transaction_status(conn)
    attributes: dict[str, AttributeValue] = {
        names.ATTR_LONG_HOLD_THRESHOLD: round(
            threshold if checkout.expected_hold is None else checkout.expected_hold, DIGITS
        ),
        names.ATTR_HELD: round(monotonic() - checkout.acquired, DIGITS),
        names.ATTR_CONNECTION_PID: checkout.slot.pid,
        names.ATTR_TRANSACTION_STATUS: status.value,
        names.ATTR_CHECKED_OUT_AT: checkout.path_to,
        **_code_attributes(checkout.stack),
    }
    stack = _stack_of(checkout, skipped)
    if stack:
        attributes[names.ATTR_CODE_STACKTRACE] = stack
    return attributes


def holder_attributes(checkout: Checkout) -> dict[str, AttributeValue]:
    """Return the names of the thread and of the task, if there is one, that have asked for the connection."""
    attributes: dict[str, AttributeValue] = {names.ATTR_THREAD_NAME: thread_names[checkout.thread.name]}
    if checkout.task is not None:
        attributes[names.ATTR_TASK_NAME] = checkout.task.name
    return attributes


def _stack_of(checkout: Checkout, skipped: Collection[str]) -> str:
    if checkout.task is None:
        return stack_of(checkout.thread, skipped)
    from otel_pgpool.telemetry.task_stacks import task_stack_of  # noqa: PLC0415 - asyncio, which few programs need

    return task_stack_of(checkout.task, checkout.thread, skipped)


def _code_attributes(stack: Stack) -> dict[str, AttributeValue]:
    """Return the attributes of the semantic conventions for the innermost call site; empty if there is none."""
    if not stack:
        return {}
    code, instruction = stack[0], stack[1]
    return {
        names.ATTR_CODE_FILE_PATH: file_of(code),
        names.ATTR_CODE_LINE_NUMBER: line_of(code, instruction),
        names.ATTR_CODE_FUNCTION_NAME: function_of(code),
    }
