"""The runs of the command line: pairs, triples, mutants, a replay; and the document."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
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
SAMPLES = 200
LIMIT_OF_TRIPLES, LIMIT_OF_INTERRUPTS = 500, 60
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
SHORT = [("acquire", "release"), ("release", "release")]
"""Pairs of so few steps that every order of up to three preemptions can be run without any reduction."""


@dataclass(frozen=True)
class World:
    """One kind of pool: its pairs, the scenario of each, and where its threads are switched."""

    key: str
    name: str
    pairs: Callable[[], list[tuple[str, str]]]
    scenario: Callable[..., Any]
    idle: tuple[int, ...]
    mode: str


def _records(names: Sequence[str], idle: int = 0, interrupt_at: int = -1) -> Any:
    return psycopg2_world.scenario(names, idle, interrupt_at, light=False)


LIGHT, RECORDS = 'A pool of psycopg2, with `spans="off"`', "A pool of psycopg2, with records"
OTHERS = psycopg2_world.pairs
WORLDS = {
    "pool": World("pool", "This pool", pairs, scenario, (0, 1), EVERY_BYTECODE),
    "light": World("light", LIGHT, OTHERS, psycopg2_world.scenario, (1, 2), EVAL_BREAKER),
    "records": World("records", RECORDS, OTHERS, _records, (1, 2), EVAL_BREAKER),
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
            for failure in result.failures:
                failure.options = f"--idle {each} --world {world.key}"
            total.add(result)
            if table is not None:
                table.setdefault(tuple(names), Result()).add(result)
            if prints:
                figures = f"{result.orders:6,} orders {result.seconds:6.2f} s"
                print(f"{' / '.join(names):28} {each} idle {figures}", flush=True)
                for failure in result.failures[:3]:
                    print(f"    {failure.text}\n    {failure.options} --replay '{failure.switches}'")
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


_fakes: Any = None


def begin_worker() -> None:
    """Put the fakes in place for the whole life of a worker process."""
    global _fakes  # noqa: PLW0603 - a reference, so that the fakes stay
    _fakes = psycopg2_world.faked_psycopg2()
    _fakes.__enter__()


def all_of_pair(key: str, names: tuple[str, str]) -> Result:
    """Run all orders of a pair, for each number of idle connections."""
    world = WORLDS[key]
    return explore(world, [names], world.idle, world.mode)


def triple(names: tuple[str, ...]) -> tuple[Result, Result]:
    """Run a sample of the orders of three operations, and all of them up to a limit."""
    sample = Result()
    for idle in (0, 1):
        sample.add(sampled_orders(scenario(names, idle), f"{SEED} {names} {idle}", SAMPLES))
    return sample, all_orders(scenario(names, 0), limit=LIMIT_OF_TRIPLES)


def unreduced(names: tuple[str, ...]) -> tuple[Result, Result]:
    """Run every order of at most three preemptions, and all with the reduction."""
    plain, reduced = bounded_orders(scenario(names, 1), 3), all_orders(scenario(names, 1))
    assert plain.outcomes <= reduced.outcomes, f"{names}: the reduction has left an outcome out"
    return plain, reduced


def without_lock() -> Result:
    """Run the counters of an instrumented pool with a switch at every bytecode."""
    light = WORLDS["light"]
    return explore(light, [("getconn", "getconn"), ("use", "use")], light.idle, EVERY_BYTECODE)


def write(path: str | None) -> int:
    """Run everything in one process for each core, print it, and write the document if there is a path."""
    began = time.perf_counter()
    figures = Figures(f"CPython {platform.python_version()}", SAMPLES, SEED, LIMIT_OF_TRIPLES, LIMIT_OF_INTERRUPTS)
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawning, begin_worker) as executor:
        submit = executor.submit
        tables = {
            key: {names: submit(all_of_pair, key, names) for names in world.pairs()} for key, world in WORLDS.items()
        }
        triples = {names: submit(triple, names) for names in TRIPLES}
        plain = {names: submit(unreduced, names) for names in SHORT}
        interrupts = {names: submit(interrupt, names) for names in INTERRUPTED}
        mutants = {name: submit(try_mutant, name) for name in MUTANTS}
        unlocked = submit(without_lock)
        for key, world in WORLDS.items():
            few, more = world.idle
            how = f"All orders of each pair, with {few} and with {more} idle connections, switched at: {world.mode}."
            print(f"# {world.name}\n{how}")
            figures.titles[key] = world.name, how
            table = figures.tables[key] = {}
            for names, pair in tables[key].items():
                result = table[names] = pair.result()
                show(names, f"{result.orders:6,} orders {result.seconds:6.2f} s", result)
        for names, each in triples.items():
            sample, whole = figures.triples[names] = each.result()
            show(names, f"{sample.orders:,} sampled, {whole.orders:,} of all", sample, whole)
        for names, each in plain.items():
            every, _reduced = figures.plain[names] = each.result()
            show(names, f"{every.orders:,} of at most 3 preemptions", every)
        for names, interrupted in interrupts.items():
            positions, result = figures.interrupts[names] = interrupted.result()
            show(names, f"{positions} steps interrupted, {result.orders:,} orders", result)
        for name, mutant in mutants.items():
            found = figures.mutants[name] = mutant.result()
            print(f"{found['failures']:5,} of {found['orders']:6,} orders fail: {name}", flush=True)
        figures.unlocked = unlocked.result()
    figures.seconds = time.perf_counter() - began
    if path is not None:
        figures.write(path)
    survivors = [name for name, found in figures.mutants.items() if not found["failures"]]
    failures = figures.failures()
    print(f"{len(failures)} orders failed; mutants not found: {survivors or 'none'}; {figures.seconds:.0f} s")
    return int(bool(failures or survivors))


def show(names: Sequence[str], figures: str, *results: Result) -> None:
    """Print what some operations have led to."""
    print(f"{' / '.join(names):40} {figures}", flush=True)
    for failure in [failure for result in results for failure in result.failures][:3]:
        print(f"    {failure.text}\n    {failure.options} --replay '{failure.switches}'")


def interrupt(names: Sequence[str], limit: int = LIMIT_OF_INTERRUPTS) -> tuple[int, Result]:
    """Interrupt the first operation at each of its steps; return their number, and what was found."""
    total, position = Result(), 0
    while True:
        was_reached = False
        for idle in (0, 1):
            result = all_orders(scenario(names, idle, position), EVAL_BREAKER, limit)
            was_reached |= result.was_interrupted
            total.add(result)
            for failure in result.failures:
                failure.options = f"--idle {idle} --interrupt-at {position} --switch breakers"
        if not was_reached:
            return position, total
        position += 1
