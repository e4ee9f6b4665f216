# SPDX-License-Identifier: Apache-2.0
"""Which grants are live in this process.

Holds the table of live grants and of endings that are still owed. Does not hold time (`watchdog.py`) or rules
(`lease.py`). It holds grants strongly: a grant that nobody else remembers is the one that must not be lost.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jitwi.grants.grant import Grant

__all__ = ["Registry"]


class Registry:
    """Live grants by id; all methods may be called from any thread."""

    __slots__ = ("_grants", "_lock")

    def __init__(self) -> None:
        self._grants: dict[str, Grant] = {}
        self._lock = threading.Lock()

    def add(self, grant: Grant) -> None:
        """Remember a grant, before it exists."""
        self._grants[grant.id] = grant

    def remove(self, grant_id: str) -> None:
        """Forget a grant whose ending is complete; unknown ids are fine."""
        self._grants.pop(grant_id, None)

    def get(self, grant_id: str) -> Grant | None:
        """Return a live grant, or None."""
        return self._grants.get(grant_id)

    def all(self) -> tuple[Grant, ...]:
        """Return all live grants, newest first: children come before their parents."""
        with self._lock:
            while True:
                try:
                    return tuple(reversed(self._grants.values()))
                except RuntimeError:  # the table changed size while it was read: read it again
                    continue

    def __len__(self) -> int:
        """How many are live."""
        return len(self._grants)
