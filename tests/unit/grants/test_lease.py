# SPDX-License-Identifier: Apache-2.0
"""The life of a grant: the state machine beside a tiny model, and its tables."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jitwi.clock import Deadline, Instant
from jitwi.errors import (
    GrantEndedError,
    GrantExpiredError,
    GrantRevokedError,
    LimitExceededError,
    StateError,
)
from jitwi.grants.lease import EndCause, Lease, LeaseState

WALL, BOOT = 1_800_000_000.0, 5_000.0
START = Instant(WALL, BOOT)
ORDER = list(LeaseState)
ERRORS = {
    EndCause.BLOCK_ENDED: GrantEndedError,
    EndCause.BLOCK_FAILED: GrantEndedError,
    EndCause.CANCELLED: GrantEndedError,
    EndCause.LEAKED: GrantEndedError,
    EndCause.EXPIRED: GrantExpiredError,
    EndCause.IDENTITY_EXPIRED: GrantExpiredError,
    EndCause.MAX_USES: GrantRevokedError,
    EndCause.REVOKED: GrantRevokedError,
    EndCause.IDENTITY_WITHDRAWN: GrantRevokedError,
    EndCause.IDENTITY_REPLACED: GrantRevokedError,
    EndCause.POLICY_CHANGED: GrantRevokedError,
    EndCause.REFUSED_USES: GrantRevokedError,
    EndCause.PARENT_ENDED: GrantRevokedError,
    EndCause.PROCESS_STOPPED: GrantRevokedError,
    EndCause.OPENING_FAILED: GrantRevokedError,
    EndCause.REVOKED_ELSEWHERE: GrantRevokedError,
}


def _lease(*, max_uses=None, limits=(None,), seconds=60, active=True) -> Lease:
    lease = Lease(Deadline.after(START, seconds=seconds), max_uses, tuple(limits))
    if active:
        lease.activate()
    return lease


# ------------------------------------------------------------------------------------------------------------- tables


def test_every_cause_is_in_the_table():
    """No cause is without a precise error."""
    assert set(ERRORS) == set(EndCause)


@pytest.mark.parametrize("cause", EndCause)
def test_each_cause_has_its_error(cause):
    """After an end, a use raises the precise class with the cause as its stable code, ending or ended."""
    lease = _lease()
    assert lease.begin_end(cause)
    for _ in range(2):
        with pytest.raises(ERRORS[cause]) as caught:
            lease.require_live(START)
        error = caught.value
        assert type(error) is ERRORS[cause]
        assert (error.cause, error.reasons) == (cause.value, (cause.value,))
        assert error.message.startswith("the task has ended: ")
        lease.finish_end()


@pytest.mark.parametrize("cause", EndCause)
def test_the_first_cause_stays(cause):
    """Whoever comes later is told so and changes nothing, in each of the later states."""
    lease = _lease()
    assert lease.begin_end(cause) is True
    for later in EndCause:
        assert lease.begin_end(later) is False
    lease.finish_end()
    assert lease.begin_end(EndCause.REVOKED) is False
    assert (lease.cause, lease.state) == (cause, LeaseState.ENDED)


@pytest.mark.parametrize("wall", [-1.0, 0.0, 1.0], ids=["wall=exp-1", "wall=exp", "wall=exp+1"])
@pytest.mark.parametrize("boot", [-1.0, 0.0, 1.0], ids=["boot=exp-1", "boot=exp", "boot=exp+1"])
def test_live_before_the_deadline_only(wall, boot):
    """A lease lives at exp-1 on both clocks and at no other point of the table."""
    lease = _lease(seconds=60)
    now = Instant(WALL + 60 + wall, BOOT + 60 + boot)
    if wall < 0 and boot < 0:
        lease.require_live(now)
        return
    with pytest.raises(GrantExpiredError) as caught:
        lease.require_live(now)
    assert caught.value.cause == EndCause.EXPIRED.value


@pytest.mark.parametrize("field", ["wall", "boot"])
def test_a_deadline_that_is_no_number_is_passed(field):
    """What is not a number keeps nothing alive."""
    lease = _lease()
    lease.deadline = lease.deadline._replace(**{field: math.nan})
    with pytest.raises(GrantExpiredError):
        lease.require_live(START)


def test_a_back_jump_never_revives():
    """Seen as expired once, by a wall clock that was set forward, a lease stays so when the clock is set back."""
    lease = _lease(seconds=60)
    with pytest.raises(GrantExpiredError):
        lease.require_live(Instant(WALL + 3_600, BOOT + 1))
    with pytest.raises(GrantExpiredError):
        lease.require_live(Instant(WALL + 2, BOOT + 2))
    assert lease.begin_end(EndCause.EXPIRED) is True, "whoever cleans up is still the first to end it"


def test_an_end_names_its_own_cause_after_the_deadline():
    """What was revoked before its deadline was revoked, however late one asks."""
    lease = _lease()
    lease.begin_end(EndCause.REVOKED)
    with pytest.raises(GrantRevokedError):
        lease.require_live(Instant(WALL + 1e6, BOOT + 1e6))


def test_not_begun():
    """A pending lease is not live and says so; it can be ended without ever having lived."""
    lease = _lease(active=False)
    with pytest.raises(StateError) as caught:
        lease.require_live(START)
    assert caught.value.reasons == ("not-begun",)
    assert lease.begin_end(EndCause.OPENING_FAILED)
    with pytest.raises(GrantRevokedError):
        lease.require_live(START)


@pytest.mark.parametrize("state", LeaseState)
def test_transitions(state):
    """Only a pending lease begins, only an ending one is finished; a refused transition changes nothing."""
    lease = _lease(active=False)
    if state is not LeaseState.PENDING:
        lease.activate()
    if state in (LeaseState.ENDING, LeaseState.ENDED):
        lease.begin_end(EndCause.REVOKED)
    if state is LeaseState.ENDED:
        lease.finish_end()
    assert lease.state is state
    if state is not LeaseState.PENDING:
        with pytest.raises(StateError):
            lease.activate()
    if state in (LeaseState.PENDING, LeaseState.ACTIVE):
        with pytest.raises(StateError):
            lease.finish_end()
    else:
        lease.finish_end()
        assert lease.state is LeaseState.ENDED
        return
    assert lease.state is state


def test_task_limit():
    """The use after the last one is refused with the reason, and counts nothing."""
    lease = _lease(max_uses=2, limits=(None, 5))
    assert [lease.reserve(0), lease.reserve(1)] == [1, 2]
    assert lease.is_used_up
    for index in (0, 1):
        with pytest.raises(LimitExceededError) as caught:
            lease.reserve(index)
        assert caught.value.reasons == ("max-uses",)
    assert (lease.used, lease.permission_used) == (2, [0, 1])


def test_permission_limit():
    """A used-up permission leaves the others, and counts nothing against the task when it is refused."""
    lease = _lease(max_uses=5, limits=(1, None, 2))
    lease.reserve(0)
    with pytest.raises(LimitExceededError) as caught:
        lease.reserve(0)
    assert caught.value.reasons == ("permission-max-uses",)
    assert [lease.reserve(2), lease.reserve(2), lease.reserve(1)] == [2, 3, 4]
    assert (lease.used, lease.is_used_up) == (4, False)


def test_a_denied_use_is_given_back():
    """What was given back can be used again, by the task and by the permission."""
    lease = _lease(max_uses=1, limits=(1,))
    for _ in range(3):
        assert lease.reserve(0) == 1
        lease.give_back(0)
    assert (lease.used, lease.is_used_up) == (0, False)


@pytest.mark.parametrize("limits", [(None, None), (1, 1), (None, 1)])
def test_nothing_is_given_back_that_was_not_reserved(limits):
    """Giving back too often would be uses for free: it is refused and changes nothing."""
    lease = _lease(max_uses=1, limits=limits)
    with pytest.raises(StateError):
        lease.give_back(0)
    lease.reserve(0)
    if limits[1] is not None:
        with pytest.raises(StateError):
            lease.give_back(1)
    lease.give_back(0)
    with pytest.raises(StateError):
        lease.give_back(0)
    assert (lease.used, sum(lease.permission_used or [])) == (0, 0)


def test_exactly_max_uses_under_threads():
    """Eight threads that share the lock, with every third use denied and given back, get exactly `max_uses`."""
    lease, lock, gate = _lease(max_uses=1_000, limits=(600, None)), threading.Lock(), threading.Barrier(8)
    kept = []

    def work(number) -> None:
        gate.wait(60)
        for turn in range(1_000):
            index = (number + turn) % 2
            try:
                with lock:
                    lease.reserve(index)
            except LimitExceededError:
                continue
            if turn % 3 == 0:
                with lock:
                    lease.give_back(index)
            else:
                kept.append(index)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive()
    assert lease.used == len(kept) <= 1_000
    assert lease.permission_used == [kept.count(0), 0]
    while not lease.is_used_up:
        kept.append(lease.reserve(1))
    assert len(kept) == 1_000


# ------------------------------------------------------------------------------------------------ model-based machine


class LeaseMachine(RuleBasedStateMachine):
    """A lease under every order of uses, ends and clocks, beside a model of counts and flags."""

    def __init__(self) -> None:
        super().__init__()
        self.wall, self.boot = WALL, BOOT
        self.reserved: list[int] = []
        self.begun = self.finished = self.seen_expired = False
        self.cause: EndCause | None = None
        self.rank = 0

    @initialize(
        seconds=st.integers(1, 30),
        max_uses=st.none() | st.integers(1, 4),
        limits=st.lists(st.none() | st.integers(1, 3), min_size=1, max_size=3),
    )
    def declare(self, seconds, max_uses, limits) -> None:
        """Any task."""
        self.end = Deadline.after(START, seconds=seconds)
        self.max_uses, self.limits = max_uses, limits
        self.lease = Lease(self.end, max_uses, tuple(limits))

    @property
    def now(self) -> Instant:
        """This moment."""
        return Instant(self.wall, self.boot)

    @rule()
    def activate(self) -> None:
        """Begin, once."""
        if self.begun or self.cause is not None:
            with pytest.raises(StateError):
                self.lease.activate()
        else:
            self.lease.activate()
            self.begun = True

    @rule(index=st.integers(0, 2))
    def use(self, index) -> None:
        """A use in the order of the real procedure: live, then reserved."""
        index %= len(self.limits)
        if not self._is_live():
            return
        full = self.max_uses is not None and len(self.reserved) >= self.max_uses
        limit = self.limits[index]
        spent = limit is not None and self.reserved.count(index) >= limit
        if full or spent:
            with pytest.raises(LimitExceededError) as caught:
                self.lease.reserve(index)
            assert caught.value.reasons == ("max-uses" if full else "permission-max-uses",)
        else:
            self.reserved.append(index)
            assert self.lease.reserve(index) == len(self.reserved)

    @rule(index=st.integers(0, 2))
    def give_back(self, index) -> None:
        """A deny, which may come after the end as well; or one that never was reserved."""
        index %= len(self.limits)
        if index in self.reserved:
            self.reserved.remove(index)
            self.lease.give_back(index)
        elif not self.reserved or self.limits[index] is not None:
            with pytest.raises(StateError):
                self.lease.give_back(index)

    @rule(cause=st.sampled_from(EndCause))
    def begin_end(self, cause) -> None:
        """Any of the triggers."""
        assert self.lease.begin_end(cause) is (self.cause is None)
        self.cause = self.cause or cause

    @rule()
    def finish_end(self) -> None:
        """All that could be done at once was done."""
        if self.cause is None:
            with pytest.raises(StateError):
                self.lease.finish_end()
        else:
            self.lease.finish_end()
            self.finished = True

    @rule(seconds=st.sampled_from([0.25, 1.0, 5.0]))
    def time_goes_on(self, seconds) -> None:
        """On both clocks."""
        self.wall += seconds
        self.boot += seconds

    @rule(seconds=st.sampled_from([-86_400.0, -10.0, -1.0, 1.0, 10.0, 86_400.0]))
    def wall_clock_is_set(self, seconds) -> None:
        """Somebody sets the wall clock, forward or back."""
        self.wall += seconds

    @rule()
    def wall_clock_is_put_right(self) -> None:
        """The wall clock is set to what the boot-time clock implies."""
        self.wall = WALL + (self.boot - BOOT)

    @precondition(lambda self: self.wall < self.end.wall and self.boot < self.end.boot)
    @rule()
    def the_deadline_comes(self) -> None:
        """To the very instant, on the clock that is nearer."""
        left = min(self.end.wall - self.wall, self.end.boot - self.boot)
        self.wall += left
        self.boot += left

    @rule()
    def check(self) -> None:
        """Ask whether it is live."""
        self._is_live()

    def _is_live(self) -> bool:
        """Ask; the model knows the one right answer."""
        expected: type[Exception] | None = None
        if self.cause is not None:
            expected = ERRORS[self.cause]
        elif not self.begun:
            expected = StateError
        else:
            passed = self.wall >= self.end.wall or self.boot >= self.end.boot
            self.seen_expired = self.seen_expired or passed
            if self.seen_expired:
                expected = GrantExpiredError
        if expected is None:
            self.lease.require_live(self.now)
            return True
        with pytest.raises(expected) as caught:
            self.lease.require_live(self.now)
        assert type(caught.value) is expected
        return False

    @invariant()
    def states_only_go_forward(self) -> None:
        """Pending, active, ending, ended; never back."""
        rank = ORDER.index(self.lease.state)
        assert rank >= self.rank
        self.rank = rank
        if self.finished:
            assert self.lease.state is LeaseState.ENDED
        elif self.cause is not None:
            assert self.lease.state is LeaseState.ENDING
        else:
            assert self.lease.state is (LeaseState.ACTIVE if self.begun else LeaseState.PENDING)

    @invariant()
    def the_first_cause_stays(self) -> None:
        """Whatever came later."""
        assert self.lease.cause is self.cause

    @invariant()
    def counts_are_exact(self) -> None:
        """Never below zero, never above a limit, and what the model counted."""
        assert self.lease.used == len(self.reserved)
        assert self.lease.used >= 0
        if self.max_uses is not None:
            assert self.lease.used <= self.max_uses
        assert self.lease.is_used_up is (self.max_uses is not None and len(self.reserved) == self.max_uses)
        for index, limit in enumerate(self.limits):
            if limit is not None:
                used = (self.lease.permission_used or [0] * len(self.limits))[index]
                assert 0 <= used == self.reserved.count(index) <= limit


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
