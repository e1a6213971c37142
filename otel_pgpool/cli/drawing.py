"""The report for people: figures, and the slowest checkouts as bars on one scale."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Group

from otel_pgpool.cli.foreign import shown
from otel_pgpool.cli.lines import joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType
    from rich.text import Text

    from otel_pgpool.cli.report import Report, SlowCheckout, WaitedFor

INDENT = 4
MAX_WIDTH = 110
MAX_WAITED_FOR = 3
MAX_MARKS = 32
MAX_LISTED = 20
LONGEST_NAME = 80
"""Maximum number of characters of a name that shares its line with others."""
NBSP = "\N{NO-BREAK SPACE}"
SQLSTATE = re.compile("[0-9][0-9A-Z]{4}")


@dataclass(frozen=True)
class Glyphs:
    """The characters of the bars; wait and hold can be distinguished without colour."""

    wait: str
    hold: str
    empty: str
    tick: str
    dot: str
    more: str


UNICODE = Glyphs(wait="░", hold="█", empty="·", tick="╵", dot="·", more="…")
ASCII = Glyphs(wait=".", hold="#", empty="-", tick="^", dot="-", more="...")


def glyphs_for(encoding: str) -> Glyphs:
    """Return `UNICODE` if the output's encoding has these characters, otherwise `ASCII`."""
    try:
        "".join(vars(UNICODE).values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def duration(seconds: float) -> str:
    """Return a duration with two or three digits and a suitable unit: ``0.42 ms``, ``46 ms``, ``1.31 s``."""
    milliseconds = seconds * 1000
    if milliseconds < 0.005:
        return "0 ms" if milliseconds <= 0 else "<0.01 ms"
    if milliseconds < 9.995:
        return f"{milliseconds:.2f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 999.5 else f"{seconds:.2f} s"


def short_place(where: str) -> str:
    """Return a call site, ``file:line function``, without the folders."""
    return where.rpartition("/")[2]


def cut(line: Text, width: int, glyphs: Glyphs) -> Text:
    """Cut a line at the terminal's width, with a sign that something is missing."""
    line.no_wrap, line.overflow = True, "crop"
    if line.cell_len > width:
        line.truncate(width - len(glyphs.more))
        line.append(glyphs.more)
    return line


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


def bar(checkout: SlowCheckout, scale: float, width: int, glyphs: Glyphs = UNICODE) -> Text:
    """Return the bar of a checkout: its wait and its hold to scale."""
    waited, held = cells(checkout, scale, width)
    return joined((glyphs.wait * waited, "yellow"), (glyphs.hold * held, "cyan"))


def mark_rows(checkout: SlowCheckout, scale: float, width: int, glyphs: Glyphs = UNICODE) -> list[str]:
    """Return the rows with the events below a bar, each with a tick at its time and a label where there is space.

    Times are rounded as in the bar, so that the hand-over is marked where the hold begins.
    """
    rows: list[str] = []
    for mark in checkout.marks[:MAX_MARKS]:
        at = min(width - 1, round(mark.at / scale * width)) if scale > 0 else 0
        label = f"{shown(mark.name, LONGEST_NAME)} {duration(mark.at)}"
        if at + 2 + len(label) <= width:
            start, text = at, f"{glyphs.tick} {label}"
        else:
            start, text = max(0, at - len(label) - 1), f"{label} {glyphs.tick}"
        _place(rows, start, text)
    return rows


def _place(rows: list[str], start: int, text: str) -> None:
    """Put a text into the first row that is empty from ``start`` on; append a row if there is none."""
    for index, row in enumerate(rows):
        if not row or len(row) + 1 < start:
            rows[index] = row.ljust(start) + text
            return
    rows.append(" " * start + text)


def draw(report: Report, width: int, glyphs: Glyphs = UNICODE) -> RenderableType:
    """Draw the report without its header and footer."""
    width = max(40, min(width, MAX_WIDTH))
    parts: list[RenderableType] = [*_totals(report, width, glyphs)]
    if report.wait:
        parts += [joined(), *_percentiles(report)]
    if report.slowest:
        parts += [joined(), cut(_legend(report.slowest, glyphs), width, glyphs)]
        scale = report.slowest[0].total
        for number, checkout in enumerate(report.slowest, 1):
            parts += [joined(), *_slow(number, checkout, scale, width, glyphs)]
    return Group(*parts)


def _totals(report: Report, width: int, glyphs: Glyphs) -> Iterable[Text]:
    """Iterate over the lines of the totals: those of the counters, then those that only spans have."""
    outcomes = _listed(report.outcomes, glyphs)
    complete = report.sampled >= report.checkouts
    rows = [
        ("checkouts", report.checkouts, outcomes if complete else ""),
        ("served", sum(report.paths.values()), f"by path: {_listed(report.paths, glyphs)}" if report.paths else ""),
        ("timeouts", report.timeouts, "timed out waiting for a connection"),
        ("retries", report.retries, "dead connections replaced before their callers saw them"),
        ("long holds", report.long_holds, "flagged while the connection was still out"),
        ("connects", report.created, f"discarded: {_listed(report.discarded, glyphs)}" if report.discarded else ""),
    ]
    if not complete:
        rows.append(
            ("sampled", report.sampled, f"left a span, as all below: {outcomes}" if outcomes else "left a span")
        )
    if report.sampled:
        rows.append(("waited", report.waited, "in the queue, for a connection or in vain"))
    if report.errors:
        rows.append(("errors", sum(report.errors.values()), _listed(report.errors, glyphs)))
    room = max(len(f"{value:,}") for _, value, _ in rows)
    for name, value, details in rows:
        for line in _row(f"  {name:<10}  ", f"{value:>{room},}  ", details, width):
            yield cut(line, width, glyphs)


def _row(name: str, figure: str, details: str, width: int) -> Iterable[Text]:
    """Iterate over the lines of one total, whose details may need several."""
    indent = len(name) + len(figure)
    first, *others = textwrap.wrap(details, width - indent, break_long_words=False) or [""]
    row = joined((name, "dim"), figure, (first.replace(NBSP, " "), "dim"))
    row.rstrip()
    yield row
    for line in others:
        yield joined((" " * indent + line.replace(NBSP, " "), "dim"))


def _listed(counts: Mapping[str, int], glyphs: Glyphs) -> str:
    """Return counts as ``idle 1,780 · queued 92``, which can be wrapped after the dots only."""
    items = [f"{_named(name)} {count:,}".replace(" ", NBSP) for name, count in islice(counts.items(), MAX_LISTED)]
    if len(counts) > MAX_LISTED:
        items.append(f"and {len(counts) - MAX_LISTED:,} more".replace(" ", NBSP))
    return f"{NBSP}{glyphs.dot} ".join(items)


def _named(name: str) -> str:
    return f"SQLSTATE {name}" if SQLSTATE.fullmatch(name) else shown(name, LONGEST_NAME).replace("_", " ")


def _percentiles(report: Report) -> Iterable[Text]:
    yield joined((f"{'':7}" + "".join(f"{name:>11}" for name in ("p50", "p99", "max")), "dim"))
    for name, spread in (("wait", report.wait), ("hold", report.hold)):
        if spread:
            figures = "".join(f"{duration(value):>11}" for value in (spread.p50, spread.p99, spread.max))
            yield joined((f"  {name:<5}", "dim"), figures)


def _legend(slowest: Sequence[SlowCheckout], glyphs: Glyphs) -> Text:
    title = "The slowest checkout" if len(slowest) == 1 else f"The {len(slowest)} slowest checkouts"
    return joined(
        (f"  {title}", "bold"), "   ", (glyphs.wait * 2, "yellow"), " wait   ", (glyphs.hold * 2, "cyan"), " hold"
    )


def _slow(number: int, slow: SlowCheckout, scale: float, width: int, glyphs: Glyphs) -> Iterable[Text]:
    room = width - INDENT
    pad = " " * INDENT
    dot = f" {glyphs.dot} "
    head = joined(f"  {number} ", (slow.request, "bold"), dot, slow.thread, dot, _story(slow))
    yield cut(head, width, glyphs)
    yield joined(pad) + bar(slow, scale, room, glyphs)
    for row in mark_rows(slow, scale, room, glyphs):
        yield joined((pad + row, "dim"))
    fields = [
        ("" if index else "waited for", _holder(one)) for index, one in enumerate(slow.waited_for[:MAX_WAITED_FOR])
    ]
    if len(slow.waited_for) > MAX_WAITED_FOR:
        fields.append(("", f"and {len(slow.waited_for) - MAX_WAITED_FOR} more"))
    if slow.checked_out_at:
        state = (slow.transaction or "").replace("_", " ")
        fields.append(("when flagged", f"{state}, checked out at {short_place(slow.checked_out_at)}"))
    fields.append(("trace", slow.trace_id))
    for name, value in fields:
        yield cut(joined(pad, (f"{name:<13}", "dim"), value), width, glyphs)


def _story(slow: SlowCheckout) -> str:
    """Return a checkout's wait, hold and outcome in words."""
    outcome = slow.outcome.replace("_", " ")
    if slow.hold is None:
        return f"waited {duration(slow.wait)}, then {outcome}"
    return f"waited {duration(slow.wait)}, held {duration(slow.hold)}, {outcome}"


def _holder(holder: WaitedFor) -> str:
    """Return a holder in words, with the hold's duration when the wait began and in the end."""
    thread = f" ({holder.thread})" if holder.thread else ""
    who = f"{holder.request}{thread}" if holder.request else holder.thread or f"connection {holder.connection_id}"
    in_all = f" of {duration(holder.held)}" if holder.held is not None else ""
    return f"{who}, holding for {duration(holder.held_then)}{in_all}"
