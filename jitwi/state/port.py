# SPDX-License-Identifier: Apache-2.0
"""The port of shared state: entries that expire, for replay, counts and endings.

Holds two protocols, because two parties own them: endings are the caller's to write and can only deny; replay and
counts belong to the Guard. Does not hold a store: for the processes of one host that is `ledger.py` and
`endings.py`.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Endings", "ProofLedger"]


class Endings(Protocol):
    """Port: what has ended before its time. Keys are public ids (a transaction id, a key thumbprint)."""

    def epoch(self) -> int:
        """Return a number that changes whenever something was published; a memory read, for every use."""
        ...

    def publish(self, key: str, *, expires_at: float) -> None:
        """Say that `key` is over; kept until `expires_at` (seconds since the epoch). Committed before the epoch moves.

        Raises:
            SharedStateError: It could not be stored.
        """
        ...

    def is_ended(self, key: str) -> bool:
        """Whether `key` was published.

        Raises:
            SharedStateError: The store cannot be read: deny.
        """
        ...

    def close(self) -> None:
        """Close; idempotent."""
        ...


class ProofLedger(Protocol):
    """Port: a Guard's memory of proofs and counts, shared by the Guards of one audience on one host."""

    @property
    def created_at(self) -> float:
        """When the store was made, seconds since the epoch: it may have forgotten what is older, so that is refused."""
        ...

    def first_seen(self, key: str, *, expires_at: float) -> bool:
        """True exactly once per key, over all threads and processes, until `expires_at`.

        Raises:
            SharedStateError: The store cannot answer: deny.
        """
        ...

    def reserve(self, key: str, *, limit: int, expires_at: float) -> int:
        """Count one use of `key` and return its number from 1; 0 if `limit` uses are counted. Exact over processes.

        Raises:
            SharedStateError: The store cannot answer: deny.
        """
        ...

    def release(self, key: str) -> None:
        """Give one reserved use back, after a deny.

        Raises:
            SharedStateError: The store cannot answer; the use stays counted.
        """
        ...

    def close(self) -> None:
        """Close; idempotent."""
        ...
