# SPDX-License-Identifier: Apache-2.0
"""The audit port: where a room hands its events over.

Holds the protocol only; `log.py` is the implementation with chain and sinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from jitwi.audit.events import Event

__all__ = ["Audit"]


class Audit(Protocol):
    """Port: takes events. No I/O before the first `record`."""

    def record(self, event: Event, *, durable: bool = False) -> None:
        """Write one event before returning.

        Args:
            event: What happened.
            durable: True to return only once it is on disk (group commit); False = handed to the operating system.

        Raises:
            AuditError: The sink failed or did not take it within its deadline. Refuse whatever the event announces.
        """
        ...

    def record_loss(self, event: Event, *, durable: bool = False) -> None:
        """Write an event about access that is *lost* (an ending, a denial): never raises; a failure becomes a gap."""
        ...

    def close(self) -> None:
        """Flush, close the chain; idempotent."""
        ...
