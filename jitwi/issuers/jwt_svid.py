# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs as credentials: for services that know nothing else. Bearer, and only time ends them.

Holds the issuer and its handle. Whoever holds such a token *is* the workload for its audience until it expires, for
every task and every action: the plan says so, and Cedar allows it only by a policy that the user wrote.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jitwi.credentials import (
    CredentialHandle,
    Gate,
    Issued,
    LeaseRef,
    Order,
    Plan,
    ProbeResult,
    Services,
    Strength,
    Wider,
)
from jitwi.errors import ConfigurationError, IssuanceError, StateError
from jitwi.issuers.origin import pinned_origin, require_origin, served_actions
from jitwi.secret import Secret
from jitwi.tokens import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitwi.integrations.httpx import HandleAuth
    from jitwi.task import Entity

__all__ = ["BearerJwtSvid", "JwtSvid"]

KIND = "jwt-svid-bearer"
_DEFAULT_MAX_TTL = timedelta(minutes=5)
_TIMEOUT_SECONDS = 2.0
_WHY = (
    "actions: the audience sees the workload, not the task",
    "resources: the token names none",
    "uses: nobody counts them at the audience",
    "network: whoever holds the bytes can send them from anywhere",
    "a JWT-SVID cannot be revoked, only outlived",
)


class BearerJwtSvid(CredentialHandle):
    """The handle of a bearer token: checks each use on this side, which is the only side that does.

    Args:
        gate: What every use passes, before the token is shown.
        origin: The one origin that requests may go to.
        token: The token.
    """

    __slots__ = ("_origin", "_token")

    def __init__(self, gate: Gate, *, origin: str, token: Secret) -> None:
        super().__init__(gate, kind=KIND)
        self._origin = origin
        self._token = token

    def auth(self, action: str | Entity, resource: Entity, input: Mapping[str, Any] | None = None) -> HandleAuth:
        """Return what httpx takes as `auth=`; each request sent with it is one use, checked when it is sent.

        Args:
            action: What the request does.
            resource: To what.
            input: The facts of this use that the action's schema names.

        Raises:
            ConfigurationError: httpx is not installed.
        """
        from jitwi.integrations.httpx import HandleAuth

        return HandleAuth(self, action, resource, input)

    def headers(
        self,
        method: str,
        url: str,
        action: str | Entity,
        resource: Entity,
        input: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        """Check one use and return the `Authorization` header that carries the bearer token.

        Args:
            method: The HTTP method; nothing binds the token to it.
            url: The URL, of the origin that this credential is for.
            action: What the request does.
            resource: To what.
            input: The facts of this use that the action's schema names.

        Raises:
            OutOfScopeError: Another origin, or not declared.
            JitwiError: As for `reveal`.

        Source:
            RFC 6750 §2.1, JWT-SVID §5.2.
        """
        require_origin(self._gate, url, self._origin, action, resource)
        return {names.HTTP_AUTHORIZATION: f"{names.SCHEME_BEARER} {self.reveal(action, resource, input)}"}

    def reveal(self, action: str | Entity, resource: Entity, input: Mapping[str, Any] | None = None) -> str:
        """Check one use and return the token itself. From here on only its expiry ends it.

        Args:
            action: What it will be used for.
            resource: On what.
            input: The facts of this use that the action's schema names.

        Raises:
            StateError: Forked child, or the grant dropped the token.
            GrantError: The grant or credential is over.
            AccessDeniedError: Scope, limits or policy say no.
            AuditError: The use could not be recorded.
        """
        self._gate.check(action, resource, input=input)
        return self._token.reveal()

    def destroy(self) -> None:
        """Drop our copy of the token. Idempotent, in any thread."""
        super().destroy()
        self._token.destroy()


class JwtSvid:
    """Issue the workload's JWT-SVID for one audience: bearer, `EXPIRES_ONLY`, not exact.

    Args:
        audience: The one audience.
        serves: Actions it serves; None = all (only where it is the one issuer).
        origin: Where requests may go, if the audience is not a URL.
        max_ttl: The longest life that the server gives to JWT-SVIDs: what plans say. A longer one is refused.
        allow_insecure_http: Allow plain HTTP to other machines. The token can be read and used by whoever sees it.

    Raises:
        ConfigurationError: No audience, no origin, or plain HTTP.
    """

    __slots__ = ("_audience", "_max_ttl", "_origin", "_serves", "_services")

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
        self._services: Services | None = None

    @property
    def kind(self) -> str:
        """`jwt-svid-bearer`."""
        return KIND

    @property
    def is_local(self) -> bool:
        """False: the agent is asked."""
        return False

    @property
    def serves(self) -> frozenset[str] | None:
        """Names of the actions it serves."""
        return self._serves

    @property
    def audience(self) -> str:
        """The one audience."""
        return self._audience

    def start(self, services: Services) -> None:
        """Receive the source that tokens come from; no I/O."""
        self._services = services

    def plan(self, order: Order) -> Plan:
        """Say what the token will be: as wide as the workload itself, until the server's own expiry."""
        expires_at = order.issued_at + self._max_ttl.total_seconds()
        wider = {Wider.ACTIONS, Wider.RESOURCES, Wider.USES, Wider.NETWORK}
        why: tuple[str, ...] = _WHY
        if expires_at > order.ends_at:
            wider.add(Wider.TIME)
            why = ("time: the server sets its expiry, up to after the task", *_WHY)
        return Plan(
            kind=KIND,
            strength=Strength.EXPIRES_ONLY,
            is_bearer=True,
            expires_at=expires_at,
            wider=frozenset(wider),
            why=why,
        )

    def issue(self, order: Order, plan: Plan) -> Issued:
        """Fetch it from the agent.

        Raises:
            IssuanceError: It is not the one that was planned: another identity or audience, or a longer life.
            IdentityError: The agent gives none.
        """
        if self._services is None:
            raise StateError("the issuer was not started", reasons=("not-started",), remedy="give it to `JIT`")
        svid = self._services.identity.jwt_svid(self._audience, timeout=_TIMEOUT_SECONDS)
        if svid.audience != self._audience or svid.spiffe_id != order.spiffe_id:
            raise IssuanceError("the agent sent a JWT-SVID of another audience or identity", reasons=("not-ordered",))
        if svid.expires_at > plan.expires_at:
            raise IssuanceError(
                f"the JWT-SVID lives {svid.expires_at - order.issued_at:.0f} s, longer than the planned "
                f"{self._max_ttl.total_seconds():.0f} s",
                reasons=("longer-than-planned",),
                remedy="state the server's JWT-SVID lifetime: `JwtSvid(..., max_ttl=timedelta(...))`",
            )
        return Issued(expires_at=svid.expires_at, secret=Secret(svid.token.reveal(), kind="jwt-svid"))

    def handle(self, order: Order, plan: Plan, issued: Issued, gate: Gate) -> BearerJwtSvid:
        """Return the handle that guards it on this side.

        Raises:
            StateError: There is no token in what was issued.
        """
        if issued.secret is None:
            raise StateError("there is no token", reasons=("no-token",))
        return BearerJwtSvid(gate, origin=self._origin, token=issued.secret)

    def end(self, lease: LeaseRef) -> None:
        """Nothing can end it but time; its handle drops our copy."""

    def probe(self, lease: LeaseRef, permission: tuple[Entity, Entity] | None = None) -> ProbeResult:
        """Say whether time has ended it."""
        if self._services is None:
            return ProbeResult.UNREACHABLE
        is_over = self._services.clock.now().wall >= lease.expires_at
        return ProbeResult.REFUSED if is_over else ProbeResult.ALLOWED

    def outstanding(self) -> tuple[str, ...]:
        """The agent keeps no list of what it handed out."""
        return ()

    def __repr__(self) -> str:
        """For whom."""
        return f"JwtSvid({self._audience!r})"
