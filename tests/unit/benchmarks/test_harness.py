# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the benchmarks, by a clock that only moves when it is told to; nothing here is timed."""

from __future__ import annotations

import gc
import random

import pytest

from benchmarks.harness import Case, Row, calibrate, each, measure, ratio, sample
from benchmarks.world import policies, schema


class Ticker:
    """A timer that cases move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Read it."""
        return self.now

    def case(self, name, cost, **more):
        """Return a case whose every call takes `cost` seconds."""

        def run(count):
            self.now += cost * count

        return Case(name, run, **more)


@pytest.fixture
def ticker():
    """A timer at zero."""
    return Ticker()


def test_each_calls_as_often_as_told():
    """`each` makes a call as often as it is told, and not once more."""
    calls = []
    each(lambda: calls.append(1))(7)
    assert len(calls) == 7


def test_a_sample_does_not_count_its_preparation(ticker):
    """What `prepare` takes, and the one call that warms up, are not in the sample."""

    def prepare(count):
        ticker.now += 100.0
        return [0.25] * count

    def run(costs):
        ticker.now += sum(costs)

    assert sample(Case("x", run, prepare=prepare), 4, timer=ticker) == pytest.approx(1.0)


@pytest.mark.parametrize("cost", [1e-8, 1e-6, 1e-4, 3e-3, 1.0])
def test_a_calibrated_sample_is_long_enough(ticker, cost):
    """However fast a call is, a sample takes at least the asked time, and not many times as long."""
    count = calibrate(ticker.case("x", cost), at_least=0.004, timer=ticker)
    assert cost * count >= 0.004
    assert count == 1 or cost * count <= 0.04


def test_a_case_may_bound_its_sample(ticker):
    """A case that leaves something behind is never called more often than it says."""
    assert calibrate(ticker.case("x", 1e-9, most=50), timer=ticker) == 50


def test_a_timer_that_stands_still_ends_the_calibration(ticker):
    """A call that takes no time at all is bounded by `most`."""
    assert calibrate(ticker.case("x", 0.0, most=1000), timer=ticker) == 1000


def test_measure_returns_seconds_of_one_call(ticker):
    """Whatever the number of calls in a sample, the result is that of one."""
    times = measure([ticker.case("a", 1e-3), ticker.case("b", 5e-5)], rounds=5, timer=ticker)
    assert times == pytest.approx({"a": 1e-3, "b": 5e-5})


def test_measure_takes_the_median(ticker):
    """One disturbed round does not move the figure."""
    calls = []

    def run(count):
        calls.append(count)
        ticker.now += count * (50.0 if len(calls) == 6 else 1.0)

    assert measure([Case("x", run)], rounds=5, timer=ticker)["x"] == pytest.approx(1.0)


def test_every_round_runs_every_case_in_a_new_order(ticker):
    """Each case is in each round once, and the order is not always the same."""
    order = []

    def named(name):
        def run(count):
            order.append(name)
            ticker.now += 1.0

        return Case(name, run)

    measure([named(name) for name in "abc"], rounds=20, chance=random.Random(7), timer=ticker)
    samples = order[-20 * 6 :][::2]  # each sample is a call to warm up and the sample itself; both by the same name
    rounds = [tuple(samples[i : i + 3]) for i in range(0, len(samples), 3)]
    assert all(sorted(each_round) == ["a", "b", "c"] for each_round in rounds)
    assert len(set(rounds)) > 1


def test_the_collector_is_off_in_a_round_and_as_before_afterwards(ticker):
    """No collection falls into a sample; the caller's setting comes back."""
    seen = []

    def run(count):
        seen.append(gc.isenabled())
        ticker.now += 1.0

    assert gc.isenabled()
    measure([Case("x", run)], rounds=3, timer=ticker)
    assert seen[-6:] == [False] * 6
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(ticker):
    """A caller that runs without the collector goes on so."""
    gc.disable()
    try:
        measure([ticker.case("x", 1.0)], rounds=2, timer=ticker)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_ratio_is_of_one_run():
    """One case against another, or against a sum."""
    times = {"a": 6.0, "b": 2.0, "c": 1.0}
    assert ratio(Row("x", "a", "b"), times) == 3.0
    assert ratio(Row("x", "a", ("b", "c")), times) == 2.0


def test_the_world_is_as_large_as_it_says():
    """Fifty actions, as many policies as asked for, each for another workload."""
    text = schema()
    assert text.count("  action ") == 50
    made = policies(10)
    assert made.count("permit (") == 10
    assert len(set(made.splitlines())) == 10
