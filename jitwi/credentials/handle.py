# SPDX-License-Identifier: Apache-2.0
"""The object that guards a credential.

Holds the base of all handles. Each kind of credential brings its own, beside its issuer, with verbs instead of a
secret; whatever the verb, it passes the gate first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitwi.secret import NoCopy

if TYPE_CHECKING:
    from jitwi.credentials.gate import Gate

__all__ = ["CredentialHandle"]


class CredentialHandle(NoCopy):
    """Base of handles: dies with its grant, cannot be copied, pickled or used in a forked child.

    Args:
        gate: What every use passes.
        kind: Kind of credential.
    """

    __slots__ = ("__weakref__", "_destroyed", "_gate", "kind")

    def __init__(self, gate: Gate, *, kind: str) -> None:
        self._gate = gate
        self.kind = kind
        self._destroyed = False

    @property
    def is_destroyed(self) -> bool:
        """True once nothing secret of it is left in this process; by default: once `destroy()` was called."""
        return self._destroyed

    @property
    def public_ids(self) -> tuple[str, ...]:
        """What Guards know the credential by, published when it ends: `jkt:` and a key's thumbprint, for example."""
        return ()

    @property
    def may_block(self) -> bool:
        """True if a use may wait for an entity provider: asynchronous callers then use it off their loop."""
        return getattr(self._gate, "may_block", False) is True

    def destroy(self) -> None:
        """Drop the secret or key that lives in this process. Idempotent; called by the grant, in any thread."""
        self._destroyed = True

    def __repr__(self) -> str:
        """Kind and lease; nothing secret."""
        return f"<{type(self).__name__} {self._gate.lease_id}>"
