# SPDX-License-Identifier: Apache-2.0
"""Calling a Guard in the tests of a service, with real evidence and without a caller's `JIT`.

Holds `call`, `Caller` and `CaBundles`: a real task token and a real proof under an SVID of a test CA, so that the whole
verification of the Guard runs. Does not hold a Guard: give yours `CaBundles(ca)` as its `identity`. Not for anything
real.

Example::

    ca = TestCa("example.org")
    guard = jitwi.Guard("https://orders.example.org", "policies/", identity=CaBundles(ca), state_dir=tmp_path)
    order = jitwi.Entity("Shop::Order", "42")
    call(guard, "refund", order, input={"amount": 30}, ca=ca, as_="spiffe://example.org/ns/prod/refunds")
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.clock import Deadline
from jitwi.guard import Request
from jitwi.identity import Identity, SvidKind
from jitwi.identity.key import LeafKey
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity, Permission, Task
from jitwi.tokens import TaskKey, input_digest, mint_proof, mint_task_token

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitwi.clock import Clock
    from jitwi.guard import Call, Guard
    from jitwi.identity import JwtBundle, X509Bundle
    from jitwi.identity.key import SigningKey
    from jitwi.spiffe_id import TrustDomain
    from jitwi.testing.ca import IssuedX509Svid, TestCa
    from jitwi.tokens import MintedToken

__all__ = ["CaBundles", "Caller", "call", "identity_of"]

_TTL = timedelta(minutes=2)


class CaBundles:
    """The bundles of test CAs as they stand now, behind the port of the live source.

    Args:
        cas: One per trust domain; what is not here is untrusted.
    """

    def __init__(self, *cas: TestCa) -> None:
        self._cas = {ca.trust_domain: ca for ca in cas}
        self._seen: dict[TrustDomain, tuple[tuple[bytes, ...], X509Bundle]] = {}

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        """Return the bundle of one trust domain, or None."""
        ca = self._cas.get(trust_domain)
        if ca is None:
            return None
        roots = ca.roots
        seen = self._seen.get(trust_domain)
        if seen is None or seen[0] != roots:
            seen = self._seen[trust_domain] = roots, ca.x509_bundle
        return seen[1]

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        """Return the JWT bundle of one trust domain, or None."""
        ca = self._cas.get(trust_domain)
        return None if ca is None else ca.jwt_bundle

    def add(self, ca: TestCa) -> None:
        """Trust one more domain from now on."""
        self._cas[ca.trust_domain] = ca

    def remove(self, ca: TestCa) -> None:
        """Do not trust that domain any more."""
        del self._cas[ca.trust_domain]


def identity_of(svid: IssuedX509Svid, *, clock: Clock) -> Identity:
    """Return an issued SVID as an identity, without admission: also a bad one, for a Guard to refuse.

    Args:
        svid: What `TestCa.issue` returned.
        clock: What tells the time.
    """
    end = svid.leaf.not_valid_after_utc.timestamp()
    key: SigningKey = svid.key  # type: ignore[assignment]
    return Identity(
        spiffe_id=SpiffeId.parse(svid.spiffe_id),
        kind=SvidKind.X509,
        version=1,
        not_before=svid.leaf.not_valid_before_utc.timestamp(),
        not_after=end,
        chain=svid.chain,
        thumbprint=hashlib.sha256(svid.chain[0]).hexdigest(),
        key=LeafKey(key, deadline=Deadline.at_wall(end, now=clock.now()), clock=clock),
    )


class Caller:
    """A workload with one task and its key, calling one Guard.

    Args:
        guard: Whom it calls. Its policies name the actions, its clock tells the time, its origin is where requests go.
        identity: The caller's X.509 identity.
        permissions: What the task declares, in the front door's forms.
        task: Name of the task class.
        ttl: Length of the task.
        max_uses: How many uses in all.
        purpose: Why.
        owner: Who answers for this kind of task.
        on_behalf_of: For whom.
        agent: Which agent.
        txn: Transaction id; by default a fresh one.

    Raises:
        InvalidTaskError: The declaration is out of bounds.
        PolicyError: The Guard's policies do not know an action.
    """

    def __init__(  # noqa: PLR0913 - what a task declares
        self,
        guard: Guard,
        identity: Identity,
        permissions: Mapping[str, Any] | Iterable[Permission],
        *,
        task: str = "test",
        ttl: timedelta = _TTL,
        max_uses: int | None = None,
        purpose: str | None = None,
        owner: str | None = None,
        on_behalf_of: str | None = None,
        agent: str | None = None,
        txn: str | None = None,
    ) -> None:
        guard.start()
        self.guard = guard
        self.identity = identity
        self.key = TaskKey()
        self.txn = f"txn-{self.key.jkt[:22]}" if txn is None else txn
        declared = Task.declare(
            task,
            permissions=permissions,
            ttl=ttl,
            purpose=purpose,
            max_uses=max_uses,
            owner=owner,
            on_behalf_of=on_behalf_of,
            agent=agent,
        )
        self.task = attrs.evolve(
            declared,
            permissions=tuple(Permission(self.resolve(p.action), p.resource, p.max_uses) for p in declared.permissions),
        )
        self.ends_at = self.now() + ttl.total_seconds()
        self.token = self.mint()

    def now(self) -> float:
        """Seconds since the epoch, by the Guard's clock."""
        return self.guard._clock.now().wall  # noqa: SLF001 - one package

    def resolve(self, action: str | Entity) -> Entity:
        """Return an action's uid, by the Guard's schema."""
        return self.guard._parts.policies.snapshot.action(action).action  # noqa: SLF001 - one package

    def mint(self) -> MintedToken:
        """Mint a token for the task under the identity of now, as after a rotation; `token` stays as it is."""
        return mint_task_token(
            self.identity,
            task=self.task,
            digest=self.task.digest(txn=self.txn),
            permissions=self.task.permissions,
            audience=self.guard.audience,
            jkt=self.key.jkt,
            txn=self.txn,
            now=self.now(),
            ends_at=self.ends_at,
        )

    def proof(
        self,
        action: str | Entity,
        resource: Entity,
        *,
        input: Mapping[str, Any] | None = None,
        method: str = "POST",
        path: str = "/",
    ) -> str:
        """Make a fresh proof for one use."""
        return mint_proof(
            self.key,
            ath=self.token.ath,
            method=method,
            url=f"{self.guard.origin}{path}",
            action=self.resolve(action),
            resource=resource,
            digest=input_digest(input),
            now=self.now(),
        )

    def request(
        self,
        action: str | Entity,
        resource: Entity,
        *,
        input: Mapping[str, Any] | None = None,
        method: str = "POST",
        path: str = "/",
    ) -> Request:
        """Return the request of one use, with a fresh proof: for `guard.check`, or for the headers of a real one."""
        proof = self.proof(action, resource, input=input, method=method, path=path)
        return Request(method, path, [("Authorization", f"DPoP {self.token.text}"), ("DPoP", proof)])

    def call(
        self,
        action: str | Entity,
        resource: Entity,
        *,
        input: Mapping[str, Any] | None = None,
        method: str = "POST",
        path: str = "/",
    ) -> Call:
        """Make a request and have the Guard check it.

        Raises:
            JitwiError: As `Guard.check`.
        """
        request = self.request(action, resource, input=input, method=method, path=path)
        return self.guard.check(request, action, resource, input=input)

    def end(self) -> None:
        """Destroy the task's key, as the end of a real task does."""
        self.key.destroy()

    def __repr__(self) -> str:
        """Who and which task."""
        return f"<Caller {self.identity.spiffe_id} {self.task.name}>"


def call(
    guard: Guard,
    action: str | Entity,
    resource: Entity,
    *,
    ca: TestCa,
    as_: str,
    input: Mapping[str, Any] | None = None,
    method: str = "POST",
    path: str = "/",
    **task: Any,
) -> Call:
    """Call a Guard once, as a workload in a task of its own that declares just this.

    Args:
        guard: Your Guard, with `ca` as its source of bundles.
        action: What to do.
        resource: To what.
        ca: The test CA that issues the caller's SVID.
        as_: The caller's SPIFFE ID.
        input: What the caller proves and the service executes.
        method: HTTP method of the request.
        path: Path of the request.
        **task: What else the task says; see `Caller` (`task`, `permissions`, `ttl`, `max_uses`, `purpose`, ...).

    Returns:
        The call, as the service gets it.

    Raises:
        JitwiError: As `Guard.check`: what a service's own tests look at.
    """
    permissions = task.pop("permissions", None) or [Permission(action, resource)]
    identity = identity_of(ca.issue(as_), clock=guard._clock)  # noqa: SLF001 - one package
    caller = Caller(guard, identity, permissions, **task)
    try:
        return caller.call(action, resource, input=input, method=method, path=path)
    finally:
        caller.end()
