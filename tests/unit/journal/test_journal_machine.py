# SPDX-License-Identifier: Apache-2.0
"""Journal, reaper, crashes and a misbehaving backend against a small model: nothing is ever lost, nothing is taken."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from jitwi.clock import Instant
from jitwi.errors import IssuanceError, JournalError
from jitwi.journal import BackendEnding, LeaseRecord, LeaseStatus, Reaper, SqliteJournal, new_lease_id, this_owner
from jitwi.journal.due import BACKOFF_CAP_SECONDS, OVERDUE_GRACE_SECONDS

START = 1_800_000_000.0
NAME = "orders-db"


class JournalMachine(RuleBasedStateMachine):
    """Processes open leases and crash, the backend comes and goes and answers late, reapers go round."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="jw"))
        self.wall = START
        self.clock = SimpleNamespace(now=lambda: Instant(self.wall, self.wall - START))
        self.is_down = False
        self.live: set[str] = set()
        self.in_flight: set[str] = set()
        self.answered: set[str] = set()
        self.ends_at: dict[str, float] = {}
        self.owners: dict[str, int] = {}
        self.taken_by_reaper: set[str] = set()
        self.released: set[str] = set()
        self.process = 0
        self._open()

    def _open(self) -> None:
        self.journal = SqliteJournal(self.folder / "state" / "journal", clock=self.clock)
        self.owner = attrs.evolve(this_owner(), token=f"process {self.process}")

    def end(self, record, *, owner_is_gone):
        """The backend ends one; a lease of a live process must not come here."""
        alive = self.owners.get(record.lease_id) == self.process
        overdue = self.wall >= self.ends_at[record.lease_id] + OVERDUE_GRACE_SECONDS
        begun = record.lease_id in self.released
        assert not alive or overdue or begun, "a reaper took a lease of a live process"
        self.taken_by_reaper.add(record.lease_id)
        if self.is_down:
            return BackendEnding("pending", is_over=False, detail="down")
        self.live.discard(record.lease_id)
        return BackendEnding("verified", is_over=True)

    claim_seconds = 5.0

    def outstanding(self):
        """The backend lists."""
        if self.is_down:
            raise IssuanceError("down")
        return tuple(self.live)

    def _beat(self) -> None:
        self.journal.heartbeat(self.owner, now=self.wall)

    @rule(target=leases, ttl=st.integers(1, 120), answer=st.sampled_from(["yes", "no", "late"]))
    def issue(self, ttl, answer):
        """A process intends and asks; the answer comes, never comes, or comes late."""
        lease_id = new_lease_id(ends_at=self.wall + ttl)
        self.ends_at[lease_id] = self.wall + ttl + 1
        self.owners[lease_id] = self.process
        self.journal.intend(
            LeaseRecord(
                lease_id, "g", "t", NAME, "k", "w", "n", {}, self.owner, self.wall, self.wall + ttl, strength=""
            )
        )
        if answer == "late":
            self.in_flight.add(lease_id)
        elif answer == "yes":
            self.live.add(lease_id)
            self.answered.add(lease_id)
            self.journal.activate(lease_id, recipe={"a": "b"}, expires_at=self.wall + ttl)
        return lease_id

    @rule(lease_id=leases)
    def end_by_owner(self, lease_id):
        """A process ends its own lease."""
        if self.owners[lease_id] != self.process:
            return
        self.released.add(lease_id)
        try:
            if self.is_down:
                self.journal.ending(lease_id, detail="down", next_attempt_at=self.wall)
            else:
                self.live.discard(lease_id)
                self.journal.ended(lease_id, outcome="verified")
        except JournalError as error:
            assert error.reasons == ("unknown-lease",)

    @rule()
    def late_answers_arrive(self):
        """What nobody waits for any more comes true."""
        self.live |= self.in_flight
        self.in_flight.clear()

    @rule(lease_id=leases)
    def activate_again(self, lease_id):
        """A late activation succeeds only while no reaper has the lease."""
        record = self.journal.lookup([lease_id]).get(lease_id)
        try:
            self.journal.activate(lease_id, recipe={}, expires_at=self.ends_at[lease_id] - 1)
        except JournalError:
            assert record is None or record.status in {LeaseStatus.ENDING, LeaseStatus.ENDED}
        else:
            assert lease_id not in self.taken_by_reaper

    @rule()
    def crash(self):
        """The process is gone without a word; another one starts."""
        self.journal.close()
        self.process += 1
        self._open()
        # in one real process the owner is still there: give the dead one a start time that does not match
        import sqlite3

        other = sqlite3.connect(self.journal.path) if self.journal.path.exists() else None
        if other is not None:
            with other:
                other.execute("UPDATE leases SET owner_started_at = 1 WHERE owner_token != ?", (self.owner.token,))
            other.close()

    @rule()
    def journal_is_deleted(self):
        """The file is lost."""
        self.journal.close()
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        self._open()

    @rule(seconds=st.floats(0.1, 50))
    def time_passes(self, seconds):
        """Time passes, and the live process says so."""
        self.wall += seconds
        self._beat()

    @rule(is_down=st.booleans())
    def backend(self, is_down):
        """The backend goes or comes back."""
        self.is_down = is_down

    @rule()
    def reap(self):
        """A reaper goes round."""
        self._beat()
        Reaper(self.journal, {NAME: self}, clock=self.clock).run_once()

    @invariant()
    def nothing_is_taken(self):
        """What a live process holds, has not given back and may still hold, is there."""
        held = {
            lease_id
            for lease_id in self.answered
            if self.owners[lease_id] == self.process
            and lease_id not in self.released
            and self.wall < self.ends_at[lease_id] - 1 + OVERDUE_GRACE_SECONDS
        }
        assert held <= self.live

    def teardown(self):
        """With the backend back, no process left and all time up, one reaper leaves nothing behind."""
        self.late_answers_arrive()
        self.crash()
        self.is_down = False
        self.wall += 121 + OVERDUE_GRACE_SECONDS + BACKOFF_CAP_SECONDS
        self._beat()
        report = Reaper(self.journal, {NAME: self}, clock=self.clock).run_once()
        assert self.live == set()
        assert report.pending == ()
        assert self.journal.open_leases() == ()
        self.journal.close()
        shutil.rmtree(self.folder, ignore_errors=True)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
