# SPDX-License-Identifier: Apache-2.0
"""The issuer port: plan, issue, end, probe.

Holds the protocol that an author of an issuer implements and the values that cross it. Every value could cross a
process: a broker can stand behind this port one day. Does not hold who calls it and when: that is `jitwi.grants`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from jitwi.secret import NoCopy, Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitwi.credentials.gate import Gate
    from jitwi.credentials.handle import CredentialHandle
    from jitwi.credentials.plan import Plan
    from jitwi.identity import IdentitySource, SvidKind
    from jitwi.spiffe_id import SpiffeId
    from jitwi.task import Entity, Permission, Task

__all__ = ["Issued", "Issuer", "LeaseRef", "Order", "ProbeResult", "Services"]


class ProbeResult(enum.Enum):
    """What a try of the credential showed."""

    REFUSED = "refused"
    ALLOWED = "allowed"
    UNREACHABLE = "unreachable"


@attrs.frozen
class Order:
    """What an issuer is asked to plan and to make.

    Args:
        issuer: The configured name of the issuer.
        lease_id: Our id for this credential, `jitwi-` and 26 characters; the backend should carry it too.
        txn: The transaction id of the task.
        task: The task, actions resolved.
        permissions: Those of the task's permissions that this issuer serves, at least one.
        spiffe_id: Who asks.
        svid_kind: In which form the identity is held.
        issued_at: Now, seconds since the epoch.
        ends_at: When the grant ends at the latest, seconds since the epoch.
        svid_ends_at: When the SVID of now ends, seconds since the epoch. A credential that cannot be made anew after
            a rotation must not outlive it: see `hard_end`.
    """

    issuer: str
    lease_id: str
    txn: str
    task: Task
    permissions: tuple[Permission, ...]
    spiffe_id: SpiffeId
    svid_kind: SvidKind
    issued_at: float
    ends_at: float
    svid_ends_at: float

    @property
    def hard_end(self) -> float:
        """The end that a credential made once must not pass: of the grant or of the SVID, whichever comes first."""
        return min(self.ends_at, self.svid_ends_at)


@attrs.frozen(repr=False, eq=False)
class Issued(NoCopy):
    """What an issuer made.

    Args:
        expires_at: When it really ends, seconds since the epoch; later than planned is refused on arrival.
        secret: What `probe` can try later and the handle shows; None where there is none, as with a task key.
        recipe: Additions to the plan's recipe, learnt only now; journalled.
    """

    expires_at: float
    secret: Secret | None = None
    recipe: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(repr=False, eq=False)
class LeaseRef(NoCopy):
    """What is known of a credential when it is ended or probed: in the process that made it, or after a crash.

    Args:
        lease_id: Our id.
        issuer: The configured name of the issuer.
        kind: Kind of credential.
        recipe: Plan's and issue's recipe together.
        expires_at: When it ends by itself, seconds since the epoch.
        secret: The credential where it still is in memory; None after a crash, or if `issue` never answered.
    """

    lease_id: str
    issuer: str
    kind: str
    recipe: Mapping[str, str]
    expires_at: float
    secret: Secret | None = None


@attrs.frozen
class Services:
    """What `JIT` lends to an issuer when it starts.

    Args:
        identity: The source of the caller's identity.
        clock: The clock.
    """

    identity: IdentitySource
    clock: Any


class Issuer(Protocol):
    """Port: plans, makes, ends and probes one kind of credential. Called from several threads.

    Methods may block unless `is_local`; the caller gives each a deadline and treats a hang as a failure.
    """

    @property
    def kind(self) -> str:
        """Kind of credential, the same as in its plans, for example `task-token`."""
        ...

    @property
    def is_local(self) -> bool:
        """True if no method ever waits for anything outside the process: it is then called without a thread."""
        ...

    @property
    def serves(self) -> frozenset[str] | None:
        """Names of the actions it serves; None = every permission (only where it is the one issuer)."""
        ...

    def start(self, services: Services) -> None:
        """Receive what `JIT` lends; no I/O."""
        ...

    def plan(self, order: Order) -> Plan:
        """Say what the credential will be.

        Raises:
            IssuanceError: It cannot serve this order; says why.
        """
        ...

    def issue(self, order: Order, plan: Plan) -> Issued:
        """Make it.

        Raises:
            IssuanceError: It was not made, or only half: `end` is called in any case.
        """
        ...

    def handle(self, order: Order, plan: Plan, issued: Issued, gate: Gate) -> CredentialHandle:
        """Wrap what was made in the handle that users get; no I/O."""
        ...

    def end(self, lease: LeaseRef) -> None:
        """End it, idempotent; "does not exist" is success.

        Raises:
            IssuanceError: It could not be ended now; tried again later.
        """
        ...

    def probe(self, lease: LeaseRef, permission: tuple[Entity, Entity] | None = None) -> ProbeResult:
        """Try it, or where its secret is gone ask whether the backend still lists it or a session of it."""
        ...

    def outstanding(self) -> tuple[str, ...]:
        """Return the lease ids under our prefix that the backend itself lists; empty where there is no backend."""
        ...
