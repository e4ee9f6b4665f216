# SPDX-License-Identifier: Apache-2.0
"""Rotation and revocation of signing authorities, banning and evicting the agent, each seen through to its effect."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from spirestack.config import write_private
from spirestack.errors import SpireDevError
from spirestack.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spirestack.domain import Domain
    from spirestack.lifecycle import StackLifecycle
    from spirestack.personas import Persona

    class _Host(StackLifecycle):
        def personas(self) -> dict[str, Persona]: ...

else:
    _Host = object

ROTATION_SECONDS = 60.0
_PROBE_AUDIENCE = "spire-dev-probe"


class RotationMixin(_Host):
    """The part of a stack that changes signing keys and the agent's standing."""

    def rotate_x509(self, *, keep_old: bool = False, timeout: float = ROTATION_SECONDS) -> str:
        """New X.509 authority: prepare, activate, taint and revoke the old, each seen at the workloads.

        Args:
            keep_old: Stop after activating; the old root stays trusted.
            timeout: Seconds for each step.

        Returns:
            Id of the new authority.
        """
        new, old = self._renew("x509", lambda key: self._each_x509(in_bundle=key), timeout)
        if not keep_old:
            self.domain.authority("x509", "taint", old)
            # The agent's own SVID must be signed anew too, or revoking would lock it out.
            _wait(lambda: self.domain.node_state()[0] == new, "the agent's SVID of the new authority", timeout)
            _wait(self._each_x509(signed_by=new), "SVIDs of the new authority", timeout)
            self.domain.authority("x509", "revoke", old)
            _wait(self._each_x509(not_in_bundle=old), "a bundle without the old authority", timeout)
            # A restarted agent with lost data starts from this file: it must hold the root in force.
            write_private(self.run_dir / "bootstrap.crt", self.domain.bundle().encode())
        self.exchange_bundles()
        return new

    def rotate_jwt(self, *, keep_old: bool = False, timeout: float = ROTATION_SECONDS) -> str:
        """New JWT authority: prepare, activate, taint and revoke the old, each seen at the workloads.

        Args:
            keep_old: Stop after activating; tokens of the old key stay valid.
            timeout: Seconds for each step.

        Returns:
            Id of the new authority.
        """
        new, old = self._renew("jwt", lambda key: self._each_jwt(in_bundle=key), timeout)
        if not keep_old:
            self.domain.authority("jwt", "taint", old)
            _wait(self._each_jwt(signed_by=new), "JWT-SVIDs of the new authority", timeout)
            self.domain.authority("jwt", "revoke", old)
            _wait(self._each_jwt(not_in_bundle=old), "a JWT bundle without the old authority", timeout)
        self.exchange_bundles()
        return new

    def rotate_all(self, *, keep_old: bool = False, timeout: float = ROTATION_SECONDS) -> tuple[str, str]:
        """Both rotations; returns both new authorities' ids, X.509 first."""
        return self.rotate_x509(keep_old=keep_old, timeout=timeout), self.rotate_jwt(keep_old=keep_old, timeout=timeout)

    def ban_agent(self, *, timeout: float = ROTATION_SECONDS) -> None:
        """Ban the agent and wait until it has ended itself; `start_agent` lifts the ban."""
        agent = self.process("agent")
        self.domain.server("agent", "ban", "-spiffeID", self.domain.agent_id)
        agent.wait_gone(timeout=timeout)

    def evict_agent(self, *, timeout: float = ROTATION_SECONDS) -> None:
        """Forget the agent and wait until it has attested itself again."""
        before = self.domain.agent_record().get("x509svid_serial_number")
        if before is None:
            raise SpireDevError("the server does not know the agent")
        self.domain.server("agent", "evict", "-spiffeID", self.domain.agent_id)

        def is_back() -> bool:
            serial = self.domain.agent_record().get("x509svid_serial_number")
            return serial is not None and serial != before

        wait_until(is_back, "the agent attested again", timeout=timeout)

    def _renew(self, kind: str, sees: Callable[[str], Callable[[], bool]], timeout: float) -> tuple[str, str]:
        domain = self.domain
        old = domain.authorities(kind)["active"]
        domain.authority(kind, "prepare")
        new = domain.authorities(kind)["prepared"]
        _wait(sees(new), f"a bundle with the new {kind} authority", timeout)
        domain.authority(kind, "activate", new)
        return new, old

    def _served(self) -> list[Path]:
        sockets = [person.folder / "api.sock" for person in self.personas().values() if person.is_open()]
        sockets.append(self.run_dir / "w" / "api.sock")
        return [socket for socket in sockets if self.domain.fetch(socket)]

    def _each_x509(self, *, in_bundle: str = "", not_in_bundle: str = "", signed_by: str = "") -> Callable[[], bool]:
        domain, sockets = self.domain, self._served()

        def fits(authority: str, bundle: frozenset[str]) -> bool:
            return (
                (not in_bundle or in_bundle in bundle)
                and not_in_bundle not in bundle
                and (not signed_by or authority == signed_by)
            )

        def look() -> bool:
            if not fits(*domain.node_state()):
                return False
            answers = [domain.fetch(socket) for socket in sockets]
            return all(svids and all(fits(svid.authority_id, svid.bundle_ids) for svid in svids) for svids in answers)

        return look

    def _each_jwt(self, *, in_bundle: str = "", not_in_bundle: str = "", signed_by: str = "") -> Callable[[], bool]:
        domain, sockets = self.domain, self._served()

        def look() -> bool:
            return all(_jwt_fits(domain, socket, in_bundle, not_in_bundle, signed_by) for socket in sockets)

        return look


def _jwt_fits(domain: Domain, socket: Path, in_bundle: str, not_in_bundle: str, signed_by: str) -> bool:
    tokens, keys = domain.fetch_jwt(socket, _PROBE_AUDIENCE)
    signers = {_key_id(token) for token in tokens}
    return (
        bool(tokens)
        and (not in_bundle or in_bundle in keys)
        and not_in_bundle not in keys
        and (not signed_by or signers == {signed_by})
    )


def _key_id(token: str) -> str:
    header = token.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])


def _wait(look: Callable[[], bool], what: str, timeout: float) -> None:
    wait_until(look, what, timeout=timeout, poll=0.1)
