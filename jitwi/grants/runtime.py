# SPDX-License-Identifier: Apache-2.0
"""What all grants of one `JIT` in one process share.

Holds references to the rooms that a grant needs, and the settings. Does not hold rules: it is handed to the three
procedures (opening, using, ending) so that they read from top to bottom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from jitwi.errors import ConfigurationError, PolicyEvaluationError
from jitwi.policy import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitwi.audit.port import Audit
    from jitwi.clock import Clock
    from jitwi.credentials import Issuer
    from jitwi.grants.ending import Ending
    from jitwi.grants.grant import Grant
    from jitwi.grants.registry import Registry
    from jitwi.grants.watchdog import Watchdog
    from jitwi.identity import IdentitySource
    from jitwi.journal import Journal, Owner
    from jitwi.policy import ActionShape, PolicySnapshot, PolicyStore
    from jitwi.state import Endings

__all__ = ["Runtime", "Settings"]

_EVIDENCE_BY_KIND = {evidence.value: evidence for evidence in Evidence} | {"jwt-svid-bearer": Evidence.JWT_SVID}


@attrs.frozen
class Settings:
    """The knobs of a `JIT`.

    Args:
        identity_timeout: Seconds that a task waits for an identity.
        issuer_timeout: Seconds that an issuer may take for one call.
        end_timeout: Seconds that a block's exit waits for a backend before it reports `pending`.
        max_refused_uses: Refused uses after which a task is ended.
        max_pending_endings: Unfinished endings of one issuer above which it issues no more.
        on_ending: Called with each grant and its ending, on the thread that ended it.
    """

    identity_timeout: float = 2.0
    issuer_timeout: float = 10.0
    end_timeout: float = 5.0
    max_refused_uses: int = 10
    max_pending_endings: int = 10
    on_ending: Callable[[Grant, Ending], None] | None = None


@attrs.define(slots=True, eq=False, repr=False)
class Runtime:
    """The rooms of one process.

    Args:
        pid: The process it was made in; anywhere else it is dead.
        clock: The clock.
        identity: Source of the caller's identity.
        policies: Store of policy snapshots.
        audit: The audit log.
        journal: Called only where an issuer has effects outside the process.
        owner: This process, as the journal names it.
        endings: Endings that Guards of this host can see.
        issuers: By configured name.
        settings: The knobs.
        registry: Live grants.
        watchdog: Deadlines and owed endings.
        is_stopping: True from the moment on that its tasks are being ended for good: none opens any more.
    """

    pid: int
    clock: Clock
    identity: IdentitySource
    policies: PolicyStore
    audit: Audit
    journal: Journal
    owner: Owner
    endings: Endings
    issuers: Mapping[str, Issuer]
    settings: Settings
    registry: Registry
    watchdog: Watchdog
    seen_epoch: int = 0
    is_stopping: bool = False
    _serving: dict[tuple[str, str, str], tuple[str, ...]] = attrs.field(factory=dict, init=False)

    def serving(self, snapshot: PolicySnapshot, shape: ActionShape) -> tuple[str, ...]:
        """Return the names of the issuers that serve an action.

        Raises:
            ConfigurationError: An issuer serves an action that the schema does not know, or, among several, says
                nothing about what it serves.
        """
        key = (snapshot.digest, shape.action.type, shape.action.id)
        known = self._serving.get(key)
        if known is None:
            known = tuple(name for name, issuer in self.issuers.items() if self._serves(snapshot, name, issuer, shape))
            if len(self._serving) > _MAX_SERVING:
                self._serving.clear()
            self._serving[key] = known
        return known

    def _serves(self, snapshot: PolicySnapshot, name: str, issuer: Issuer, shape: ActionShape) -> bool:
        if issuer.serves is None:
            if len(self.issuers) > 1:
                msg = f"issuer `{name}` does not say which actions it serves"
                raise ConfigurationError(msg, remedy="with several issuers, give each `serves=[...]`")
            return True
        try:
            return any(snapshot.action(served).action == shape.action for served in issuer.serves)
        except PolicyEvaluationError as exc:
            msg = f"issuer `{name}` serves an action that the schema does not have: {exc.message}"
            raise ConfigurationError(msg, remedy="correct `serves=[...]` of the issuer") from exc

    def evidence(self, names: tuple[str, ...]) -> Evidence:
        """Return what `context.evidence` says at open, for an action served by the issuers `names`."""
        for name in names:
            if self.issuers[name].kind == Evidence.TASK_TOKEN.value:
                return Evidence.TASK_TOKEN
        return Evidence.LOCAL

    @staticmethod
    def evidence_of(kind: str) -> Evidence:
        """Return what `context.evidence` says at the use of a handle of this kind."""
        return _EVIDENCE_BY_KIND.get(kind, Evidence.LOCAL)


_MAX_SERVING = 4096
