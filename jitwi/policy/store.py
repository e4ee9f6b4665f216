# SPDX-License-Identifier: Apache-2.0
"""The current set of policies: loaded, reloaded, kept when a new one is bad.

Holds `PolicyStore`, what a JIT and a Guard carry. Does not watch files: a reload is an explicit call.

Example:
    >>> from jitwi.policy.store import PolicyStore
    >>> store = PolicyStore.from_text(
    ...     policies="permit(principal, action, resource);",
    ...     schema="entity Thing; action look appliesTo { principal: Jitwi::Workload, resource: Thing,"
    ...     " context: { task: Jitwi::Task } };",
    ... )
    >>> [str(shape.action) for shape in store.load().actions]
    ['Action::"look"']
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import attrs

from jitwi.clock import Clock, Deadline, SystemClock
from jitwi.errors import ConfigurationError, InvalidPolicyError, StateError
from jitwi.policy.folder import ENTITIES, TASKS, read_folder, sources_from
from jitwi.policy.loader import load
from jitwi.policy.provider import ProviderThreads
from jitwi.policy.snapshot import PolicySnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.policy.provider import EntityProvider

__all__ = ["PolicyEvent", "PolicyStore"]


@attrs.frozen(eq=False)
class PolicyEvent:
    """Something that happened to the set of policies, for the record.

    Args:
        kind: `loaded`, `reloaded` or `refused`.
        digest: Digest of the set that is in force, or empty where there is none.
        previous: Digest of the set before, or empty.
        warnings: Of the new set.
        error: Why a set was refused, or None.
    """

    kind: str
    digest: str
    previous: str = ""
    warnings: tuple[str, ...] = ()
    error: InvalidPolicyError | None = None


class PolicyStore:
    """Holds the last good set; no I/O before `load()`.

    Args:
        source: A folder, or a mapping of file name to content.
        provider: Facts of resources that `entities.json` does not hold.
        provider_timeout: For all questions to the provider of one decision.
        clock: Where instants come from.
        staleness_limit: How long the last good set answers while reloads fail, counted from the first failure;
            None = for ever.
        on_event: Called with each `PolicyEvent` before it takes effect; what it raises stops a load or reload.

    Raises:
        ConfigurationError: A duration that is not a positive `timedelta`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Mapping[str, str | bytes],
        *,
        provider: EntityProvider | None = None,
        provider_timeout: timedelta = timedelta(seconds=1),
        clock: Clock | None = None,
        staleness_limit: timedelta | None = None,
        on_event: Callable[[PolicyEvent], None] | None = None,
    ) -> None:
        for name, value in (("provider_timeout", provider_timeout), ("staleness_limit", staleness_limit)):
            if value is not None and not (isinstance(value, timedelta) and value > timedelta(0)):
                raise ConfigurationError(
                    f"`{name}` is not a positive `timedelta`", reasons=(name,), remedy="write `timedelta(seconds=1)`"
                )
        self._source: str | Mapping[str, str | bytes] = (
            dict(source) if isinstance(source, Mapping) else os.fspath(source)
        )
        self._provider = provider
        self._provider_timeout = provider_timeout.total_seconds()
        self._threads = ProviderThreads() if provider is not None else None
        self._clock = clock or SystemClock()
        self._limit = None if staleness_limit is None else staleness_limit.total_seconds()
        self._on_event = on_event
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._snapshot: PolicySnapshot | None = None
        self._stale: PolicySnapshot | None = None
        self._stale_at: Deadline | None = None

    @classmethod
    def from_text(
        cls,
        *,
        policies: str,
        schema: str,
        entities: str | None = None,
        tasks: str | None = None,
        provider: EntityProvider | None = None,
        clock: Clock | None = None,
    ) -> PolicyStore:
        """Hold texts instead of a folder: for tests and for sets that come from elsewhere.

        Args:
            policies: Cedar policies.
            schema: Cedar schema.
            entities: JSON list of entities.
            tasks: TOML of task classes.
            provider: See the class.
            clock: See the class.
        """
        files: dict[str, str | bytes] = {"policies.cedar": policies, "schema.cedarschema": schema}
        if entities is not None:
            files[ENTITIES] = entities
        if tasks is not None:
            files[TASKS] = tasks
        return cls(files, provider=provider, clock=clock)

    def __repr__(self) -> str:
        where = self._source if isinstance(self._source, str) else f"<{len(self._source)} texts>"
        return f"PolicyStore({where!r}, {'loaded' if self._snapshot is not None else 'not loaded'})"

    def load(self) -> PolicySnapshot:
        """Load the set if that has not been done.

        Raises:
            InvalidPolicyError: It is refused; there is no set to fall back on.
        """
        with self._exclusively():
            return self._snapshot if self._snapshot is not None else self._replace()

    def reload(self) -> PolicySnapshot:
        """Load the set again; a bad one leaves the last good one in force.

        Raises:
            InvalidPolicyError: The new set is refused.
        """
        with self._exclusively():
            return self._replace()

    @property
    def snapshot(self) -> PolicySnapshot:
        """The set in force; once reloads have failed for longer than the limit, one that denies everything.

        Raises:
            StateError: Nothing was loaded.
        """
        snapshot, stale_at = self._snapshot, self._stale_at
        if snapshot is None:
            raise StateError("policies are not loaded", reasons=("not-loaded",), remedy="call `load()` first")
        if stale_at is not None and stale_at.is_passed(self._clock.now()):
            return self._stale or snapshot.as_stale()
        return snapshot

    @property
    def may_block(self) -> bool:
        """True if a decision may wait for an entity provider."""
        return self._provider is not None

    @property
    def is_stale(self) -> bool:
        """True if everything is denied because reloads have failed for longer than the limit."""
        return self._snapshot is not None and self.snapshot.is_stale

    def _exclusively(self) -> threading.Lock:
        if self._pid != os.getpid():  # a lock that was held while forking is never given back
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock

    def _replace(self) -> PolicySnapshot:
        before = self._snapshot
        previous = "" if before is None else before.digest
        try:
            source = self._source
            sources = read_folder(source) if isinstance(source, str) else sources_from(source)
            loaded = load(sources, has_provider=self._provider is not None)
        except InvalidPolicyError as exc:
            if before is not None and self._limit is not None and self._stale_at is None:
                self._stale = before.as_stale()
                self._stale_at = Deadline.after(self._clock.now(), seconds=self._limit)
            self._tell(PolicyEvent("refused", previous, previous, (), exc))
            raise
        snapshot = PolicySnapshot(
            loaded,
            clock=self._clock,
            provider=self._provider,
            threads=self._threads,
            provider_timeout=self._provider_timeout,
        )
        kind = "loaded" if before is None else "reloaded"
        self._tell(PolicyEvent(kind, snapshot.digest, previous, snapshot.warnings))
        self._snapshot, self._stale_at, self._stale = snapshot, None, None
        return snapshot

    def _tell(self, event: PolicyEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
