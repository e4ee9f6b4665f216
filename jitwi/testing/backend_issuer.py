# SPDX-License-Identifier: Apache-2.0
"""The issuer of the testing backend, and an example of the port: plan, issue, end, probe, list. For tests only.

Holds `BackendIssuer` and the handle `BackendCredential`. Its credentials are bearer secrets, limited by the backend to
the task's permissions, uses and time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jitwi.credentials import (
    CredentialHandle,
    Issued,
    LeaseRef,
    Order,
    Plan,
    ProbeResult,
    Services,
    Strength,
)
from jitwi.errors import AccessDeniedError, ConfigurationError, GrantEndedError, IssuanceError
from jitwi.secret import Secret
from jitwi.task import Entity, Under
from jitwi.testing.backend import DEFAULT_TIMEOUT, Refusal, call_backend
from jitwi.testing.kill_point import kill_point

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitwi.credentials import Gate

__all__ = ["BackendCredential", "BackendIssuer", "BackendSession"]

KIND = "testing-backend"
PREFIX = "jitwi-"
_STRENGTHS = {s.value: s for s in (Strength.SESSIONS_CLOSED, Strength.REFUSED_AT_NEXT_USE)}


class BackendIssuer:
    """Makes credentials of a `TestingBackend`. No I/O before the first call.

    Args:
        address: `host:port` of the backend.
        admin_token: Its admin token; or
        admin_token_file: a file that holds it, read at the first call.
        serves: Names of the actions it serves; None = all.
        strength: `SESSIONS_CLOSED` (its proof looks for open sessions too) or `REFUSED_AT_NEXT_USE`.
        timeout: Seconds for each step of an exchange with the backend.

    Raises:
        ConfigurationError: Neither token nor file, or another strength.
    """

    def __init__(
        self,
        address: str,
        admin_token: Secret | None = None,
        *,
        admin_token_file: str | None = None,
        serves: Iterable[str] | None = None,
        strength: str = Strength.SESSIONS_CLOSED.value,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if admin_token is None and admin_token_file is None:
            raise ConfigurationError("the testing backend's admin token is missing", remedy="give `admin_token_file`")
        if strength not in _STRENGTHS:
            raise ConfigurationError(f"strength `{strength}` is none of `{'`, `'.join(_STRENGTHS)}`")
        self._address = address
        self._admin_token = admin_token
        self._admin_token_file = admin_token_file
        self._serves = None if serves is None else frozenset(serves)
        self._strength = _STRENGTHS[strength]
        self._timeout = timeout

    @property
    def kind(self) -> str:
        """Kind of credential."""
        return KIND

    @property
    def is_local(self) -> bool:
        """It waits for a backend."""
        return False

    @property
    def serves(self) -> frozenset[str] | None:
        """Names of the actions it serves; None = every permission."""
        return self._serves

    def start(self, services: Services) -> None:
        """Nothing is needed."""

    def plan(self, order: Order) -> Plan:
        """Say what the credential will be: exactly what was declared, as the backend counts and compares itself.

        Raises:
            IssuanceError: A permission is `under(...)` something: this backend knows single resources only.
        """
        for permission in order.permissions:
            if isinstance(permission.resource, Under):
                raise IssuanceError(
                    f"the testing backend cannot enforce `{permission}`",
                    reasons=("under",),
                    remedy="declare the resources one by one",
                )
        return Plan(
            kind=KIND,
            strength=self._strength,
            is_bearer=True,
            expires_at=order.ends_at,
            standing_right="the admin token of the testing backend: it makes and ends any credential there",
            has_outside_effects=True,
            recipe={"backend": self._address},
        )

    def issue(self, order: Order, plan: Plan) -> Issued:
        """Make it under our own lease id.

        Raises:
            IssuanceError: The backend refused or did not answer.
        """
        kill_point("backend.issue.before")
        answer = self._admin(
            "create",
            {
                "lease_id": order.lease_id,
                "permissions": [[str(p.action), str(p.resource), p.max_uses] for p in order.permissions],
                "max_uses": order.task.max_uses,
                "expires_at": plan.expires_at,
            },
        )
        secret = Secret(answer.pop("secret"), kind="backend secret")
        kill_point("backend.issue.after")
        return Issued(float(answer["expires_at"]), secret)

    def handle(self, order: Order, plan: Plan, issued: Issued, gate: Gate) -> BackendCredential:
        """Wrap it."""
        return BackendCredential(gate, self._address, issued.secret, timeout=self._timeout)

    def end(self, lease: LeaseRef) -> None:
        """End it and close its sessions; "does not exist" is success.

        Raises:
            IssuanceError: The backend refused or did not answer.
        """
        kill_point("backend.end.before")
        self._admin("end", {"lease_id": lease.lease_id})
        kill_point("backend.end.after")

    def probe(self, lease: LeaseRef, permission: tuple[Entity, Entity] | None = None) -> ProbeResult:
        """Try its secret, and look for it or a session of it in the listing; only the latter if there is no secret."""
        kill_point("backend.probe.before")
        try:
            is_live = self._is_honoured(lease, permission) or self._is_listed(lease)
        except IssuanceError:
            return ProbeResult.UNREACHABLE
        kill_point("backend.probe.after")
        return ProbeResult.ALLOWED if is_live else ProbeResult.REFUSED

    def outstanding(self) -> tuple[str, ...]:
        """Return the lease ids under our prefix that the backend lists.

        Raises:
            IssuanceError: The backend refused or did not answer.
        """
        return tuple(self._admin("list", {"prefix": PREFIX})["leases"])

    def _is_honoured(self, lease: LeaseRef, permission: tuple[Entity, Entity] | None) -> bool:
        if lease.secret is None or lease.secret.is_destroyed:
            return False
        body: dict[str, Any] = {"secret": lease.secret}
        if permission is not None:
            body |= {"action": str(permission[0]), "resource": str(permission[1])}
        try:
            call_backend(self._address, "check", body, timeout=self._timeout)
        except Refusal as refusal:
            if refusal.status in {401, 403}:
                return False
            raise
        return True

    def _is_listed(self, lease: LeaseRef) -> bool:
        if (
            self._strength is Strength.REFUSED_AT_NEXT_USE
            and lease.secret is not None
            and not lease.secret.is_destroyed
        ):
            return False
        return lease.lease_id in self._admin("list", {"prefix": lease.lease_id})["leases"]

    def _admin(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        return call_backend(self._address, operation, body, admin=self._token(), timeout=self._timeout)

    def _token(self) -> Secret:
        if self._admin_token is None:
            path = str(self._admin_token_file)
            try:
                text = Path(path).read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise IssuanceError(f"admin token file `{path}` cannot be read", reasons=("admin-token",)) from exc
            self._admin_token = Secret(text, kind="admin token")
        return self._admin_token


class BackendCredential(CredentialHandle):
    """The handle: each use passes the gate, then goes to the backend.

    Args:
        gate: What every use passes.
        address: `host:port` of the backend.
        secret: The credential; shared with the grant, which tries it once more after the end and then destroys it.
        timeout: Seconds for each step of an exchange with the backend.
    """

    __slots__ = ("_address", "_secret", "_timeout")

    def __init__(self, gate: Gate, address: str, secret: Secret | None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__(gate, kind=KIND)
        self._address = address
        self._secret = secret
        self._timeout = timeout

    def use(
        self,
        action: str | Entity,
        resource: Entity,
        input: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Do one thing at the backend.

        Returns:
            The backend's answer.

        Raises:
            GrantError: The task is over.
            AccessDeniedError: The gate, or the backend itself (`backend-refused`), said no.
            IssuanceError: The backend did not answer.
        """
        use = self._gate.check(action, resource, input=input)
        body = {"action": str(use.action), "resource": str(use.resource), "input": dict(input) if input else None}
        return _use(self._address, body, self._live(), timeout=self._timeout)

    def open_session(self) -> BackendSession:
        """Open a session at the backend, as a database client would.

        Raises:
            GrantEndedError: The handle is destroyed.
            IssuanceError: The backend refused or did not answer.
        """
        answer = call_backend(self._address, "session", {"secret": self._live()}, timeout=self._timeout)
        return BackendSession(self._gate, self._address, Secret(answer["session"], kind="session"), self._timeout)

    def destroy(self) -> None:
        """Let go of the secret."""
        self._secret = None
        super().destroy()

    def _live(self) -> Secret:
        secret = self._secret
        if secret is None:
            raise GrantEndedError("the credential is over", reasons=("destroyed",))
        return secret


class BackendSession:
    """An open session; each use passes the gate, and the backend must have closed it when the task has ended."""

    def __init__(self, gate: Gate, address: str, session: Secret, timeout: float) -> None:
        self._gate = gate
        self._address = address
        self._session = session
        self._timeout = timeout

    def use(self, action: str | Entity, resource: Entity) -> dict[str, Any]:
        """Do one thing over the session; raises as `BackendCredential.use`."""
        use = self._gate.check(action, resource)
        body = {"action": str(use.action), "resource": str(use.resource)}
        return _use(self._address, body, self._session, timeout=self._timeout)

    def unsafe_use_without_gate(self, action: str, resource: str) -> dict[str, Any]:
        """What a thief of the session would do: for tests that it is closed."""
        body = {"action": action, "resource": resource}
        return _use(self._address, body, self._session, timeout=self._timeout)


def _use(address: str, body: dict[str, Any], secret: Secret, *, timeout: float) -> dict[str, Any]:
    try:
        return call_backend(address, "use", {**body, "secret": secret}, timeout=timeout)
    except Refusal as refusal:
        raise AccessDeniedError("the backend refused this use", reasons=("backend-refused",)) from refusal
