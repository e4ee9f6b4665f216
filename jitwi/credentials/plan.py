# SPDX-License-Identifier: Apache-2.0
"""What a credential will really be, said before it is made.

Holds the values that an issuer answers with: `Plan`, `Strength`, `Wider`. Does not hold the decision over a plan: that
is Cedar's, asked as `obtain`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Plan", "Strength", "Wider"]


class Strength(enum.Enum):
    """What ending means for a kind of credential, strongest first."""

    KEY_DESTROYED = "KEY_DESTROYED"
    SESSIONS_CLOSED = "SESSIONS_CLOSED"
    REFUSED_AT_NEXT_USE = "REFUSED_AT_NEXT_USE"
    EXPIRES_ONLY = "EXPIRES_ONLY"


class Wider(enum.Enum):
    """In what a credential reaches further than the task declared."""

    ACTIONS = "actions"
    RESOURCES = "resources"
    USES = "uses"
    TIME = "time"
    NETWORK = "network"


@attrs.frozen
class Plan:
    """An issuer's honest answer: enforced scope, strength, bearer or not, and until when.

    Args:
        kind: Kind of credential, for example `task-token`.
        strength: What ending it means.
        is_bearer: True if whoever holds the bytes can use them.
        expires_at: When the credential will really end, seconds since the epoch. Later than the grant's end only
            where a backend sets it; `wider` then holds `TIME`.
        wider: In what it is wider than declared; empty = exact.
        why: One sentence for each thing in `wider`, and for weaknesses of the ending.
        standing_right: Which standing admin right stands behind it; empty = none.
        has_outside_effects: True if ending needs the backend: the lease is then journalled before `issue`.
        recipe: What `end` and `probe` will need beside the lease id: ids and names, never a secret, SQL or URL.
    """

    kind: str
    strength: Strength
    is_bearer: bool
    expires_at: float
    wider: frozenset[Wider] = frozenset()
    why: tuple[str, ...] = ()
    standing_right: str = ""
    has_outside_effects: bool = False
    recipe: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def is_exact(self) -> bool:
        """True if it will be no wider than declared."""
        return not self.wider

    @property
    def is_revocable(self) -> bool:
        """True if we can end it, and not only time."""
        return self.strength is not Strength.EXPIRES_ONLY

    def as_credential(self, *, now: float) -> dict[str, object]:
        """Return the plan as `Jitwi::Credential`, the shape that `obtain` policies read.

        Args:
            now: Seconds since the epoch, to state the real ttl.
        """
        return {
            "kind": self.kind,
            "strength": self.strength.value,
            "revocable": self.is_revocable,
            "bearer": self.is_bearer,
            "exact": self.is_exact,
            "wider": sorted(w.value for w in self.wider),
            "ttl": max(0, round(self.expires_at - now)),
        }
