# SPDX-License-Identifier: Apache-2.0
"""How times are taken: calibrated samples, rounds in random order, medians, and nothing but ratios to read.

Holds `Case`, `Row` and the arithmetic. Does not hold what is measured: that is in the modules beside it.

Example:
    >>> from benchmarks.harness import Case, Row, measure, ratio
    >>> times = measure([Case("add", lambda n: [1 + 1 for _ in range(n)])], rounds=3)
    >>> ratio(Row("the same", "add", "add", bar=1.0), times)
    1.0
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SAMPLE = 0.004
"""Seconds that one sample takes at least."""
MAX_COUNT = 1 << 22


@attrs.frozen
class Case:
    """Something whose time is taken.

    Args:
        name: What it is called.
        run: Does it as often as it is told, or once for each thing that `prepare` made.
        prepare: Makes what `run` gets, outside of the measured time; by default the bare count.
        most: Calls in one sample at the most, where each leaves something behind.
    """

    name: str
    run: Callable[[Any], object]
    prepare: Callable[[int], Any] = int
    most: int = MAX_COUNT


@attrs.frozen
class Row:
    """One line of the table: a case against another one of the same run.

    Args:
        name: What is stated.
        case: The case that it is about.
        against: What it is divided by; several are added up.
        bar: What it must not exceed, or None where there is no promise.
    """

    name: str
    case: str
    against: str | tuple[str, ...]
    bar: float | None = None

    @property
    def names_against(self) -> tuple[str, ...]:
        """The cases that are added up below the line."""
        return (self.against,) if isinstance(self.against, str) else self.against


def each(call: Callable[[], object]) -> Callable[[int], None]:
    """Return a function that makes `call` as often as it is told."""

    def run(count: int) -> None:
        for _ in repeat(None, count):
            call()

    return run


def sample(case: Case, count: int, *, timer: Callable[[], float] = time.perf_counter) -> float:
    """Return how many seconds `count` calls take together, after one that is not counted."""
    case.run(case.prepare(1))
    work = case.prepare(count)
    start = timer()
    case.run(work)
    return timer() - start


def calibrate(case: Case, *, at_least: float = SAMPLE, timer: Callable[[], float] = time.perf_counter) -> int:
    """Return how many calls make a sample of `at_least` seconds, `most` of the case at the most."""
    count = 1
    while count < case.most:
        took = sample(case, count, timer=timer)
        if took >= at_least:
            break
        growth = 1.2 * at_least / took if took > 0 else 8.0
        count = min(case.most, max(count + 1, int(count * min(growth, 8.0))))
    return count


def measure(
    cases: Iterable[Case],
    *,
    rounds: int,
    at_least: float = SAMPLE,
    chance: random.Random | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Take the time of every case once in each round, in a new random order, with the collector off.

    Args:
        cases: What to measure.
        rounds: How many rounds.
        at_least: Seconds of one sample.
        chance: Where the order comes from.
        timer: What tells the time.

    Returns:
        Name of the case -> median seconds of one call.
    """
    chance = chance or random.Random()  # noqa: S311 - an order, not a secret
    counted = [(case, calibrate(case, at_least=at_least, timer=timer)) for case in cases]
    taken: dict[str, list[float]] = {case.name: [] for case, _ in counted}
    was_on = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            gc.collect()
            chance.shuffle(counted)
            for case, count in counted:
                taken[case.name].append(sample(case, count, timer=timer) / count)
    finally:
        if was_on:
            gc.enable()
    return {name: statistics.median(times) for name, times in taken.items()}


def ratio(row: Row, times: Mapping[str, float]) -> float:
    """Return a row's figure."""
    return times[row.case] / sum(times[name] for name in row.names_against)
