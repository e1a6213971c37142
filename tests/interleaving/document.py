"""The document about the orders that were run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.interleaving.explorer import Result

if TYPE_CHECKING:
    from collections.abc import Iterable

Names = tuple[str, ...]
HEAD = Path(__file__).with_name("head.txt")
HOLDER = "a connection is not where it belongs"


@dataclass
class Figures:
    """What the runs have found."""

    python: str
    samples: int
    seed: str
    most_of_triple: int
    most_of_interrupt: int
    tables: dict[str, dict[Names, Result]] = field(default_factory=dict)
    titles: dict[str, tuple[str, str]] = field(default_factory=dict)
    triples: dict[Names, tuple[Result, Result]] = field(default_factory=dict)
    plain: dict[Names, tuple[Result, Result]] = field(default_factory=dict)
    interrupts: dict[Names, tuple[int, Result]] = field(default_factory=dict)
    mutants: dict[str, dict[str, Any]] = field(default_factory=dict)
    unlocked: Result = field(default_factory=Result)
    seconds: float = 0.0

    def failures(self) -> list[Any]:
        """Return every failure of an order that should not fail."""
        results = [result for table in self.tables.values() for result in table.values()]
        results += [result for both in self.triples.values() for result in both]
        results += [plain for plain, _reduced in self.plain.values()]
        results += [result for _positions, result in self.interrupts.values()]
        return [failure for result in results for failure in result.failures]

    def write(self, path: str) -> None:
        """Write the document."""
        parts = [self._head(), *self._mutants(), *self._triples(), *self._interrupts(), *self._plain()]
        for key in self.tables:
            parts += self._pairs(key)
        Path(path).write_text("\n".join(parts) + "\n", encoding="utf-8")

    def _head(self) -> str:
        every = [result for table in self.tables.values() for result in table.values()]
        return HEAD.read_text(encoding="utf-8").format(
            day=f"{datetime.now(timezone.utc):%-d %B %Y}",
            python=self.python,
            seconds=self.seconds,
            orders=sum(each.orders for each in every),
            pairs=len(every),
            steps=sum(each.steps for each in every),
            switches=max(each.most_switches for each in every),
            sampled=sum(sample.orders for sample, _whole in self.triples.values()),
            positions=sum(positions for positions, _result in self.interrupts.values()),
            interrupted=sum(result.orders for _positions, result in self.interrupts.values()),
            failed=len(self.failures()),
            found=sum(bool(each["failures"]) for each in self.mutants.values()),
            mutants=len(self.mutants),
            lost=len(self.unlocked.failures),
            every=self.unlocked.orders,
        )

    def _mutants(self) -> Iterable[str]:
        yield "## Mutants\n\nEach changes the source of the hot path, and its pairs are run in all orders.\n"
        yield "| mutant | orders | of which fail | first failure |\n| --- | ---: | ---: | --- |"
        for name, each in self.mutants.items():
            text = each["text"].partition(": ")[2]
            text = HOLDER if not text or text.isdigit() else text.replace("'", "`")
            yield f"| {name} | {each['orders']:,} | {each['failures']:,} | {text} |"

    def _triples(self) -> Iterable[str]:
        yield (
            f"\n## Three threads\n\nEach is sampled {2 * self.samples} times (seed {self.seed}), with no idle "
            "connection and with one. All orders\nof a pool without an idle connection are run too, up to "
            f"{self.most_of_triple}.\n"
        )
        yield "| operations | sampled | of all orders | all of them | failed |\n| --- | ---: | ---: | --- | ---: |"
        for names, (sample, whole) in self.triples.items():
            failed = len(sample.failures) + len(whole.failures)
            complete = "yes" if whole.is_complete else "no"
            yield f"| {', '.join(names)} | {sample.orders:,} | {whole.orders:,} | {complete} | {failed} |"

    def _interrupts(self) -> Iterable[str]:
        yield (
            "\n## Interrupts\n\nThe first operation is interrupted at each step at which CPython handles signals, in "
            f"all orders with the\nsecond one, up to {self.most_of_interrupt} for each step.\n"
        )
        yield "| operations | steps interrupted | orders | failed |\n| --- | ---: | ---: | ---: |"
        for names, (positions, result) in self.interrupts.items():
            yield f"| {', '.join(names)} | {positions} | {result.orders:,} | {len(result.failures)} |"

    def _plain(self) -> Iterable[str]:
        yield (
            "\n## Without the reduction\n\nEvery order of at most three preemptions, on a pool with one idle "
            "connection at the start.\n"
        )
        yield "| operations | orders | with the reduction | failed |\n| --- | ---: | ---: | ---: |"
        for names, (plain, reduced) in self.plain.items():
            yield f"| {', '.join(names)} | {plain.orders:,} | {reduced.orders:,} | {len(plain.failures)} |"

    def _pairs(self, key: str) -> Iterable[str]:
        title, how = self.titles[key]
        yield f"\n## {title}\n\n{how}\n"
        yield "| operations | orders | steps of one | most switches | seconds | failed |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: |"
        for names, result in self.tables[key].items():
            steps = result.steps // result.orders
            figures = f"{result.orders:,} | {steps} | {result.most_switches} | {result.seconds:.2f}"
            yield f"| {', '.join(names)} | {figures} | {len(result.failures)} |"
