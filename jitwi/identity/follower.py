# SPDX-License-Identifier: Apache-2.0
"""Keeps the streams of a Workload API open and asks whether the agent is still there.

Holds threads that only read and wait: one per stream, one that polls. What they hear goes into one bounded queue, in
order; a flood is held back by that bound and by gRPC's flow control. Does not judge what it hears.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.identity.lifecycle import FATAL_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jitwi.identity.endpoint import Endpoint
    from jitwi.identity.workload_api import Stream, WorkloadApi

__all__ = ["Follower", "Heard", "JwtAsk"]

_log = logging.getLogger("jitwi.identity")
_random = random.SystemRandom()

PROBE_SECONDS = 2.0
"""Deadline of one probe."""
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 1.0
_FATAL_DELAY = 30.0
_INBOX = 64


@attrs.frozen(repr=False)
class Heard:
    """One thing that was heard.

    Args:
        topic: `x509`, `x509-bundles`, `jwt-bundles`, `jwt`, `probe`, or `wake` from a reader.
        update: What the agent sent, or None.
        code: gRPC status if a call ended or failed, `OK` for a normal end; empty with an update.
        details: The agent's words.
    """

    topic: str
    update: Any = None
    code: str = ""
    details: str = ""


@attrs.frozen
class JwtAsk:
    """What the poller asks for when the identity is a JWT-SVID."""

    audience: str
    subject: str


def retry_delay(attempt: int, code: str = "") -> float:
    """Seconds to wait before try `attempt` (from 1): jittered, doubling, at most one second."""
    if code in FATAL_CODES:
        return _random.uniform(0.8, 1.0) * _FATAL_DELAY
    longest: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(attempt - 1, 10))
    return _random.uniform(0.5, 1.0) * longest


class Follower:
    """The threads that follow one Workload API.

    Args:
        endpoint: Its address.
        streams: Which streams to keep open: topics as in `Heard`.
        interval: Seconds between two probes.
        ask: Tells which JWT-SVID to poll for, or None while there is nothing to ask; without it a probe is sent.
        due: Tells in how many seconds to poll at the latest.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        streams: Sequence[str],
        interval: float,
        ask: Callable[[], JwtAsk | None] | None = None,
        due: Callable[[], float] | None = None,
    ) -> None:
        self.inbox: queue.Queue[Heard] = queue.Queue(maxsize=_INBOX)
        self._endpoint = endpoint
        self._topics = tuple(streams)
        self._interval = interval
        self._ask = ask
        self._due = due
        self._api: WorkloadApi | None = None
        self._opened = threading.Event()
        self._stop = threading.Event()
        self._nudged = threading.Event()
        self._streams: dict[str, Stream] = {}
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Open the channel and start the threads; called on the source's own thread."""
        from jitwi.identity.workload_api import WorkloadApi

        if self._stop.is_set():
            return
        api = self._api = WorkloadApi(self._endpoint)
        self._opened.set()
        if self._stop.is_set():  # meanwhile: whoever comes last closes
            api.close()
            return
        for topic in self._topics:
            self._run(f"jitwi-{topic}", self._read, topic)
        self._run("jitwi-poll", self._poll)

    def _run(self, name: str, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def api(self, *, timeout: float) -> WorkloadApi | None:
        """Return the open channel, waiting for it at most `timeout` seconds."""
        self._opened.wait(timeout)
        return None if self._stop.is_set() else self._api

    @property
    def is_stopped(self) -> bool:
        """True once `stop()` was called."""
        return self._stop.is_set()

    def nudge(self) -> None:
        """Poll now."""
        self._nudged.set()

    def wake(self) -> None:
        """Make the owner look at the time; never blocks."""
        try:
            self.inbox.put_nowait(Heard("wake"))
        except queue.Full:
            return

    def reopen(self, topic: str) -> None:
        """End a stream so that it is opened again."""
        stream = self._streams.get(topic)
        if stream is not None:
            stream.cancel()

    def stop(self) -> None:
        """End streams and channel, and tell the threads to end."""
        self._stop.set()
        self._opened.set()
        self._nudged.set()
        for stream in list(self._streams.values()):
            stream.cancel()
        if self._api is not None:
            self._api.close()

    def join(self, *, timeout: float) -> bool:
        """Wait for the threads at most `timeout` seconds each; returns whether all have ended."""
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in others)

    def _post(self, heard: Heard) -> None:
        while not self._stop.is_set():
            try:
                self.inbox.put(heard, timeout=0.5)
            except queue.Full:
                continue
            return

    def _read(self, topic: str) -> None:
        attempt = 0
        while not self._stop.is_set():
            code, details = "OK", "the agent ended the stream"
            try:
                stream = self._open_stream(topic)
                self._streams[topic] = stream
                for update in stream:
                    attempt = 0
                    self._post(Heard(topic, update))
            except Exception as exc:  # noqa: BLE001 - a reader that dies silently would be a source that is stale for ever
                code, details = _reason(exc)
            if self._stop.is_set():
                return
            self._post(Heard(topic, code=code, details=details))
            attempt += 1
            self._stop.wait(retry_delay(attempt, code))

    def _open_stream(self, topic: str) -> Stream:
        api = self._api
        if api is None:
            raise RuntimeError("the channel is not open")
        if topic == "x509":
            return api.x509_svids()
        return api.x509_bundles() if topic == "x509-bundles" else api.jwt_bundles()

    def _poll(self) -> None:
        attempt, code = 0, ""
        while not self._stop.is_set():
            delay = self._interval if self._due is None else min(self._interval, self._due())
            self._nudged.wait(retry_delay(attempt, code) if attempt else delay)
            self._nudged.clear()
            if self._stop.is_set():
                return
            heard = self._poll_once()
            if heard is not None:
                attempt, code = (attempt + 1 if heard.code else 0), heard.code
                self._post(heard)

    def _poll_once(self) -> Heard | None:
        api = self._api
        if api is None:
            return None
        ask = None
        try:
            if self._ask is None:
                api.probe(timeout=PROBE_SECONDS)
                return Heard("probe", update=True)
            ask = self._ask()
            if ask is None:
                return None
            return Heard("jwt", (ask, api.jwt_svids(ask.audience, ask.subject, timeout=PROBE_SECONDS)))
        except Exception as exc:  # noqa: BLE001 - as above
            code, details = _reason(exc)
            return Heard("probe" if self._ask is None else "jwt", code=code, details=details)


def _reason(exc: Exception) -> tuple[str, str]:
    from jitwi.identity.workload_api import CallFailedError

    if isinstance(exc, CallFailedError):
        return exc.grpc_code, exc.details
    _log.warning("following the Workload API failed: %s", type(exc).__name__)
    return "INTERNAL", type(exc).__name__
