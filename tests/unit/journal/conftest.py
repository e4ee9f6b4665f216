# SPDX-License-Identifier: Apache-2.0
"""Journals in a temporary folder, a settable clock, records, and scripted backends."""

from __future__ import annotations

import threading

import attrs
import pytest

from jitwi.clock import Instant
from jitwi.errors import IssuanceError
from jitwi.journal import BackendEnding, LeaseRecord, Owner, SqliteJournal, new_lease_id, this_owner

START = 1_800_000_000.0


class HandClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.wall = START

    def now(self) -> Instant:
        """What it was told."""
        return Instant(self.wall, self.wall - START)


class ScriptedBackend:
    """Credentials in memory; says what `faults` tells it to."""

    claim_seconds = 5.0

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.calls: list[str] = []
        self.gone: list[bool] = []
        self.fault: str = ""
        self.poison: set[str] = set()
        self.entered = threading.Event()
        self.release = threading.Event()

    def end(self, record, *, owner_is_gone):
        """End one, or do what the fault says."""
        self.calls.append(record.lease_id)
        self.gone.append(owner_is_gone)
        self.entered.set()
        if self.fault == "hold":
            self.release.wait(30)
        if self.fault == "silent":
            return BackendEnding("pending", is_over=False, detail="no answer", is_silent=True)
        if self.fault == "down" or record.lease_id in self.poison:
            return BackendEnding("pending", is_over=False, detail="down")
        if self.fault == "expires":
            return BackendEnding("expires_at", is_over=True)
        self.live.discard(record.lease_id)
        return BackendEnding("verified", is_over=True, proof="listed")

    def outstanding(self):
        """What lives."""
        if self.fault in {"down", "silent"}:
            raise IssuanceError("down")
        return tuple(sorted(self.live))


@pytest.fixture
def clock():
    """A clock that moves when told to."""
    return HandClock()


@pytest.fixture
def path(tmp_path):
    """Where the journal is."""
    return tmp_path / "state" / "journal.sqlite3"


@pytest.fixture
def journal(path, clock):
    """A journal."""
    opened = SqliteJournal(path, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def backend():
    """A backend."""
    return ScriptedBackend()


@pytest.fixture
def me():
    """This process."""
    return this_owner()


@pytest.fixture
def nobody(me):
    """A process of this host that is gone: our pid, started at another time."""
    return attrs.evolve(me, started_at=me.started_at + 1, token="nobody")


@pytest.fixture
def record(me):
    """Make a record."""

    def make(owner: Owner = me, *, ends_in: float = 60.0, **fields) -> LeaseRecord:
        values = {
            "lease_id": new_lease_id(ends_at=START + ends_in),
            "grant_id": "grant-1",
            "txn": "txn-1",
            "issuer": "orders-db",
            "kind": "testing-backend",
            "workload": "spiffe://example.org/ns/prod/refunds",
            "task": "refund-order",
            "recipe": {"role": "r"},
            "owner": owner,
            "created_at": START,
            "expires_at": START + ends_in,
            "strength": "SESSIONS_CLOSED",
        }
        return LeaseRecord(**{**values, **fields})

    return make
