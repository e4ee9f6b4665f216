# SPDX-License-Identifier: Apache-2.0
"""Facts of resources that live elsewhere: the entity provider, asked with a deadline.

Holds the port and the few daemon threads in which a provider runs, so that one that hangs costs a deny and not the
caller. Does not hold a cache of facts: they are asked for at each decision.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from jitwi.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from jitwi.policy.entities import EntityRecord
    from jitwi.task import Entity

__all__ = ["EntityProvider", "ProviderError", "ProviderThreads"]

MAX_THREADS = 8


class EntityProvider(Protocol):
    """Port: where a deciding side keeps the facts of its resources."""

    def entities(self, uids: Collection[Entity]) -> Iterable[EntityRecord]:
        """Return a record for each of `uids` that exists, and any ancestors that are at hand.

        Called in a thread of its own, by several at once. What is not returned is unknown, and unknown is a deny.

        Args:
            uids: Resources, and what they refer to; from callers, so not to be trusted as text.
        """
        ...


class ProviderError(PolicyError):
    """A provider failed, took too long, or all of its threads are busy; becomes a deny in this room."""

    code = "entity-provider"


class _Job:
    __slots__ = ("answer", "done", "error", "work")

    def __init__(self, work: Callable[[], list[EntityRecord]]) -> None:
        self.work = work
        self.answer: list[EntityRecord] | None = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


class ProviderThreads:
    """At most `MAX_THREADS` daemon threads, started when needed, abandoned in a forked child."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads = 0
        self._free = 0
        self._pid = os.getpid()

    def ask(
        self, provider: EntityProvider, uids: Collection[Entity], *, timeout: float, limit: int
    ) -> list[EntityRecord]:
        """Ask a provider and wait for its answer.

        Args:
            provider: Whom to ask.
            uids: What for.
            timeout: Seconds to wait.
            limit: Records to take at most.

        Raises:
            ProviderError: No answer in time, a failure, too many records, or all threads busy.
        """
        if self._pid != os.getpid():
            self._reset()

        def work() -> list[EntityRecord]:
            records: list[EntityRecord] = []
            for record in provider.entities(uids):
                if len(records) == limit:
                    msg = f"more than {limit} records"
                    raise ProviderError(msg)
                records.append(record)
            return records

        job = _Job(work)
        with self._lock:
            if self._free > 0:
                self._free -= 1
            elif self._threads < MAX_THREADS:
                self._threads += 1
                threading.Thread(target=self._run, args=(self._jobs,), name="jitwi-entities", daemon=True).start()
            else:
                msg = "all threads for the provider are busy"
                raise ProviderError(msg)
            self._jobs.put(job)
        if not job.done.acquire(timeout=max(timeout, 0.0)):
            msg = f"no answer within {timeout:g} s"
            raise ProviderError(msg)
        if job.error is not None:
            msg = f"the provider failed: {type(job.error).__name__}"
            raise ProviderError(msg) from job.error
        return job.answer or []

    def _run(self, jobs: SimpleQueue[_Job]) -> None:
        while True:
            job = jobs.get()
            try:
                job.answer = job.work()
            except BaseException as exc:  # noqa: BLE001 - whatever a provider raises is a deny
                job.error = exc
            with self._lock:
                self._free += 1
            job.done.release()
            del job
