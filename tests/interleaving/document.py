"""The document about the orders that were run."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.interleaving.explorer import Result

Names = tuple[str, ...]

HEAD = """# Every order of two threads

Written by `make faults` on {day}, with {python}; `.venv/bin/python -m tests.interleaving --all` runs the same in {seconds:.0f} s on 2 cores.

The hot path of the pool takes no lock, and rests on steps that CPython does not interrupt. Stress finds what chance finds. Here a
scheduler runs the operations below in all orders, with the pool's real code and with faked connections, clock, threads and locks.

## Findings

{findings}

## How it works

- **Steps.** Each operation runs in a thread of its own, of which one at a time runs. `sys.settrace` with `f_trace_opcodes` says when a
  bytecode of the package begins. Attributes, lists, sets and dictionaries that threads share are instances of subclasses that note each
  access. A thread may be switched away before each bytecode that touches something shared. A switch before another bytecode has the same
  effect as one at the next of these.
- **Where CPython switches.** CPython 3.10 to 3.13 switch at fewer places: where the eval breaker is read, which is at the start of a
  function, after a call and at a backward jump. So this pool is tested at a superset, which includes every place of these versions. The
  counters of an instrumented pool rest on the eval breaker: `total += 1` has no such place between its read and its write. So its pairs
  are switched at the eval breaker only, and `--switch every` shows what is left without that.
- **All orders, without a bound of preemptions.** Two orders are equivalent if one becomes the other by exchanging neighbouring steps of
  which none writes what the other one touches. Both then end in the same state, so one order of each class is enough. The search is
  dynamic partial-order reduction (Flanagan and Godefroid, 2005) with sleep sets: after each order it looks, for each step, for the last
  step of another thread that conflicts with it and need not come before it, and runs an order in which the two are exchanged. It ends
  when no such order is left, so it includes all orders of three preemptions, and of more.
- **Is the reduction right?** For pairs of few steps, every order of at most three preemptions is run without it too. No such order may
  fail, or end in a state that the reduced search has not seen. A test plants a lost update that both have to find.
- **Locks.** A thread that waits for a lock is not chosen until the lock is free. If no thread can run, the connectors that were started
  run, and then a pass of the maintenance, as they would in a program. A caller that still waits has to have a reason: all connections
  are held. Otherwise the order has failed, as a deadlock or as a forgotten waiter. A limited wait may time out at any moment.
- **After each step** that writes: no more connections are open, and no more places in use, than the pool may have; no connection is idle
  twice, or both idle and held. At each hand-over and release: the connection has one holder and is open. Only here does the reduction
  leave something out: such a state is looked at in one order of each class.
- **At rest**: sets, limits and counters agree; as many checkouts are counted as were served or have failed; nothing that was to be
  replaced, and nothing above the limit, is idle; the maintenance is not parked while a connection is held; a closed pool keeps
  nothing. Then everything is released, and as many connections can be checked out as the pool may have.
- **Left out**: the figures in the message of a `PoolTimeout`, which are read after the checkout has left the queue. `look` reads them.
  psycopg2's own pools run under psycopg2's lock, as one step.

A failure is printed with its order, `0x3 1x5` for three steps of the first thread and five of the second, and is run again by

```text
.venv/bin/python -m tests.interleaving acquire release --idle 1 --replay '0x3 1x5'
```

## Free-threaded builds

Here the every-bytecode orders of this pool hold as far as each access is atomic. CPython 3.14t makes single operations of lists, sets and
dictionaries atomic with locks of their own, and attributes in `__slots__` are read and written atomically. So the hot path rests on:
`list.pop` and `list.append`, `list.copy`, the deletion of `Checkout.held`, and the order of a thread's own steps, which these locks
keep. These steps are not atomic there:

- `{{*self.idle, *self.opening}}` and `for slot in self.idle` under the pool's lock: a release or a checkout without lock may change
  `idle` meanwhile. The result may miss a slot, or have one that has left. That was not run here.
- The counters of an instrumented pool (`idle_checkouts += 1`, `hold_seconds += ...`): two threads may lose one. `--world light --switch
  every` finds {lost:,} orders of {every:,} that fail. This concerns no program today: importing psycopg2 brings the GIL back.

This was reasoned, not measured: no free-threaded build is part of the tests.
"""


def write(
    path: str,
    tables: Mapping[str, Mapping[Names, Result]],
    triples: Mapping[Names, tuple[Result, Result]],
    plain: Mapping[Names, tuple[Result, Result]],
    mutants: Mapping[str, Mapping[str, Any]],
    seconds: float,
    python: str,
    unlocked: Result,
) -> None:
    """Write the document."""
    from tests.interleaving.runs import SAMPLES, SEED, WORLDS  # noqa: PLC0415 - the two modules use each other

    every = [result for table in tables.values() for result in table.values()]
    sampled = sum(sample.orders for sample, _whole in triples.values())
    failed = sum(len(result.failures) for result in every) + sum(len(a.failures + b.failures) for a, b in triples.values())
    found = sum(bool(each["failures"]) for each in mutants.values())
    findings = "\n".join(
        (
            f"- {sum(r.orders for r in every):,} orders of {len(every)} pairs, of {sum(r.steps for r in every):,} steps, with up to",
            f"  {max(r.most_switches for r in every)} switches in one, and {sampled:,} sampled orders of three threads: "
            f"{failed} have failed.",
            f"- {found} of {len(mutants)} mutants were found.",
            "- One defect was found and mended. The maintenance read a slot's checkout twice, and a release in between could",
            "  remove it. No CPython with a GIL switches there; a free-threaded one could have ended a pass with an error.",
        )
    )
    lines = [
        HEAD.format(
            day=f"{date.today():%-d %B %Y}",
            python=python,
            seconds=seconds,
            findings=findings,
            lost=len(unlocked.failures),
            every=unlocked.orders,
        )
    ]
    lines.append("## Mutants\n\nEach changes the source of the hot path, and its pairs are run in all orders.\n")
    lines.append("| mutant | orders | of which fail | first failure |\n| --- | ---: | ---: | --- |")
    for name, each in mutants.items():
        text = each["text"].partition(": ")[2] or "the connection of a holder is not there"
        lines.append(f"| {name} | {each['orders']:,} | {each['failures']:,} | {text if '0x' not in text else text[:40]} |")
    lines.append(
        "\n## Three threads\n\n"
        f"Each is sampled {2 * SAMPLES} times (seed {SEED}), and run in all orders up to the number in the third column.\n\n"
        "| operations | sampled | of all orders | all | failed |\n| --- | ---: | ---: | --- | ---: |"
    )
    for names, (sample, whole) in triples.items():
        bad = len(sample.failures) + len(whole.failures)
        complete = "yes" if whole.is_complete else "no"
        lines.append(f"| {', '.join(names)} | {sample.orders:,} | {whole.orders:,} | {complete} | {bad} |")
    lines.append(
        "\n## Without the reduction\n\nEvery order of at most three preemptions, on a pool with one idle connection.\n\n"
        "| operations | orders | with the reduction | failed |\n| --- | ---: | ---: | ---: |"
    )
    for names, (all_of_them, reduced) in plain.items():
        lines.append(f"| {', '.join(names)} | {all_of_them.orders:,} | {reduced.orders:,} | {len(all_of_them.failures)} |")
    for key, table in tables.items():
        world = WORLDS[key]
        lines.append(
            f"\n## {world.name[0].upper() + world.name[1:]}\n\nAll orders of each pair, with {world.idle[0]} and with "
            f"{world.idle[1]} idle connections at the start, switched at: {world.mode}.\n\n"
            "| operations | orders | steps of one | most switches | seconds | failed |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: |"
        )
        for names, result in table.items():
            lines.append(
                f"| {', '.join(names)} | {result.orders:,} | {result.steps // result.orders} | {result.most_switches} | "
                f"{result.seconds:.2f} | {len(result.failures)} |"
            )
    Path(path).write_text("\n".join(lines) + "\n")
