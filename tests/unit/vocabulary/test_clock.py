# SPDX-License-Identifier: Apache-2.0
"""Time: the smaller of two clocks, and over at the very instant."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.clock import Clock, Deadline, Instant, SystemClock, as_datetime

WALL, BOOT = 1_800_000_000.0, 5_000.0
END = Deadline(WALL, BOOT)
SECONDS = st.integers(-(10**9), 10**9).map(float)
INSTANTS = st.builds(Instant, SECONDS, SECONDS)
DEADLINES = st.builds(Deadline, SECONDS, SECONDS)


@pytest.mark.parametrize("wall", [-1.0, 0.0, 1.0], ids=["wall=exp-1", "wall=exp", "wall=exp+1"])
@pytest.mark.parametrize("boot", [-1.0, 0.0, 1.0], ids=["boot=exp-1", "boot=exp", "boot=exp+1"])
def test_passed_from_the_very_instant_on_either_clock(wall, boot):
    """Live at exp-1 on both clocks, and at no other point of the table."""
    now = Instant(WALL + wall, BOOT + boot)
    assert END.is_passed(now) is (wall >= 0 or boot >= 0)
    assert END.remaining(now) == min(-wall, -boot)


@pytest.mark.parametrize("step", [1e-6, 1e-3])
def test_the_instant_is_exact(step):
    """A microsecond before is live; there is no tolerance in the value."""
    assert not END.is_passed(Instant(WALL - step, BOOT - step))
    assert END.is_passed(Instant(WALL - step, BOOT))
    assert END.is_passed(Instant(WALL, BOOT - step))


@pytest.mark.parametrize(
    ("wall", "boot"),
    [(-1e9, 60.0), (60.0, -1e9), (1e9, 0.0), (0.0, 1e9)],
    ids=["wall set back", "boot set back", "wall set forward", "long suspend"],
)
def test_a_jump_of_one_clock_does_not_lengthen(wall, boot):
    """Sixty seconds are over when either clock says so, wherever the other one jumped."""
    start = Instant(WALL, BOOT)
    assert Deadline.after(start, seconds=60).is_passed(Instant(start.wall + wall, start.boot + boot))


def test_after_counts_on_both_clocks():
    """`after` puts the end as far away on one clock as on the other."""
    assert Deadline.after(Instant(10.0, 3.0), seconds=60) == Deadline(70.0, 63.0)


@pytest.mark.parametrize(("wall", "boot"), [(WALL + 30, BOOT + 30), (WALL, BOOT), (WALL - 30, BOOT - 30)])
def test_at_wall_translates_to_the_boot_clock(wall, boot):
    """A wall-clock end is as far away on the boot-time clock, in the past too."""
    assert Deadline.at_wall(wall, now=Instant(WALL, BOOT)) == Deadline(wall, boot)


def test_at_wall_holds_when_the_wall_clock_is_set_back_later():
    """A token's `exp` is measured on the boot-time clock from when it was read on."""
    end = Deadline.at_wall(WALL + 30, now=Instant(WALL, BOOT))
    assert not end.is_passed(Instant(WALL - 3_600, BOOT + 29))
    assert end.is_passed(Instant(WALL - 3_600, BOOT + 30))


def test_earlier_is_taken_clock_by_clock():
    """Of two deadlines the smaller one counts, on each clock for itself."""
    assert Deadline(10.0, 7.0).earlier(Deadline(9.0, 8.0)) == Deadline(9.0, 7.0)


@given(a=DEADLINES, b=DEADLINES, now=INSTANTS)
@settings(max_examples=200)
def test_earlier_passes_with_the_first_of_both(a, b, now):
    """The earlier of two deadlines is passed exactly when one of them is, whichever is asked."""
    assert a.earlier(b).is_passed(now) is (a.is_passed(now) or b.is_passed(now))
    assert a.earlier(b) == b.earlier(a)


@given(end=DEADLINES, now=INSTANTS)
@settings(max_examples=200)
def test_remaining_agrees_with_passed(end, now):
    """Something remains exactly as long as the deadline is not passed."""
    assert (end.remaining(now) > 0) is not end.is_passed(now)


@pytest.mark.parametrize("end", [Deadline(math.nan, BOOT + 1), Deadline(WALL + 1, math.nan)])
def test_what_is_not_a_number_is_passed(end):
    """A deadline that no number states never keeps anything alive."""
    assert end.is_passed(Instant(WALL, BOOT))
    assert END.is_passed(Instant(math.nan, BOOT - 1))


def test_system_clock_is_a_clock():
    """The system's clock meets the port, tells the time of day, and its boot clock never goes back."""
    clock = SystemClock()
    assert isinstance(clock, Clock)
    before, first, second, after = time.time(), clock.now(), clock.now(), time.time()
    assert before - 60 <= first.wall <= after + 60
    assert first.boot <= second.boot


def test_as_datetime_is_aware():
    """Instants are shown as aware UTC datetimes."""
    assert as_datetime(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert as_datetime(WALL).utcoffset() == timedelta(0)
