# SPDX-License-Identifier: Apache-2.0
"""The audit log of one process: takes events, refuses when it cannot record them.

Holds `AuditLog`, the implementation of the port: what is refused, what is held, forks. Does not hold the writing
(`writer.py`) or reading (`verify.py`).

Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> from jitwi.audit import AuditLog, verify
    >>> from jitwi.audit.events import PolicyLoaded
    >>> folder = Path(tempfile.mkdtemp()) / "audit"
    >>> log = AuditLog(folder)
    >>> log.record(PolicyLoaded(subject=None, policy_digest="sha256-...", policies=3), durable=True)
    >>> log.close()
    >>> verify(folder).is_intact
    True
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from jitwi.audit.chain import Stamp
from jitwi.audit.encode import Encoder
from jitwi.audit.sinks import Sink, SinkFeed
from jitwi.audit.spool import Job
from jitwi.audit.writer import Writer, typed
from jitwi.clock import Clock, SystemClock
from jitwi.errors import AuditError, ConfigurationError
from jitwi.secret import NoCopy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from jitwi.audit.events import Event
    from jitwi.secret import Secret

__all__ = ["Anchor", "AuditLog"]

_LOG = logging.getLogger("jitwi.audit")
_getpid = os.getpid
_LOSS_PATIENCE: Final = 0.1
_MAX_DEADLINE: Final = 60.0
_live: weakref.WeakSet[AuditLog] = weakref.WeakSet()
_hooks: list[str] = []


@attrs.frozen
class Anchor:
    """The state of a chain at one instant, to be kept where its writer cannot change it.

    Args:
        chain: File name of the chain.
        seq: Number of its last record.
        digest: Hash of that record.
    """

    chain: str
    seq: int
    digest: str


def _forked() -> None:
    for log in list(_live):
        log._start_over()  # noqa: SLF001 - the same module


class AuditLog(NoCopy):
    """Implements the `Audit` port on a folder of hash chains.

    Args:
        folder: Folder of the trail, shared by the processes of one user; made with mode 0700 at the first record.
        clock: Where instants come from.
        input: `full`, or `digest` to record a keyed digest of a caller's input only.
        digest_key: Key of those digests, at least 16 bytes.
        sinks: Second places that get a copy of each line; their failures have no effect here.
        deadline: How long a caller waits for the disk at most.

    Raises:
        ConfigurationError: A deadline that is not positive or above a minute; see also `Encoder`.

    Note:
        Nothing is opened before `open()` or the first record. A forked child opens a chain of its own.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        input: Literal["full", "digest"] = "full",
        digest_key: bytes | Secret | None = None,
        sinks: Iterable[Sink] = (),
        deadline: timedelta = timedelta(seconds=2),
    ) -> None:
        self._patience = deadline.total_seconds()
        if not 0 < self._patience <= _MAX_DEADLINE:
            raise ConfigurationError(f"deadline=`{deadline}` is not between 0 and 60 seconds")
        self._clock = clock or SystemClock()
        self._encode = Encoder(input, digest_key).encode
        self._stamp = Stamp()
        self._feeds = tuple(SinkFeed(sink) for sink in sinks)
        self._path = Path(folder)
        self._is_closing = self._is_closed = False
        self._writer = self._new_writer()

    def _new_writer(self) -> Writer:
        return Writer(self._path, self._clock, self._encode, self._feeds, self._patience)

    def record(self, event: Event, *, durable: bool = False) -> None:
        """Write one event before returning.

        Args:
            event: What happened.
            durable: True to return only once it is on disk (group commit); False = handed to the operating system.

        Raises:
            AuditError: The disk failed or did not take it within the deadline, or the log is closed. Refuse whatever
                the event announces.
        """
        body = self._encode(event)
        now = self._clock.now()
        at = self._stamp(now.wall)
        writer = self._writer
        try:
            if (
                not durable
                and now.boot < writer.short_way_until
                and writer.short_way_left > 0
                and writer.pid == _getpid()
            ):
                writer.write_directly(at, body, self._patience)
                return
            writer = self._ready()
            writer.require(Job(at, now.wall, body, durable=durable))
        except OSError as exc:
            error = typed(exc)
            writer.report(error, now.wall, refused=1)
            raise error from exc
        except AuditError as exc:
            if not self._is_closed:
                writer.report(exc, now.wall, refused=1)
            raise

    def record_loss(self, event: Event, *, durable: bool = False) -> None:
        """Write an event about access that is *lost*: never raises, and waits 0.1 s at most.

        What cannot be written now is held in memory within bounds and written once the disk is back, after an
        `audit.gap` record that counts what was lost beyond them.
        """
        try:
            self._record_loss(event, durable=durable)
        except Exception as exc:  # noqa: BLE001 - an ending goes on whatever happens to its record
            self._writer.spool.lose(0.0, type(exc).__name__)

    def _record_loss(self, event: Event, *, durable: bool) -> None:
        body = self._encode(event)
        now = self._clock.now()
        at = self._stamp(now.wall)
        writer = self._writer
        patience = min(self._patience, _LOSS_PATIENCE)
        if not durable and now.boot < writer.short_way_until and writer.short_way_left > 0 and writer.pid == _getpid():
            try:
                writer.write_directly(at, body, patience)
            except (OSError, AuditError):
                writer.close_short_way()
            else:
                return
        if self._is_closed:
            _LOG.error("an audit record came after the log was closed: %s", event.kind)
            writer.spool.lose(now.wall, "closed")
            return
        writer = self._ready()
        job = Job(at, now.wall, body, durable=durable, loss=True)
        if writer.spool.hold(job):
            writer.submit(job)
            writer.wait(job, patience)

    def open(self) -> None:
        """Open the chain now, to learn at start whether the folder can be written.

        Raises:
            AuditError: It cannot, or the log is closed.
        """
        self._barrier()

    def flush(self) -> None:
        """Return once all that was recorded so far is on disk and was handed to the sinks.

        Raises:
            AuditError: That failed, or took longer than the deadline.
        """
        self._barrier()
        late = [feed.sink.name for feed in self._feeds if not feed.flush(patience=self._patience)]
        if late:
            raise AuditError("an audit sink did not take its records in time", reasons=("sink-late",))

    def anchor(self) -> Anchor:
        """Bring everything to the disk and return the chain's state, to be kept on another host.

        Raises:
            AuditError: It could not be brought to the disk.
        """
        self._barrier()
        head = self._writer.head
        if head is None:
            raise AuditError("the chain was closed meanwhile", reasons=("closed",))
        return Anchor(*head)

    def close(self) -> None:
        """Write what is held and the closing record; idempotent. Logs an error instead of raising."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._writer.pid != _getpid():
            self._start_over()
        writer = self._writer
        if writer.has_started:
            try:
                self._barrier(closing=True)
                writer.join(self._patience)
            except AuditError as exc:
                _LOG.error("the audit chain was not closed: %s", exc)
        self._is_closed = True
        held, lost = writer.spool.left
        if held or lost:
            _LOG.error("audit records lost: %d held in memory until the end, %d dropped before", held, lost)
        for feed in self._feeds:
            feed.close(patience=self._patience)

    @property
    def folder(self) -> Path:
        """Where the trail is."""
        return self._path

    @property
    def is_failing(self) -> bool:
        """True from a failure until the next record that succeeded has stated the gap."""
        return self._writer.spool.is_open

    def __del__(self) -> None:
        """Have the chain closed if nobody did; its thread ends with it."""
        with contextlib.suppress(Exception):
            if not self._is_closing:
                self._writer.leave(self._stamp(self._clock.now().wall))

    def __repr__(self) -> str:
        """Folder and state."""
        if self._is_closed:
            state = "closed"
        elif self.is_failing:
            state = "failing"
        else:
            state = "open" if self._writer.is_open else "new"
        return f"<AuditLog {str(self._path)!r}, {state}>"

    def _ready(self) -> Writer:
        """Return the writer of this process.

        Raises:
            AuditError: The log is closed.
        """
        if self._is_closed:
            raise AuditError("the audit log is closed", reasons=("closed",), remedy="record before `close()`")
        if self._writer.pid != _getpid():
            self._start_over()
        if not self._writer.has_started:
            if not _hooks:
                _hooks.append("fork")
                os.register_at_fork(after_in_child=_forked)
            _live.add(self)
        return self._writer

    def _barrier(self, *, closing: bool = False) -> None:
        now = self._clock.now()
        writer = self._ready()
        try:
            writer.require(Job(self._stamp(now.wall), now.wall, b"", durable=True, closing=closing))
        except AuditError as exc:
            writer.report(exc, now.wall)
            raise

    def _start_over(self) -> None:
        """In a forked child: leave the parent's chain, threads, locks and spool alone, and begin anew."""
        before, self._writer = self._writer, self._new_writer()
        before.forget()
        for feed in self._feeds:
            feed.forget()
