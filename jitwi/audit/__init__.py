# SPDX-License-Identifier: Apache-2.0
"""What was done, provably: events, hash chain, sinks, verification.

Holds the port (`Audit`), its implementation on a folder of chains (`AuditLog`), and reading back (`verify`, `read`).
Does not decide anything; the events are in `jitwi.audit.events`. Without a record there is no credential: whoever
announces access calls `record` and refuses on `AuditError`; whoever ends it calls `record_loss` and goes on.
"""

from __future__ import annotations

from jitwi.audit.encode import input_digest
from jitwi.audit.events import DecisionRecord, Event, Subject
from jitwi.audit.log import Anchor, AuditLog
from jitwi.audit.port import Audit
from jitwi.audit.sinks import LoggingSink, Sink
from jitwi.audit.verify import ChainReport, ChainStatus, Verification, read, verify

__all__ = [
    "Anchor",
    "Audit",
    "AuditLog",
    "ChainReport",
    "ChainStatus",
    "DecisionRecord",
    "Event",
    "LoggingSink",
    "Sink",
    "Subject",
    "Verification",
    "input_digest",
    "read",
    "verify",
]
