# SPDX-License-Identifier: Apache-2.0
"""An audit trail in memory, for tests.

Holds `RecordingSink`: the whole port without files, which keeps the events, encodes each as the real log would, and
fails on demand. It can also be one of an `AuditLog`'s sinks. Does not hold a chain: nothing here proves anything.

Example:
    >>> from jitwi.audit.events import PolicyLoaded
    >>> from jitwi.testing.audit import RecordingSink
    >>> sink = RecordingSink()
    >>> sink.record(PolicyLoaded(subject=None, policy_digest="x", policies=3))
    >>> sink.kinds
    ['policy.loaded']
    >>> sink.records[0]["policies"]
    3
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from jitwi.audit.encode import Encoder
from jitwi.errors import AuditError

if TYPE_CHECKING:
    from jitwi.audit.events import Event

__all__ = ["RecordingSink"]

E = TypeVar("E", bound="Event")


class RecordingSink:
    """Keeps what it is given.

    Attributes:
        name: A word for messages.
        events: Every event that was taken, in order; empty where it serves as a sink behind an `AuditLog`.
        records: The same as the members of a line.
        durable: Whether each was asked to be durable.
        is_failing: Set it to make `record` raise `AuditError` and `record_loss` count what it loses.
        lost: Events of lost access that came while it was failing.
        is_closed: True after `close()`.
    """

    def __init__(self) -> None:
        self.name = "recording"
        self.events: list[Event] = []
        self.records: list[dict[str, Any]] = []
        self.durable: list[bool] = []
        self.is_failing = False
        self.lost: list[Event] = []
        self.is_closed = False
        self._encoder = Encoder()
        self._lock = threading.RLock()

    def record(self, event: Event, *, durable: bool = False) -> None:
        """Keep one event.

        Raises:
            AuditError: It was told to fail, or closed.
        """
        with self._lock:
            if self.is_failing or self.is_closed:
                raise AuditError("the recording sink was told to fail", reasons=("failing",))
            self._keep(event, durable=durable)

    def record_loss(self, event: Event, *, durable: bool = False) -> None:
        """Keep one event about access that is lost; never raises."""
        with self._lock:
            if self.is_failing or self.is_closed:
                self.lost.append(event)
            else:
                self._keep(event, durable=durable)

    def write(self, line: str) -> None:
        """Take a line of an `AuditLog`, as one of its sinks.

        Raises:
            AuditError: It was told to fail.
        """
        with self._lock:
            if self.is_failing:
                raise AuditError("the recording sink was told to fail", reasons=("failing",))
            self.records.append(json.loads(line))

    def close(self) -> None:
        """Take no more; idempotent."""
        self.is_closed = True

    def clear(self) -> None:
        """Forget everything so far."""
        with self._lock:
            self.events.clear()
            self.records.clear()
            self.durable.clear()
            self.lost.clear()

    @property
    def kinds(self) -> list[str]:
        """The kinds of all records, in order."""
        return [str(record.get("kind")) for record in self.records]

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one class, in order."""
        return [event for event in self.events if type(event) is kind]

    def _keep(self, event: Event, *, durable: bool) -> None:
        self.records.append(json.loads(b"{" + self._encoder.encode(event) + b"}"))
        self.events.append(event)
        self.durable.append(durable)
