"""The printed report: figures, and bars of the slowest checkouts on one scale, for people; JSON for programs."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Group

from otel_pgpool._version import __version__
from otel_pgpool.cli.errors import CommandError
from otel_pgpool.cli.recording import Recording
from otel_pgpool.cli.report import read
from otel_pgpool.cli.terminal import DOT, HOLD, MAX_WIDTH, WAIT, duration, escape, make_console, make_line, warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text

    from otel_pgpool.cli.answers import Answer, Blocker
    from otel_pgpool.cli.report import Report, SlowCheckout, WaitedFor
    from otel_pgpool.cli.terminal import Output

INDENT = 4
MAX_WAITED_FOR = 3
MAX_BLOCKERS = 2
MAX_MARKS = 32
MAX_LISTED = 20
MAX_NAME = 80
"""Maximum number of characters of a name that shares its line with others."""
NBSP = "\N{NO-BREAK SPACE}"
SQLSTATE = re.compile("[0-9][0-9A-Z]{4}")


def print_recording(folder: Path, stdout: Output, *, slowest: int, as_json: bool) -> None:
    """Print the report of the recording in ``folder``.

    Raises:
        CommandError: there is no recording in ``folder``.
    """
    recording = Recording(folder)
    try:
        report = read(recording, slowest)
    except OSError as error:
        raise CommandError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise CommandError(f"{folder} does not contain OTLP JSON lines as the demo writes them") from None
    if as_json:
        print_json(stdout, report, {"files": [str(path) for path in recording.files]})
    else:
        print_report(make_console(stdout), report, str(folder))
    stdout.check()
    for path in sorted(recording.cut_short):
        warn(f"warning: {path} is not complete: a line of it is cut short")


def print_json(output: Output, report: Report, facts: Mapping[str, Any]) -> None:
    """Print the report for programs, as one document."""
    text = json.dumps({"version": __version__, **asdict(report), **facts}, indent=2)
    output.write(text.replace("\x7f", "\\u007f") + "\n")  # the only control character that JSON does not escape


def print_report(console: Console, report: Report, *run: str) -> None:
    """Print the report for people; the words of ``run`` identify the run."""
    width = max(40, min(console.width, MAX_WIDTH))
    facts = f" {DOT} ".join((f"{report.seconds:.1f} s", *run))
    console.print()
    console.print(make_line(("  otel-pgpool demo  ", "bold"), facts), soft_wrap=True)
    console.print()
    console.print(Group(*_draw(report, width)), width=width, no_wrap=True, overflow="ellipsis")
    console.print()


def _draw(report: Report, width: int) -> Iterator[Text]:
    """Iterate over the report's lines without the header."""
    yield from _totals(report, width)
    if report.wait:
        yield make_line()
        yield make_line((f"{'':7}" + "".join(f"{name:>11}" for name in ("p50", "p99", "max")), "dim"))
    for name, spread in (("wait", report.wait), ("hold", report.hold)):
        if spread:
            figures = "".join(f"{duration(value):>11}" for value in (spread.p50, spread.p99, spread.max))
            yield make_line((f"  {name:<5}", "dim"), figures)
    if report.slowest:
        count = len(report.slowest)
        title = "The slowest checkout" if count == 1 else f"The {count} slowest checkouts"
        yield make_line()
        yield make_line((f"  {title}", "bold"), "   ", (WAIT * 2, "yellow"), " wait   ", (HOLD * 2, "cyan"), " hold")
    for number, checkout in enumerate(report.slowest, 1):
        yield make_line()
        yield from _checkout_lines(number, checkout, report.slowest[0].total, width)


def _totals(report: Report, width: int) -> Iterator[Text]:
    """Iterate over the lines of the totals."""
    outcomes, paths, discarded = map(_join_counts, (report.outcomes, report.paths, report.discarded))
    rows = [
        ("checkouts", report.checkouts, outcomes),
        ("served", sum(report.paths.values()), paths and f"by path: {paths}"),
        ("waited", report.waited, "in the queue, served or not"),
        ("timeouts", report.timeouts, "timed out waiting for a connection"),
        ("retries", report.retries, "failed attempts: dead connections replaced, connects failed"),
        ("long holds", report.long_holds, "reported while the connection was still held"),
        ("connects", report.created, discarded and f"discarded: {discarded}"),
    ]
    if report.errors:
        rows.append(("errors", sum(report.errors.values()), _join_counts(report.errors)))
    room = max(len(f"{value:,}") for _, value, _ in rows)
    for name, value, details in rows:
        yield from _wrap(make_line((f"  {name:<10}  ", "dim"), f"{value:>{room},}  "), details, width, "dim")


def _wrap(head: Text, text: str, width: int, style: str = "") -> Iterator[Text]:
    """Iterate over the lines of an escaped text that begins after ``head``, of at most ``width`` characters.

    A word that is too long for a line is broken.
    """
    for part in textwrap.wrap(text, width - len(head), break_on_hyphens=False) or [""]:
        line = make_line(head, (part.replace(NBSP, " "), style))
        line.rstrip()
        yield line
        head = make_line(" " * len(head))


def _join_counts(counts: Mapping[str, int]) -> str:
    """Return counts as ``idle 1,780 · queued 92``."""
    items = [f"{_readable(name)} {count:,}" for name, count in islice(counts.items(), MAX_LISTED)]
    if len(counts) > MAX_LISTED:
        items.append(f"and {len(counts) - MAX_LISTED:,} more")
    return _join(items)


def _join(items: Iterable[str]) -> str:
    """Join escaped items to a text that can be wrapped between them only."""
    return f"{NBSP}{DOT} ".join(item.replace(" ", NBSP) for item in items)


def _readable(name: str) -> str:
    return f"SQLSTATE {name}" if SQLSTATE.fullmatch(name) else escape(name, MAX_NAME).replace("_", " ")


def _checkout_lines(number: int, slow: SlowCheckout, scale: float, width: int) -> Iterator[Text]:
    pad = " " * INDENT
    dot = f" {DOT} "
    held = "then" if slow.hold is None else f"held {duration(slow.hold)},"
    outcome = f"waited {duration(slow.wait)}, {held} {slow.outcome.replace('_', ' ')}"
    place = f"  {number} "
    who = make_line(place, (escape(slow.request, width - len(place)), "bold"))
    rest = f"{escape(slow.thread)}{dot}{escape(outcome)}"
    if len(who) + len(dot) + len(rest) <= width:
        yield make_line(who, dot, rest)
    else:
        yield who
        yield from _wrap(make_line(pad), rest, width)
    wait_cells, hold_cells = cells(slow, scale, width - INDENT)
    yield make_line(pad, (WAIT * wait_cells, "yellow"), (HOLD * hold_cells, "cyan"))
    events = _join(f"{escape(mark.name, MAX_NAME)} {duration(mark.at)}" for mark in slow.marks[:MAX_MARKS])
    fields = [("events", events)] if events else []
    fields += [("waited for", _describe_holder(holder)) for holder in slow.waited_for[:MAX_WAITED_FOR]]
    if len(slow.waited_for) > MAX_WAITED_FOR:
        fields.append(("", f"and {len(slow.waited_for) - MAX_WAITED_FOR} more"))
    if slow.checked_out_at:
        state = (slow.transaction or "").replace("_", " ")
        line = slow.checked_out_at.rpartition("/")[2]  # without the folders
        fields.append(("at long hold", f"{state}, checked out at {line}"))
    if slow.database:
        fields += _database_fields(slow.database)
    elif any(mark.name == "long_hold" for mark in slow.marks):
        fields.append(("in database", "no answer before the end of the hold"))
    fields.append(("trace", slow.trace_id))
    for name, value in fields:
        text = value if name == "events" else escape(value)
        yield from _wrap(make_line(pad, (f"{name:<13}", "dim")), text, width)


def _database_fields(answer: Answer) -> Iterator[tuple[str, str]]:
    """Iterate over the fields of what PostgreSQL said last: the session, its blockers, and the head of the chain."""
    waits = ""
    if answer.blocked_by:
        on = f" on {answer.lock_relation}" if answer.lock_relation else ""
        waits = f", waits for {answer.lock_mode or 'a lock'}{on}"
    elif answer.wait_event_type == "Client":
        waits = ", waits for the client"
    elif answer.wait_event_type:
        waits = f", waits for {answer.wait_event_type} {answer.wait_event}"
    yield "in database", f"{answer.state or 'state unknown'}{waits}, after {duration(answer.held)}"
    for blocker in answer.blocked_by[:MAX_BLOCKERS]:
        yield from _blocker_fields("blocked by", blocker)
    if len(answer.blocked_by) > MAX_BLOCKERS:
        yield "", f"and {len(answer.blocked_by) - MAX_BLOCKERS} more"
    if answer.root and answer.root not in answer.blocked_by:
        yield from _blocker_fields("chain's head", answer.root)


def _blocker_fields(name: str, blocker: Blocker) -> Iterator[tuple[str, str]]:
    thread = f" ({blocker.thread})" if blocker.thread else ""
    who = f"{blocker.request}{thread}" if blocker.request else blocker.application and f"{blocker.application!r}"
    pid = f"pid {blocker.pid}" if blocker.pid else "a prepared transaction"
    yield name, ", ".join(filter(None, (who, pid, blocker.state)))
    if blocker.checked_out_at:
        yield "", f"checked out at {blocker.checked_out_at.rpartition('/')[2]}"  # without the folders
    if blocker.trace_id:
        yield "", f"trace {blocker.trace_id}"


def _describe_holder(holder: WaitedFor) -> str:
    """Return a holder in words, with the hold's duration when the wait began and at its end."""
    thread = f" ({holder.thread})" if holder.thread else ""
    who = f"{holder.request}{thread}" if holder.request else holder.thread or f"connection {holder.connection_id}"
    in_all = f" of {duration(holder.held)}" if holder.held is not None else ""
    return f"{who}, holding for {duration(holder.held_then)}{in_all}"


def cells(checkout: SlowCheckout, scale: float, width: int) -> tuple[int, int]:
    """Return the number of cells for the wait and for the hold, in a bar whose ``width`` cells are ``scale`` seconds.

    Both edges are rounded, not both lengths, so that the end of the bar is exact to half a cell. A bar has at least one
    cell.
    """
    if scale <= 0:
        return 0, 1
    edge = round(checkout.wait / scale * width)
    end = max(1, round(checkout.total / scale * width))
    return edge, end - edge
