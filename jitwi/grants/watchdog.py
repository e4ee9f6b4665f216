# SPDX-License-Identifier: Apache-2.0
"""The one thread that keeps the promise where `with` does not come to it.

Holds deadlines of all grants, leaks, endings that are owed to a backend, and the owner's heartbeat. Does not hold the
rule that a grant is over: that is checked at each use. The thread never waits for a backend: workers do.
"""

from __future__ import annotations

import functools
import heapq
import logging
import queue
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import attrs

from jitwi.audit.events import GrantLeaked
from jitwi.credentials import Outcome
from jitwi.credentials.bounded import describe_failure
from jitwi.errors import JitwiError
from jitwi.grants import ending as _ending
from jitwi.grants.lease import EndCause

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.grants.grant import Grant
    from jitwi.grants.runtime import Runtime
    from jitwi.grants.slot import Slot

__all__ = ["Watchdog"]

_log = logging.getLogger("jitwi")

_TICK = 0.25
"""Seconds: how late an expiry, a leak or a clock step is noticed at the most."""
_HEARTBEAT = 5.0
_CLOCK_STEP = 1.0
_FIRST_RETRY = 1.0
_LAST_RETRY = 5.0
"""Small on purpose: a backend that is back gets its endings within ten seconds."""
_WORKERS = 4


@attrs.define(eq=False)
class _Repeated:
    job: Callable[[], object]
    every: float
    due_at: float
    is_running: bool = False

    def run(self) -> None:
        try:
            self.job()
        finally:
            self.is_running = False


class Watchdog:
    """Deadlines, leaks and owed endings of one process. No thread before `start()`."""

    __slots__ = (
        "_failed",
        "_heap",
        "_inbox",
        "_lock",
        "_owed",
        "_pool",
        "_repeated",
        "_runtime",
        "_stopping",
        "_thread",
    )

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owed: list[tuple[float, float, Grant, Slot]] = []
        self._failed: list[tuple[float, Callable[[], object]]] = []
        self._runtime: Runtime | None = None
        self._thread: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._stopping = False
        self._repeated: list[_Repeated] = []

    def start(self, runtime: Runtime) -> None:
        """Start the thread."""
        self._runtime = runtime
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="jitwi-end")
        self._thread = threading.Thread(target=self._run, name="jitwi-watchdog", daemon=True)
        self._thread.start()

    def watch(self, grant: Grant) -> None:
        """Remember when a grant must be over."""
        with self._lock:
            heapq.heappush(self._heap, (grant.lease.deadline.boot, grant.id))

    def leaked(self, grant_id: str) -> None:
        """Note that a block was left without its exit; callable from a finaliser, so it takes no lock."""
        self._inbox.put(lambda: self._end_leaked(grant_id))

    def call(self, job: Callable[[], None]) -> bool:
        """Have the watchdog's thread do something soon; callable from a signal handler. False if there is none."""
        thread = self._thread
        if self._stopping or thread is None or not thread.is_alive():
            return False
        self._inbox.put(job)
        return True

    def repeat(self, job: Callable[[], object], *, every: float) -> None:
        """Have a worker do something again and again, `every` seconds give or take a half; never twice at once."""
        self._repeated.append(_Repeated(job, every, self._now() + every))

    def owe(self, grant: Grant, slot: Slot) -> None:
        """Go on ending a credential whose backend was not reached."""
        with self._lock:
            self._owed.append((self._now() + _FIRST_RETRY, _FIRST_RETRY, grant, slot))

    def owed(self, name: str) -> int:
        """How many endings of issuer `name` are owed by this process."""
        with self._lock:
            return sum(1 for *_, slot in self._owed if slot.name == name)

    def close(self, timeout: float) -> None:
        """Stop the thread; what is owed stays in the journal for the reaper."""
        self._stopping = True
        self._inbox.put(lambda: None)
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _now(self) -> float:
        return self._runtime.clock.now().boot if self._runtime is not None else 0.0

    def work(self, job: Callable[[], object], *, again: bool = True) -> None:
        """Have a worker do something; what it raises is logged, and unless told otherwise it is done again."""

        def run() -> None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - the promise outlives any one failure
                _log.error("an ending failed: %s", describe_failure(error))
                if again:
                    with self._lock:
                        self._failed.append((self._now() + _FIRST_RETRY, job))

        pool = self._pool
        try:
            if pool is not None:
                pool.submit(run)
                return
        except RuntimeError:  # the interpreter is shutting down: nobody else will do it
            pass
        try:
            job()
        except Exception as error:  # noqa: BLE001 - the same
            _log.error("an ending failed: %s", describe_failure(error))

    def _run(self) -> None:
        runtime = self._runtime
        if runtime is None:
            return
        now = runtime.clock.now()
        offset = now.wall - now.boot
        next_beat = now.boot
        while not self._stopping:
            try:
                self._inbox.get(timeout=_TICK)()
                while True:
                    self._inbox.get_nowait()()
            except queue.Empty:
                pass
            except BaseException as error:  # noqa: BLE001 - the promise outlives any one failure
                _log.error("watchdog: %s", describe_failure(error))
            try:
                now = runtime.clock.now()
                if abs(now.wall - now.boot - offset) > _CLOCK_STEP:
                    offset = now.wall - now.boot
                    self._end_all_passed()
                self._end_passed(now.boot)
                self._sweep()
                self._retry(now.boot)
                self._repeat_due(now.boot)
                if now.boot >= next_beat:
                    next_beat = now.boot + _HEARTBEAT
                    self._heartbeat(runtime, now.wall)
            except BaseException as error:  # noqa: BLE001 - the promise outlives any one failure
                _log.error("watchdog: %s", describe_failure(error))

    def _repeat_due(self, boot: float) -> None:
        for one in self._repeated:
            if boot >= one.due_at and not one.is_running:
                one.due_at = boot + one.every * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
                one.is_running = True
                self.work(one.run, again=False)

    def _heartbeat(self, runtime: Runtime, wall: float) -> None:
        if not any(slot.plan.has_outside_effects for g in runtime.registry.all() for slot in list(g.slots.values())):
            return
        try:
            runtime.journal.heartbeat(runtime.owner, now=wall)
        except JitwiError as error:
            _log.error("journal: %s", error)

    def _end_passed(self, boot: float) -> None:
        runtime = self._runtime
        while runtime is not None and self._heap and self._heap[0][0] <= boot:
            with self._lock:
                _, grant_id = heapq.heappop(self._heap)
            grant = runtime.registry.get(grant_id)
            if grant is not None:
                _ending.stop(grant, EndCause.EXPIRED)

    def _end_all_passed(self) -> None:
        """After a step of the wall clock, look at every grant."""
        runtime = self._runtime
        if runtime is None:
            return
        now = runtime.clock.now()
        for grant in runtime.registry.all():
            if grant.lease.deadline.is_passed(now):
                _ending.stop(grant, EndCause.EXPIRED)

    def _sweep(self) -> None:
        """Drop heap entries of grants that are over, once they are the larger part."""
        runtime = self._runtime
        if runtime is None or len(self._heap) < _SWEEP_FROM or len(self._heap) < 2 * len(runtime.registry):
            return
        with self._lock:
            self._heap = [entry for entry in self._heap if runtime.registry.get(entry[1]) is not None]
            heapq.heapify(self._heap)

    def _end_leaked(self, grant_id: str) -> None:
        runtime = self._runtime
        grant = None if runtime is None else runtime.registry.get(grant_id)
        if runtime is None or grant is None:
            return
        runtime.audit.record_loss(GrantLeaked(grant.subject, "its block was left without its exit being run"))
        self.work(lambda: _ending.complete(grant, EndCause.LEAKED))

    def _retry(self, boot: float) -> None:
        with self._lock:
            failed = [job for at, job in self._failed if at <= boot]
            self._failed = [entry for entry in self._failed if entry[0] > boot]
            due = [entry for entry in self._owed if entry[0] <= boot]
            self._owed = [entry for entry in self._owed if entry[0] > boot]
        for job in failed:
            self.work(job)
        for _, delay, grant, slot in due:
            self.work(functools.partial(self._try_again, delay, grant, slot))

    def _try_again(self, delay: float, grant: Grant, slot: Slot) -> None:
        longer = min(delay * 2, _LAST_RETRY)
        with grant.finish_lock:
            if slot.ending is not None and slot.ending.outcome.is_over:
                return  # whoever was making it has ended it meanwhile
            _ending.end_slot(grant, slot)
        if slot.ending is not None and slot.ending.outcome is Outcome.PENDING:
            with self._lock:
                self._owed = [entry for entry in self._owed if entry[3] is not slot]
                wait = longer * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
                self._owed.append((self._now() + wait, longer, grant, slot))


_SWEEP_FROM = 1024
