# SPDX-License-Identifier: Apache-2.0
"""Second places for records: whoever wants a copy of each line as it is written.

Holds the `Sink` port, the one for stdlib logging, and the feed that keeps a slow, hung or raising sink away from the
chain. Does not hold the chain itself: that is the record, and only its failure stops issues and uses. A copy that is
shipped off the host is an anchor, as every line carries its hash.

Example:
    >>> import logging
    >>> from jitwi.audit.sinks import LoggingSink
    >>> LoggingSink(logging.getLogger("audit-copy")).name
    'logging'
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final, Protocol

__all__ = ["LoggingSink", "Sink", "SinkFeed"]

_LOG = logging.getLogger("jitwi.audit")
_MAX_WAITING: Final = 4096
_IDLE: Final = 60.0


class Sink(Protocol):
    """Port: gets a copy of each line, in order, on a thread of its own."""

    @property
    def name(self) -> str:
        """A word for messages."""
        ...

    def write(self, line: str) -> None:
        """Take one record: ASCII JSON without the line feed. Whatever it raises is counted and logged once."""
        ...


class LoggingSink:
    """Hands each record to a stdlib logger as its message.

    Args:
        logger: Default: the logger `jitwi.audit.records`.
        level: Level of the records.
    """

    __slots__ = ("_level", "_logger")
    name: Final = "logging"

    def __init__(self, logger: logging.Logger | None = None, *, level: int = logging.INFO) -> None:
        self._logger = logger or logging.getLogger("jitwi.audit.records")
        self._level = level

    def write(self, line: str) -> None:
        """Log one record."""
        self._logger.log(self._level, "%s", line)


class SinkFeed:
    """A bounded queue and a daemon thread in front of one sink.

    Args:
        sink: The sink.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.failed = 0
        """Records that were not copied: the sink raised, or its queue was full."""
        self._queue: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._said = False

    def put(self, line: bytes) -> None:
        """Queue one line; never blocks. Called in the order of the chain, by one thread at a time."""
        if self._queue.qsize() >= _MAX_WAITING:
            self._note("its queue is full")
            return
        self._queue.put(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"jitwi-audit-{self.sink.name}", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is shutting down
                self._thread = None
                self._note("no thread can be started")

    def flush(self, *, patience: float) -> bool:
        """Wait until everything queued so far was handed over; False if that took longer than `patience` seconds."""
        if self._thread is None:
            return True
        mark = threading.Event()
        self._queue.put(mark)
        return mark.wait(patience)

    def close(self, *, patience: float) -> None:
        """Hand over what is queued, for at most `patience` seconds, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(patience)

    def forget(self) -> None:
        """In a forked child: drop the parent's queue; there is no thread here."""
        self._queue = queue.SimpleQueue()
        self._thread = None

    def _note(self, what: str) -> None:
        self.failed += 1
        if not self._said:
            self._said = True
            _LOG.error("audit sink %s misses records: %s; the audit chain itself goes on", self.sink.name, what)

    def _run(self) -> None:
        waiting = self._queue
        while True:
            try:
                item = waiting.get(timeout=_IDLE)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                self.sink.write(item[:-1].decode())
            except Exception as exc:  # noqa: BLE001 - a copy may fail in any way without effect on the record
                self._note(type(exc).__name__)
