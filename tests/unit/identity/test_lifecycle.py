# SPDX-License-Identifier: Apache-2.0
"""The state machine alone: rule 9 of the design, each word, with a plain model beside it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.clock import Instant
from jitwi.errors import (
    AmbiguousIdentityError,
    IdentityExpiredError,
    IdentityReplacedError,
    IdentityUnavailableError,
    IdentityWithdrawnError,
)
from jitwi.identity import Identity, IdentityEventKind, SourceState, SvidKind
from jitwi.identity.lifecycle import Lifecycle
from jitwi.spiffe_id import SpiffeId

ID = SpiffeId.parse("spiffe://example.org/a")
START = Instant(1_800_000_000.0, 1000.0)
K = IdentityEventKind


def identity(version: int = 1, *, start: float = START.wall, life: float = 1000.0) -> Identity:
    """Make a snapshot."""
    return Identity(ID, SvidKind.X509, version, start, start + life, (), f"{version:064x}")


def later(seconds: float) -> Instant:
    """Return the instant so many seconds after the start, on both clocks."""
    return Instant(START.wall + seconds, START.boot + seconds)


@pytest.fixture
def life() -> Lifecycle:
    """A machine with a good identity, a staleness limit of 60 s."""
    made = Lifecycle(max_staleness=60.0)
    assert [event.kind for event in made.adopt(identity(), START)] == [K.READY]
    return made


def kinds(events: list) -> list[IdentityEventKind]:
    """Names of events."""
    return [event.kind for event in events]


def test_first_wait_has_a_reason() -> None:
    """Before any good update a denial or loss is only a reason to wait."""
    made = Lifecycle(max_staleness=60.0)
    assert made.end(SourceState.WITHDRAWN, START, reason="no identity issued", grpc_code="PERMISSION_DENIED") == []
    assert made.lose("stream", START, reason="gone", grpc_code="UNAVAILABLE") == []
    assert made.state(START) is SourceState.STARTING
    assert made.outcome(START) is None
    assert made.unavailable().grpc_code == "UNAVAILABLE"


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_fatal_code_is_reported_at_once(code: str) -> None:
    """WE-5: these are reported, not waited out."""
    made = Lifecycle(max_staleness=60.0)
    made.lose("stream", START, reason="no such method", grpc_code=code)
    outcome = made.outcome(START)
    assert isinstance(outcome, IdentityUnavailableError)
    assert outcome.grpc_code == code


@pytest.mark.parametrize(
    ("state", "error"),
    [(SourceState.WITHDRAWN, IdentityWithdrawnError), (SourceState.REPLACED, IdentityReplacedError)],
)
def test_end_is_at_once(life: Lifecycle, state: SourceState, error: type[Exception]) -> None:
    """Withdrawn and replaced end at once, are told once, and come back only with a good update."""
    assert kinds(life.end(state, later(1), reason="r")) == [K(state.value)]
    assert life.end(state, later(2), reason="r") == []
    assert life.live() is None
    assert isinstance(life.outcome(later(2)), error)
    assert kinds(life.adopt(identity(2), later(3))) == [K.READY]


def test_expiry_to_the_second(life: Lifecycle) -> None:
    """At `not_after` the identity is over, not a second later; told once."""
    assert K.EXPIRED not in kinds(life.tick(later(999.9)))
    live = life.live()
    assert live is not None
    assert live.wall <= START.wall + 1000
    assert life.state(later(1000)) is SourceState.EXPIRED
    assert isinstance(life.outcome(later(1000)), IdentityExpiredError)
    assert kinds(life.tick(later(1000))) == [K.EXPIRED]
    assert life.tick(later(1001)) == []


def test_wall_clock_back_does_not_revive(life: Lifecycle) -> None:
    """The earlier of wall and boot-time clock counts."""
    assert life.state(Instant(START.wall - 500, START.boot + 1000)) is SourceState.EXPIRED
    assert life.state(Instant(START.wall + 1000, START.boot + 1)) is SourceState.EXPIRED


def test_stale_then_refused_then_fresh(life: Lifecycle) -> None:
    """Stale is told at once, refuses only after the limit, and is over with the next good update."""
    assert kinds(life.lose("stream", later(10), reason="gone", grpc_code="UNAVAILABLE")) == [K.STALE]
    assert life.lose("stream", later(11), reason="gone", grpc_code="UNAVAILABLE") == []
    assert life.outcome(later(69)) is life.current
    refused = life.outcome(later(70))
    assert isinstance(refused, IdentityUnavailableError)
    assert refused.grpc_code == "UNAVAILABLE"
    assert life.live() is not None
    assert life.live().boot == START.boot + 70
    assert kinds(life.adopt(identity(), later(80))) == [K.FRESH]
    assert life.outcome(later(81)) is life.current


def test_overdue_rotation_is_stale(life: Lifecycle) -> None:
    """Three quarters of a life without a successor is stale, and refuses after the limit."""
    assert life.tick(later(749)) == []
    assert kinds(life.tick(later(750))) == [K.STALE]
    assert life.outcome(later(809)) is life.current
    assert isinstance(life.outcome(later(810)), IdentityUnavailableError)
    assert life.touch("probe", later(811)) == []
    rotated = life.adopt(identity(2, start=later(811).wall), later(811))
    assert kinds(rotated) == [K.ROTATED, K.FRESH]


def test_silence_counts_from_the_last_answer(life: Lifecycle) -> None:
    """A probe without answer is stale since the agent last spoke."""
    life.touch("probe", later(5))
    assert kinds(life.lose("probe", later(30), reason="silent", grpc_code="DEADLINE_EXCEEDED")) == [K.STALE]
    assert life.stale_for(later(30)) == 25
    assert kinds(life.touch("probe", later(31))) == [K.FRESH]


def test_two_causes_of_staleness(life: Lifecycle) -> None:
    """Fresh again only when both are over."""
    life.lose("stream", later(1), reason="gone", grpc_code="UNAVAILABLE")
    life.lose("probe", later(2), reason="silent", grpc_code="DEADLINE_EXCEEDED")
    assert life.touch("probe", later(3)) == []
    assert kinds(life.touch("stream", later(4))) == [K.FRESH]


def test_refused_update_keeps_the_last_good(life: Lifecycle) -> None:
    """A bad update is told and changes nothing else."""
    assert kinds(life.refuse("bad", later(1))) == [K.REFUSED_UPDATE]
    assert life.outcome(later(1)) is life.current


def test_ambiguous_lists_candidates() -> None:
    """Several and no choice is an error that lists them; a denial afterwards is a wait."""
    made = Lifecycle(max_staleness=60.0)
    made.choose_first((("spiffe://example.org/a", ""), ("spiffe://example.org/b", "x")), START)
    outcome = made.outcome(START)
    assert isinstance(outcome, AmbiguousIdentityError)
    assert outcome.candidates == (("spiffe://example.org/a", ""), ("spiffe://example.org/b", "x"))
    made.end(SourceState.WITHDRAWN, START, reason="r")
    assert made.state(START) is SourceState.STARTING


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["adopt", "same", "withdraw", "replace", "lose", "silent", "answer", "refuse", "tick"]),
        st.floats(0.0, 300.0),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_model(steps: list[tuple[str, float]]) -> None:
    """Whatever happens: nothing ended is given out, `live` agrees with `outcome`, events alternate."""
    made, now, version, good = Lifecycle(max_staleness=60.0), START, 0, None
    told: list[IdentityEventKind] = []
    for step, seconds in steps:
        now = Instant(now.wall + seconds, now.boot + seconds)
        if step == "adopt" or (step == "same" and made.current is None):
            version += 1
            good = identity(version, start=now.wall, life=400.0)
            told += kinds(made.adopt(good, now))
        elif step == "same":
            told += kinds(made.tick(now))
            if made.current is not None:
                told += kinds(made.adopt(made.current, now))
        elif step in ("withdraw", "replace"):
            good = None
            state = SourceState.WITHDRAWN if step == "withdraw" else SourceState.REPLACED
            told += kinds(made.end(state, now, reason="r"))
        elif step in ("lose", "silent"):
            cause = "stream" if step == "lose" else "probe"
            told += kinds(made.lose(cause, now, reason="r", grpc_code="UNAVAILABLE"))
        elif step == "answer":
            told += kinds(made.touch("probe", now))
        elif step == "refuse":
            told += kinds(made.refuse("r", now))
        else:
            told += kinds(made.tick(now))
        outcome, live = made.outcome(now), made.live()
        given_out = live.identity if live and now.wall < live.wall and now.boot < live.boot else None
        assert given_out is (outcome if isinstance(outcome, Identity) else None)
        if given_out is not None:
            assert given_out is good
            assert now.wall < given_out.not_after
    marks = [kind for kind in told if kind is not K.REFUSED_UPDATE]
    is_there, is_stale = False, False
    for kind in marks:
        assert (kind is K.READY) == (not is_there)
        if kind in (K.STALE, K.FRESH):
            assert (kind is K.STALE) == (not is_stale)
            is_stale = kind is K.STALE
        is_there = kind not in (K.WITHDRAWN, K.REPLACED, K.EXPIRED)
        is_stale = is_stale and is_there
