# SPDX-License-Identifier: Apache-2.0
"""Task tokens: an ephemeral key per credential, endorsed by the SVID; ending it destroys the key.

Holds the issuer and its handle. Does not hold the token (`jitwi.tokens`) or the gate (`jitwi.grants`). Nothing exists
outside the process: the token is minted when it is first used, and without the key it is worth nothing.
"""

from __future__ import annotations

import json
import threading
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jitwi.credentials import CredentialHandle, Gate, Issued, LeaseRef, Order, Plan, ProbeResult, Services, Strength
from jitwi.errors import ConfigurationError, IssuanceError, StateError
from jitwi.identity import Identity, SvidKind
from jitwi.issuers.origin import pinned_origin, require_origin, served_actions
from jitwi.task import Entity, sha256_base64url
from jitwi.tokens import MintedToken, TaskKey, mint_proof, mint_task_token, names
from jitwi.tokens.details import permission_entry
from jitwi.tokens.jose import json_text
from jitwi.tokens.proof import canonical_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitwi.integrations.httpx import HandleAuth

__all__ = ["TaskToken", "TaskTokens"]

KIND = "task-token"
_DEFAULT_MAX_TTL = timedelta(hours=1)
_RENEW_SECONDS = 5
_CHAIN_RESERVE_CHARS = 4_096
_WHY = (f"a Guard that does not see the ending accepts an unused proof for up to {names.PROOF_WINDOW_SECONDS} s",)


class TaskToken(CredentialHandle):
    """The handle: makes a token and a fresh proof for one use at a time, and never shows its key.

    Args:
        gate: What every use passes, before anything is made.
        audience: The one recipient.
        origin: The one origin that requests may go to.
        max_ttl: The longest life of one token; a longer task has several, under one key.
    """

    __slots__ = ("_audience", "_key", "_lock", "_max_ttl", "_minted", "_origin")

    def __init__(self, gate: Gate, *, audience: str, origin: str, max_ttl: timedelta) -> None:
        super().__init__(gate, kind=KIND)
        self._audience = audience
        self._origin = origin
        self._max_ttl = max_ttl
        self._lock = threading.Lock()
        self._key: TaskKey | None = None
        self._minted: MintedToken | None = None

    def auth(self, action: str | Entity, resource: Entity, input: Mapping[str, Any] | None = None) -> HandleAuth:
        """Return what httpx takes as `auth=`; each request sent with it is one use, checked when it is sent.

        Args:
            action: What the request does.
            resource: To what.
            input: What the service will read from the request and execute. Taken as it is now.

        Raises:
            ConfigurationError: httpx is not installed.
            InvalidTaskError: `input` has no canonical form.
        """
        from jitwi.integrations.httpx import HandleAuth

        return HandleAuth(self, action, resource, _snapshot(input)[0])

    def headers(
        self,
        method: str,
        url: str,
        action: str | Entity,
        resource: Entity,
        input: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        """Check one use and return the headers that carry it: for one request, one time.

        Args:
            method: The HTTP method.
            url: The URL, of the origin that this credential is for.
            action: What the request does.
            resource: To what.
            input: What the service will read from the request and execute.

        Returns:
            `Authorization` and `DPoP`. Send them to `url` only, and do not follow a redirect with them.

        Raises:
            OutOfScopeError: Another origin, or not declared.
            InvalidTaskError: `input` has no canonical form.
            StateError: Forked child.
            GrantError: The grant or credential is over.
            AccessDeniedError: Limits or policy say no.
            AuditError: The use could not be recorded.
            IdentityError: There is no identity to endorse the key.

        Source:
            RFC 9449 §7.1.
        """
        require_origin(self._gate, url, self._origin, action, resource)
        given, digest = _snapshot(input)
        use = self._gate.check(action, resource, input=given)
        key, token = self._current(use.at.wall)
        proof = mint_proof(
            key,
            ath=token.ath,
            method=method,
            url=url,
            action=use.action,
            resource=use.resource,
            digest=digest,
            now=use.at.wall,
        )
        return {names.HTTP_AUTHORIZATION: f"{names.SCHEME_DPOP} {token.text}", names.HTTP_DPOP: proof}

    @property
    def public_ids(self) -> tuple[str, ...]:
        """The key's thumbprint, once there is a key; it outlives the key."""
        return () if self._key is None else (f"jkt:{self._key.jkt}",)

    @property
    def is_destroyed(self) -> bool:
        """True once it was ended and there is no key of it in this process."""
        return self._destroyed and (self._key is None or self._key.is_destroyed)

    def destroy(self) -> None:
        """Destroy the task key. Idempotent, in any thread."""
        # No lock: a key that is being made at this moment is destroyed by whoever makes it, who looks afterwards.
        super().destroy()
        key = self._key
        if key is not None:
            key.destroy()
        self._minted = None

    def _current(self, now: float) -> tuple[TaskKey, MintedToken]:
        identity = self._gate.identity()
        with self._lock:
            if self._key is None:
                self._key = TaskKey()
            if self._destroyed:
                self._key.destroy()
                raise StateError("the task key was destroyed", reasons=("destroyed",), remedy="open a new task")
            token = self._minted
            if token is None or token.version != identity.version or now >= token.expires_at - _RENEW_SECONDS:
                token = self._minted = self._mint(self._key, identity, now)
            return self._key, token

    def _mint(self, key: TaskKey, identity: Identity, now: float) -> MintedToken:
        try:
            return self._mint_under(key, identity, now)
        except StateError:  # rotated between the look and the signature: the old key is gone, the new one is there
            renewed = self._gate.identity()
            if renewed.version == identity.version:
                raise
            return self._mint_under(key, renewed, now)

    def _mint_under(self, key: TaskKey, identity: Identity, now: float) -> MintedToken:
        gate = self._gate
        left = gate.deadline.remaining(gate.now())
        return mint_task_token(
            identity,
            task=gate.task,
            digest=gate.task_digest,
            permissions=gate.permissions,
            audience=self._audience,
            jkt=key.jkt,
            txn=gate.txn,
            now=now,
            ends_at=min(gate.deadline.wall, now + left, now + self._max_ttl.total_seconds()),
        )


def _snapshot(given: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, str | None]:
    """Take `input` as it is now: what is decided on and what the proof stands for are the same bytes."""
    if given is None:
        return None, None
    text = canonical_input(given)
    return json.loads(text), sha256_base64url(text)


class TaskTokens:
    """Issue task tokens for one audience: `KEY_DESTROYED`, exact, not bearer.

    Args:
        audience: The service; its Guard is configured with the same text. A URL says the origin too.
        serves: Actions it serves; None = all (only where it is the one issuer).
        origin: Where requests may go, if the audience is not a URL.
        max_ttl: The longest life of one token, not longer than the Guard's own `max_ttl`.
        allow_insecure_http: Allow plain HTTP to other machines, where something else protects the connection.

    Raises:
        ConfigurationError: No audience, no origin, or plain HTTP.
    """

    __slots__ = ("_audience", "_handles", "_max_ttl", "_origin", "_serves")

    def __init__(
        self,
        audience: str,
        *,
        serves: Iterable[str] | None = None,
        origin: str | None = None,
        max_ttl: timedelta = _DEFAULT_MAX_TTL,
        allow_insecure_http: bool = False,
    ) -> None:
        self._origin = pinned_origin(audience, origin, allow_insecure_http=allow_insecure_http)
        self._audience = audience
        self._serves = served_actions(serves)
        if not isinstance(max_ttl, timedelta) or max_ttl < timedelta(seconds=1):
            raise ConfigurationError("`max_ttl` is a `timedelta` of a second or more", reasons=("max-ttl",))
        self._max_ttl = max_ttl
        self._handles: weakref.WeakValueDictionary[str, TaskToken] = weakref.WeakValueDictionary()

    @property
    def kind(self) -> str:
        """`task-token`."""
        return KIND

    @property
    def is_local(self) -> bool:
        """True: nothing here waits for anybody."""
        return True

    @property
    def serves(self) -> frozenset[str] | None:
        """Names of the actions it serves."""
        return self._serves

    @property
    def audience(self) -> str:
        """The one recipient."""
        return self._audience

    def start(self, services: Services) -> None:
        """Nothing is needed: identity and time come through the gate."""

    def plan(self, order: Order) -> Plan:
        """Say what the credential will be: exact, ended by destroying its key.

        Raises:
            IssuanceError: The identity is a JWT-SVID, or the declaration would not fit into a token.
        """
        if order.svid_kind is not SvidKind.X509:
            raise IssuanceError(
                "a task token needs the SVID's key, and a JWT-SVID has none",
                reasons=("no-svid-key",),
                remedy="use an X.509-SVID as the identity, or the issuer `JwtSvid` where a policy accepts it",
            )
        size = _estimated_chars(order)
        if size > names.MAX_TOKEN_CHARS:
            raise IssuanceError(
                f"the task token would have about {size} characters, more than {names.MAX_TOKEN_CHARS}",
                reasons=("token-too-long",),
                remedy="declare fewer permissions, shorter ids, or `under(...)`",
            )
        return Plan(kind=KIND, strength=Strength.KEY_DESTROYED, is_bearer=False, expires_at=order.ends_at, why=_WHY)

    def issue(self, order: Order, plan: Plan) -> Issued:
        """Nothing is made yet: the key and the token come with the first use."""
        return Issued(expires_at=plan.expires_at)

    def handle(self, order: Order, plan: Plan, issued: Issued, gate: Gate) -> TaskToken:
        """Return the handle that will hold the key."""
        handle = TaskToken(gate, audience=self._audience, origin=self._origin, max_ttl=self._max_ttl)
        self._handles[order.lease_id] = handle
        return handle

    def end(self, lease: LeaseRef) -> None:
        """Destroy the key, if this process holds it; one of a process that is gone is gone with it."""
        handle = self._handles.get(lease.lease_id)
        if handle is not None:
            handle.destroy()

    def probe(self, lease: LeaseRef, permission: tuple[Entity, Entity] | None = None) -> ProbeResult:
        """Say whether there is still a key to sign a proof with."""
        handle = self._handles.get(lease.lease_id)
        return ProbeResult.REFUSED if handle is None or handle.is_destroyed else ProbeResult.ALLOWED

    def outstanding(self) -> tuple[str, ...]:
        """Nothing is listed anywhere."""
        return ()

    def __repr__(self) -> str:
        """For whom."""
        return f"TaskTokens({self._audience!r})"


def _estimated_chars(order: Order) -> int:
    """About how long the token will be, so that a task that cannot have one is told so before it starts to work."""
    if len(order.task.permissions) <= _SMALL_TASK:
        return 0
    details = json_text([permission_entry(p) for p in order.permissions])
    facts = json_text(order.task.facts())
    claims = len(details.encode()) + len(facts.encode()) + 46 * len(order.task.permissions) + 512
    return claims * 4 // 3 + _CHAIN_RESERVE_CHARS


_SMALL_TASK = 2
