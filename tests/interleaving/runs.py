"""The runs of the command line."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tests.interleaving.explorer import Given, Result, all_orders, order_of, play, sampled_orders, switches_of
from tests.interleaving.mutants import MUTANTS
from tests.interleaving.operations import pairs, scenario
from tests.interleaving.scheduler import EVAL_BREAKER, EVERY_BYTECODE
from tests.interleaving.world import faked

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable


def run(options: argparse.Namespace) -> int:
    """Run what the command line asks for; return 1 if an order has failed."""
    mode = EVAL_BREAKER if options.breakers else EVERY_BYTECODE
    with faked():
        if options.mutant is not None:
            total = explore(MUTANTS[options.mutant].pairs, (0, 1), mode)
            print(json.dumps({"orders": total.orders, "failures": len(total.failures),
                              "text": total.failures[0].text if total.failures else ""}))
            return 0
        if options.replay is not None:
            return replay(options, mode)
        idle = (0, 1) if options.idle is None else (options.idle,)
        chosen = [tuple(options.operations)] if options.operations else pairs()
        total = explore(chosen, idle, mode, interrupt_at=options.interrupt_at, prints=True)
    print(f"{total.orders:,} orders of {total.steps:,} steps, {len(total.failures)} failed")
    return int(bool(total.failures))


def explore(
    chosen: Iterable[tuple[str, ...]], idle: Iterable[int], mode: str, *, interrupt_at: int = -1, prints: bool = False
) -> Result:
    """Run all orders of some pairs."""
    total = Result()
    for names in chosen:
        for each in idle:
            began = time.perf_counter()
            result = all_orders(scenario(names, each, interrupt_at), mode)
            total.add(result)
            if prints:
                seconds = time.perf_counter() - began
                print(f"{' / '.join(names):24} {each} {result.orders:6,} orders {seconds:6.2f} s", flush=True)
                for failure in result.failures[:3]:
                    print(f"    {failure.text}\n    --idle {each} --replay '{failure.switches}'")
    return total


def replay(options: argparse.Namespace, mode: str) -> int:
    """Run one order again, and print where each thread was at each switch."""
    begin = scenario(options.operations, options.idle or 0, options.interrupt_at)
    scheduler, failure, _outcome = play(begin, Given(order_of(options.replay)), mode, describes=True)
    last = -1
    for number, step in enumerate(scheduler.steps):
        if step.thread != last:
            print(f"step {number}: thread {step.thread} ({options.operations[step.thread]}) at {step.where}")
        last = step.thread
    print(switches_of(scheduler.steps))
    print("no failure" if failure is None else f"{type(failure).__name__}: {failure}")
    return int(failure is not None)
