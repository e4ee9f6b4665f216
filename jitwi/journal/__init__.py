# SPDX-License-Identifier: Apache-2.0
"""REMEMBERS: the leases whose ending needs a backend.

Holds the records, the port, the SQLite journal (SQLite itself is loaded at its first use), the rules of the reaper and
the reaper itself. Does not hold secrets, URLs or code, nor how one credential is ended: `jitwi.credentials` does.
"""

from jitwi.journal.lease_id import ends_at_of, new_lease_id
from jitwi.journal.owner import HEARTBEAT_SECONDS, is_alive, this_owner
from jitwi.journal.reaper import Backend, BackendEnding, Reaped, Reaper, ReapReport
from jitwi.journal.record import Journal, LeaseRecord, LeaseStatus, Owner, ReaperJournal
from jitwi.journal.sqlite import SqliteJournal, journal_path

__all__ = [
    "HEARTBEAT_SECONDS",
    "Backend",
    "BackendEnding",
    "Journal",
    "LeaseRecord",
    "LeaseStatus",
    "Owner",
    "ReapReport",
    "Reaped",
    "Reaper",
    "ReaperJournal",
    "SqliteJournal",
    "ends_at_of",
    "is_alive",
    "journal_path",
    "new_lease_id",
    "this_owner",
]
