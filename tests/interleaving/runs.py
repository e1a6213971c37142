"""The runs of the command line: pairs, triples, mutants, a replay; and the document."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.interleaving import psycopg2_world
from tests.interleaving.document import Figures
from tests.interleaving.explorer import (
    Given,
    Result,
    all_orders,
    bounded_orders,
    order_of,
    play,
    sampled_orders,
    switches_of,
)
from tests.interleaving.mutants import MUTANTS
from tests.interleaving.operations import pairs, scenario
from tests.interleaving.scheduler import EVAL_BREAKER, EVERY_BYTECODE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

SEED = "17"
SAMPLES = 300
TRIPLES = [
    ("acquire", "acquire", "release"),
    ("acquire", "time out", "release"),
    ("acquire", "release", "release"),
    ("acquire", "release", "drain"),
    ("acquire", "release", "close"),
    ("acquire", "release", "shrink"),
    ("use", "use", "release"),
    ("use", "release", "park"),
    ("time out", "release", "deliver"),
    ("hand over", "acquire", "discard"),
    ("reclaim", "acquire", "release"),
]
INTERRUPTED = [
    ("use", "release"),
    ("use", "drain"),
    ("use", "close"),
    ("use", "park"),
    ("use", "deliver"),
    ("release", "acquire"),
    ("release", "drain"),
    ("release", "close"),
    ("release", "park"),
]
SHORT = [("acquire", "release"), ("release", "release"), ("release", "evict"), ("release", "check"), ("evict", "drain")]
"""Pairs of so few steps that every order of up to three preemptions can be run without any reduction."""


@dataclass(frozen=True)
class World:
    """One kind of pool: its pairs, the scenario of each, and where its threads are switched."""

    name: str
    pairs: Callable[[], list[tuple[str, str]]]
    scenario: Callable[..., Any]
    idle: tuple[int, ...]
    mode: str


def _records(names: Sequence[str], idle: int = 0, interrupt_at: int = -1) -> Any:
    return psycopg2_world.scenario(names, idle, interrupt_at, light=False)


WORLDS = {
    "pool": World("This pool", pairs, scenario, (0, 1), EVERY_BYTECODE),
    "light": World(
        'psycopg2\'s pool, `spans="off"`', psycopg2_world.pairs, psycopg2_world.scenario, (1, 2), EVAL_BREAKER
    ),
    "records": World("A pool of psycopg2, with records", psycopg2_world.pairs, _records, (1, 2), EVAL_BREAKER),
}


def run(options: argparse.Namespace) -> int:
    """Run what the command line asks for; return 1 if an order has failed, or a mutant was not found."""
    world = WORLDS[options.world]
    mode = {None: world.mode, "every": EVERY_BYTECODE, "breakers": EVAL_BREAKER}[options.switch]
    with psycopg2_world.faked_psycopg2():
        if options.mutant is not None:
            mutant = MUTANTS[options.mutant]
            world = WORLDS[mutant.world]
            total = explore(world, mutant.pairs, world.idle, world.mode)
            text = total.failures[0].text if total.failures else ""
            print(json.dumps({"orders": total.orders, "failures": len(total.failures), "text": text}))
            return 0
        idle = world.idle if options.idle is None else (options.idle,)
        if options.replay is not None:
            return replay(world, options, mode, idle[0])
        if options.write or options.all:
            return write(options.write)
        chosen = [tuple(options.operations)] if options.operations else world.pairs()
        total = explore(world, chosen, idle, mode, interrupt_at=options.interrupt_at, prints=True)
    print(f"{total.orders:,} orders of {total.steps:,} steps, {len(total.failures)} failed")
    return int(bool(total.failures))


def explore(
    world: World,
    chosen: Iterable[Sequence[str]],
    idle: Iterable[int],
    mode: str,
    *,
    interrupt_at: int = -1,
    prints: bool = False,
    table: dict[tuple[str, ...], Result] | None = None,
) -> Result:
    """Run all orders of some pairs."""
    total = Result()
    for names in chosen:
        for each in idle:
            began = time.perf_counter()
            result = all_orders(world.scenario(names, each, interrupt_at), mode)
            result.seconds = time.perf_counter() - began
            total.add(result)
            if table is not None:
                table.setdefault(tuple(names), Result()).add(result)
            if prints:
                figures = f"{result.orders:6,} orders {result.seconds:6.2f} s"
                print(f"{' / '.join(names):28} {each} idle {figures}", flush=True)
                for failure in result.failures[:3]:
                    print(f"    {failure.text}\n    --idle {each} --replay '{failure.switches}'")
    return total


def replay(world: World, options: argparse.Namespace, mode: str, idle: int) -> int:
    """Run one order again, and print where each thread was at each switch."""
    begin = world.scenario(options.operations, idle, options.interrupt_at)
    scheduler, failure, _outcome = play(begin, Given(order_of(options.replay)), mode, describes=True)
    last = -1
    for number, step in enumerate(scheduler.steps):
        if step.thread != last:
            print(f"step {number}: thread {step.thread} ({options.operations[step.thread]}) at {step.where}")
        last = step.thread
    print(switches_of(scheduler.steps))
    print("no failure" if failure is None else f"{type(failure).__name__}: {failure}")
    return int(failure is not None)


def try_mutant(name: str) -> dict[str, Any]:
    """Run the pairs of a mutant in a process of its own."""
    command = [sys.executable, "-m", "tests.interleaving", "--mutant", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"mutant {name!r}: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(path: str | None) -> int:
    """Run everything, print it, and write the document if there is a path."""
    began = time.perf_counter()
    figures = Figures(f"CPython {platform.python_version()}", SAMPLES, SEED)
    for key, world in WORLDS.items():
        few, more = world.idle
        how = f"All orders of each pair, with {few} and with {more} idle connections, switched at: {world.mode}."
        print(f"# {world.name}\n{how}")
        figures.titles[key] = world.name, how
        explore(world, world.pairs(), world.idle, world.mode, prints=True, table=figures.tables.setdefault(key, {}))
    for names in TRIPLES:
        sample = Result()
        for idle in (0, 1):
            sample.add(sampled_orders(scenario(names, idle), f"{SEED} {names} {idle}", SAMPLES))
        whole = all_orders(scenario(names, 0), limit=2000)
        figures.triples[names] = sample, whole
        print(f"{' / '.join(names):40} {sample.orders} sampled, {whole.orders} of all", flush=True)
    for names in SHORT:
        every, reduced = figures.plain[names] = bounded_orders(scenario(names, 1), 3), all_orders(scenario(names, 1))
        assert every.outcomes <= reduced.outcomes, f"{names}: the reduction has left an outcome out"
        print(f"{' / '.join(names):40} {every.orders} of at most 3 preemptions", flush=True)
    for names in INTERRUPTED:
        positions, result = figures.interrupts[names] = interrupt(names)
        print(f"{' / '.join(names):40} {positions} steps interrupted, {result.orders} orders", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        submitted = {name: executor.submit(try_mutant, name) for name in MUTANTS}
        figures.mutants = {name: each.result() for name, each in submitted.items()}
    for name, found in figures.mutants.items():
        print(f"{found['failures']:5,} of {found['orders']:6,} orders fail: {name}")
    light = WORLDS["light"]
    figures.unlocked = explore(light, [("getconn", "getconn"), ("use", "use")], light.idle, EVERY_BYTECODE)
    figures.seconds = time.perf_counter() - began
    if path is not None:
        figures.write(path)
    survivors = [name for name, found in figures.mutants.items() if not found["failures"]]
    failures = figures.failures()
    print(f"{len(failures)} orders failed; mutants not found: {survivors or 'none'}; {figures.seconds:.0f} s")
    return int(bool(failures or survivors))


def interrupt(names: Sequence[str], limit: int = 300) -> tuple[int, Result]:
    """Interrupt the first operation at each of its steps; return their number, and what was found."""
    total, position = Result(), 0
    while True:
        was_reached = False
        for idle in (0, 1):
            result = all_orders(scenario(names, idle, position), EVAL_BREAKER, limit)
            was_reached |= result.was_interrupted
            total.add(result)
            for failure in result.failures:
                failure.text += f" --idle {idle} --interrupt-at {position} --switch breakers"
        if not was_reached:
            return position, total
        position += 1
