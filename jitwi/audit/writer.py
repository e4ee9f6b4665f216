# SPDX-License-Identifier: Apache-2.0
"""The writer of one chain: the short way to the file, the thread for everything else, and what happens on failure.

Holds the order of steps and the deadlines. Does not hold the port (`log.py`), the form of lines (`chain.py`) or calls
to the disk (`files.py`).

Two ways to the file. A record that need not be synced is written by its own thread, under a short lock. Everything
else goes through one thread, which syncs once for all that wait (group commit): records that must be durable, opening,
and whatever comes after a failure. That thread also looks, every 100 ms of activity and every 4,096 records, whether
the file is still in its place; the short way is only open for so long. So a caller waits at most its deadline for a
disk that hangs, and the next ones are refused at once. The one exception: a disk that begins to hang inside those
100 ms keeps the one thread that is writing an unsynced line at that moment.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, Final

from jitwi.audit.chain import Stamp
from jitwi.audit.files import ChainFile, Folder
from jitwi.audit.spool import Job, Spool
from jitwi.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jitwi.audit.events import Event
    from jitwi.audit.sinks import SinkFeed
    from jitwi.clock import Clock

__all__ = ["REMEDY", "Writer", "typed"]

REMEDY: Final = "look at the disk and the permissions of the audit folder; endings go on meanwhile"
_LOG = logging.getLogger("jitwi.audit")
_SHORT_WAY_SECONDS: Final = 0.1
_SHORT_WAY_RECORDS: Final = 4096
_RETRY: Final = 1.0
_IDLE: Final = 60.0
_BATCH: Final = 512
_ANCHOR_EVERY: Final = 1024


def _late() -> AuditError:
    return AuditError("the audit disk does not answer", reasons=("late",), remedy=REMEDY)


def typed(exc: Exception) -> AuditError:
    """Return a fresh AuditError for `exc`: each caller raises one of its own."""
    if isinstance(exc, AuditError):
        return AuditError(exc.message, reasons=exc.reasons, remedy=exc.remedy or REMEDY)
    if isinstance(exc, OSError):
        what = exc.strerror or type(exc).__name__
        code = errno.errorcode.get(exc.errno or 0, "io").lower()
        return AuditError(f"the audit chain cannot be written: {what}", reasons=(code,), remedy=REMEDY)
    return AuditError(f"the audit writer failed: {type(exc).__name__}", reasons=("internal",), remedy=REMEDY)


class Writer:
    """Writes one chain after another into a folder, for one process.

    Args:
        path: The folder.
        clock: Where instants come from.
        encode: The log's encoder.
        feeds: Second places for each line.
        patience: How long a caller waits at most, seconds.
    """

    def __init__(
        self, path: Path, clock: Clock, encode: Callable[[Event], bytes], feeds: tuple[SinkFeed, ...], patience: float
    ) -> None:
        self.pid = os.getpid()
        self.spool = Spool()
        self.short_way_until = -1.0
        """Boot-time instant until when records may go the short way."""
        self.short_way_left = 0
        """How many more may."""
        self._clock = clock
        self._encode = encode
        self._feeds = feeds
        self._patience = patience
        self._stamp = Stamp()
        self._folder = Folder(path)
        self._chain: ChainFile | None = None
        self._lock = threading.RLock()  # releasing it is safe where acquiring may have been interrupted
        self._is_inside = False
        self._is_lock_late = False
        self._on_short_way: set[int] = set()  # threads
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._operation = 0  # odd while the thread is at work
        self._late_operation = -1  # one that did not end within a caller's deadline
        self._slow_operation = -1  # one that an ending has waited for as long as it does

    @property
    def is_open(self) -> bool:
        """True while a chain is open."""
        return self._chain is not None

    @property
    def has_started(self) -> bool:
        """True once there is a thread."""
        return self._thread is not None

    @property
    def head(self) -> tuple[str, int, str] | None:
        """Name, number and hash of the last record of the open chain."""
        chain = self._chain
        return None if chain is None else chain.head

    # --- the short way ------------------------------------------------------------------------------------------------

    def write_directly(self, at: bytes, body: bytes, patience: float) -> None:
        """Write one record in the caller's thread, not synced.

        Args:
            at: The instant as text.
            body: The encoded event.
            patience: How long to wait for another thread's write, seconds.

        Raises:
            OSError: It was not written.
            AuditError: Not in time; or in the middle of another record of this very thread (a signal handler).
        """
        self.short_way_left -= 1
        lock, ident = self._lock, threading.get_ident()
        is_nested = ident in self._on_short_way  # a signal handler or finalizer of this very thread
        try:
            self._on_short_way.add(ident)
            if not lock.acquire(True, 0.0 if self._is_lock_late else patience):  # noqa: FBT003 - positional in C
                self._is_lock_late = True
                raise _late()
            self._is_lock_late = False
            chain = self._chain
            if self._is_inside or chain is None:
                raise AuditError("the audit chain is busy", reasons=("busy",), remedy=REMEDY)
            self._is_inside = True
            try:
                line = chain.append(at, body)
                for feed in self._feeds:
                    feed.put(line)
            finally:
                self._is_inside = False
        finally:
            # A signal may raise after any call, so release always: RuntimeError says that the lock was not ours.
            try:
                lock.release()
            except RuntimeError:
                pass
            finally:
                if not is_nested:
                    self._on_short_way.discard(ident)

    def close_short_way(self) -> None:
        """Send everything through the thread until it has seen the disk work."""
        self.short_way_until = -1.0

    # --- through the thread -------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a record.

        Raises:
            AuditError: The disk is known not to answer, or there can be no thread. A record of loss is queued anyway.
        """
        if job.is_loss:
            self._queue.put(job)
        elif self._late_operation == self._operation:
            raise _late()
        else:
            self._queue.put(job)
        if self._thread is None:
            self._start()

    def wait(self, job: Job, patience: float) -> bool:
        """Wait until a queued record was dealt with; False if that takes longer than `patience` seconds."""
        if self._operation in (self._late_operation, self._slow_operation if job.is_loss else -1):
            return False
        if threading.current_thread() is self._thread or threading.get_ident() in self._on_short_way:
            return False  # called by a finalizer or signal handler in the middle of a record: it would wait for itself
        if job.done.acquire(timeout=patience):
            return True
        operation = self._operation
        if operation & 1 and job.is_loss:
            self._slow_operation = operation
        elif operation & 1:
            self._late_operation = operation
        return False

    def require(self, job: Job) -> None:
        """Queue a record and wait until it is written, and on disk if it is durable.

        Raises:
            AuditError: It is not, or not in time. It may still be written: the record of something that did not happen.
        """
        is_done = False
        try:
            self.submit(job)
            is_done = self.wait(job, self._patience)
        finally:
            if not is_done:
                job.is_abandoned = True
        if not is_done:
            raise _late()
        if job.error is not None:
            raise typed(job.error) from job.error

    def join(self, patience: float) -> None:
        """Wait for the thread to end, `patience` seconds at most."""
        thread = self._thread
        if thread is not None:
            thread.join(patience)

    def leave(self, at: bytes) -> None:
        """Have the chain closed, the log being garbage: nobody waits for it."""
        if self._thread is not None and self.pid == os.getpid():
            self._queue.put(Job(at, 0.0, b"", durable=True, closing=True))

    def forget(self) -> None:
        """In a forked child: close our copies of the parent's descriptors, write nothing."""
        if self._chain is not None:
            self._chain.abandon()
        self._folder.close()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="jitwi-audit", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError as exc:
                self._thread = None
                raise AuditError("no thread can be started", reasons=("shutdown",), remedy=REMEDY) from exc

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        waiting, spool = self._queue, self.spool
        while True:
            batch: list[Job] = []
            with contextlib.suppress(queue.Empty):
                batch.append(waiting.get(timeout=_RETRY if spool.jobs else _IDLE))
                while len(batch) < _BATCH and not batch[-1].is_closing:
                    batch.append(waiting.get_nowait())
            if not batch and not spool.jobs:
                continue
            self._operation += 1
            try:
                self._commit(batch)
            finally:
                self._operation += 1
                for job in batch:
                    job.done.release()
            if batch and batch[-1].is_closing:
                return
            self._operation += 1
            self._anchor()
            self._operation += 1

    def _commit(self, batch: list[Job]) -> None:
        """Write a batch and sync once; what fails is marked, and held where it records a loss."""
        spool = self.spool
        is_closing = bool(batch) and batch[-1].is_closing
        if is_closing and len(batch) == 1 and self._chain is None and not spool.jobs:
            self._folder.close()
            return
        written: list[Job] = []  # from the spool
        done = 0  # of the batch
        has_gap = False
        failure: Exception | None = None
        try:
            with self._section():
                at = self._stamp(self._clock.now().wall)
                self._prepare(at)
                has_gap = self._state_gap(at)
                while spool.jobs:
                    self._append(spool.jobs[0])
                    written.append(spool.jobs.popleft())
                for job in batch:
                    if job.body and not job.is_abandoned:
                        self._append(job)
                    done += 1
        except Exception as exc:  # noqa: BLE001 - every caller gets it, typed
            failure = exc
        try:
            if is_closing and failure is None:
                self._close(batch[-1].at)
            elif has_gap or written or any(job.is_durable for job in batch[:done]):
                self._sync()
        except Exception as exc:  # noqa: BLE001 - the same; and nothing of this batch counts as written
            failure = exc
            done = 0
            has_gap = False
            spool.jobs.extendleft(reversed(written))
            written = []
            self._drop_chain()
        spool.settle(is_recorded=has_gap)
        spool.release(written)
        spool.release(batch[:done])
        if failure is None:
            self._open_short_way()
            return
        for job in batch[done:]:
            job.error = failure
            if job.is_loss:
                spool.jobs.append(job)
        self.report(typed(failure), batch[0].wall if batch else 0.0)

    def report(self, exc: AuditError, wall: float, *, refused: int = 0) -> None:
        """Open a gap, or add to it, and say so once."""
        self.close_short_way()
        if self.spool.note(wall, exc.message, refused=refused):
            _LOG.error("audit failure, issues and uses are refused: %s", exc)

    def _prepare(self, at: bytes) -> None:
        """Open a chain, or make sure that the open one is where it should be."""
        chain = self._chain
        if chain is not None:
            try:
                chain.require_place()
            except (OSError, AuditError):
                self._drop_chain()
                raise
            return
        self._folder.open()
        self._chain = chain = ChainFile(self._folder, at, patience=self._patience)
        for feed in self._feeds:
            feed.put(chain.opening)

    def _state_gap(self, at: bytes) -> bool:
        gap = self.spool.state_gap()
        if gap is None:
            return False
        self._append(Job(at, 0.0, self._encode(gap), durable=True))
        return True

    def _append(self, job: Job) -> None:
        chain = self._chain
        if chain is None:
            raise AuditError("no chain is open", reasons=("closed",))
        line = chain.append(job.at, job.body)
        for feed in self._feeds:
            feed.put(line)

    def _sync(self) -> None:
        chain = self._chain
        if chain is not None:
            chain.sync()

    def _close(self, at: bytes) -> None:
        with self._section():
            chain, self._chain = self._chain, None
            self.close_short_way()
            try:
                if chain is not None:
                    line = chain.close(at, patience=self._patience)
                    for feed in self._feeds:
                        feed.put(line)
            finally:
                self._folder.close()

    def _open_short_way(self) -> None:
        if self._chain is not None and not self.spool.is_open:
            self.short_way_left = _SHORT_WAY_RECORDS
            self.short_way_until = self._clock.now().boot + _SHORT_WAY_SECONDS

    def _anchor(self) -> None:
        """State the chain in the index if it has grown enough; nobody waits for it."""
        chain = self._chain
        if chain is not None and chain.records - chain.anchored >= _ANCHOR_EVERY:
            try:
                chain.anchor(self._stamp(self._clock.now().wall))
            except OSError as exc:
                if exc.errno != errno.ETIMEDOUT:  # else another process has the index: the next batch tries
                    self._drop_chain()
                    self.report(typed(exc), self._clock.now().wall)
            except AuditError as exc:
                self.report(typed(exc), self._clock.now().wall)

    def _drop_chain(self) -> None:
        """Give the chain up after a failure that it cannot be trusted after; the next record opens another."""
        self.close_short_way()
        with contextlib.suppress(AuditError), self._section():
            chain, self._chain = self._chain, None
            if chain is not None:
                chain.abandon()

    @contextlib.contextmanager
    def _section(self) -> Iterator[None]:
        """The thread's turn at the chain; reentrant, as no signal handler runs in it."""
        if not self._lock.acquire(timeout=0.0 if self._is_lock_late else self._patience):
            self._is_lock_late = True
            raise _late()
        self._is_lock_late = False
        was_inside, self._is_inside = self._is_inside, True
        try:
            yield
        finally:
            self._is_inside = was_inside
            self._lock.release()
