# SPDX-License-Identifier: Apache-2.0
"""Credentials that exist for the length of one declared task, are worth nothing outside it, and end provably.

`JIT` is the caller's front door, `Guard` the one of the service that is called. Names are loaded when they are first
used, so that importing jitwi loads neither gRPC nor a store.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitwi.credentials import CredentialEnding, Outcome
    from jitwi.errors import (
        AccessDeniedError,
        AuditError,
        ConfigurationError,
        EvidenceError,
        GrantError,
        IdentityError,
        InvalidTaskError,
        IssuanceError,
        JitwiError,
        PolicyError,
        RevocationPendingError,
        StateError,
    )
    from jitwi.grants import AsyncGrant, EndCause, Ending, Grant
    from jitwi.guard import Call, Guard, Request
    from jitwi.jit import JIT
    from jitwi.secret import Secret
    from jitwi.spiffe_id import SpiffeId, TrustDomain
    from jitwi.task import Entity, Permission, Task, under

__version__ = "0.1.0"

__all__ = [
    "JIT",
    "AccessDeniedError",
    "AsyncGrant",
    "AuditError",
    "Call",
    "ConfigurationError",
    "CredentialEnding",
    "EndCause",
    "Ending",
    "Entity",
    "EvidenceError",
    "Grant",
    "GrantError",
    "Guard",
    "IdentityError",
    "InvalidTaskError",
    "IssuanceError",
    "JitwiError",
    "Outcome",
    "Permission",
    "PolicyError",
    "Request",
    "RevocationPendingError",
    "Secret",
    "SpiffeId",
    "StateError",
    "Task",
    "TrustDomain",
    "under",
]

_ROOMS = {
    "jitwi.credentials": ("CredentialEnding", "Outcome"),
    "jitwi.errors": (
        "AccessDeniedError",
        "AuditError",
        "ConfigurationError",
        "EvidenceError",
        "GrantError",
        "IdentityError",
        "InvalidTaskError",
        "IssuanceError",
        "JitwiError",
        "PolicyError",
        "RevocationPendingError",
        "StateError",
    ),
    "jitwi.grants": ("AsyncGrant", "EndCause", "Ending", "Grant"),
    "jitwi.guard": ("Call", "Guard", "Request"),
    "jitwi.jit": ("JIT",),
    "jitwi.secret": ("Secret",),
    "jitwi.spiffe_id": ("SpiffeId", "TrustDomain"),
    "jitwi.task": ("Entity", "Permission", "Task", "under"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name from its room."""
    room = _HOME.get(name)
    if room is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
