# SPDX-License-Identifier: Apache-2.0
"""How often a task was used at this Guard.

Holds the reservation of one use: of the task, and of one of the permissions that cover it. Does not hold the counter:
that is the proof ledger, shared by the processes of the host.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import attrs

from jitwi.errors import JitwiError
from jitwi.guard.errors import UsesExhaustedError
from jitwi.task import MAX_USES, Entity, Permission, Under

if TYPE_CHECKING:
    from jitwi.state import ProofLedger
    from jitwi.tokens import VerifiedTaskToken

__all__ = ["Reserved", "reserve"]

_LOG = logging.getLogger("jitwi.guard")


@attrs.define(eq=False)
class Reserved:
    """One use, reserved.

    Args:
        permission: The permission that it rests on.
        number: It is the n-th use of the task; 0 where the task's uses are not counted.
    """

    permission: Permission
    number: int
    _ledger: ProofLedger
    _keys: list[str]

    def take(self, key: str, limit: int, until: float) -> int:
        """Reserve one use of `key` and return its number.

        Raises:
            UsesExhaustedError: None is left.
        """
        number = self._ledger.reserve(key, limit=limit, expires_at=until)
        if not number:
            raise UsesExhaustedError(f"the {limit} declared uses are used up", reasons=("max-uses",))
        self._keys.append(key)
        return number

    def take_of(self, permission: Permission, token: VerifiedTaskToken, until: float) -> None:
        """Rest this use on `permission`, and reserve one of its uses if they are limited.

        Raises:
            UsesExhaustedError: None is left.
        """
        if permission.max_uses is not None:
            self.take(f"{_whose(token)} {_name(permission)}", permission.max_uses, until)
        self.permission = permission

    def give_back(self) -> None:
        """Give the use back, after a deny. What cannot be given back stays counted."""
        while self._keys:
            key = self._keys.pop()
            try:
                self._ledger.release(key)
            except JitwiError as error:
                _LOG.warning("a use that was denied stays counted: %s", error)


def reserve(
    ledger: ProofLedger, token: VerifiedTaskToken, covering: tuple[Permission, ...], *, count: bool
) -> Reserved:
    """Reserve one use of the task and of the first covering permission that has one left.

    Args:
        ledger: The counter.
        token: The verified token; uses are counted per workload and task key, over re-minted tokens.
        covering: Permissions that hold the use, at least one.
        count: True to count uses of the task even if it has no limit, as some policy may read `used`.

    Raises:
        UsesExhaustedError: None is left.
        SharedStateError: The counter cannot answer.
    """
    # A token that is re-minted ends with its task at the latest, and the task is no longer than its ttl: a count that
    # is kept for that long from each minting on outlives them all.
    until = max(float(token.expires_at), token.issued_at + float(token.facts["ttl"]))
    done = Reserved(covering[0], 0, ledger, [])
    try:
        if token.max_uses is not None or count:
            done.number = done.take(_whose(token), MAX_USES if token.max_uses is None else token.max_uses, until)
        for permission in covering[:-1]:
            try:
                done.take_of(permission, token, until)
            except UsesExhaustedError:
                continue
            return done
        done.take_of(covering[-1], token, until)
    except BaseException:
        done.give_back()
        raise
    return done


def _whose(token: VerifiedTaskToken) -> str:
    return f"{token.spiffe_id} {token.jkt}"


def _name(permission: Permission) -> str:
    """One text per permission, whatever characters its ids have."""
    action, scope = permission.action, permission.resource
    resource = scope.entity if isinstance(scope, Under) else scope
    named = [action.type, action.id] if isinstance(action, Entity) else [action]
    return json.dumps([*named, resource.type, resource.id, isinstance(scope, Under)])
