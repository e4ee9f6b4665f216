# SPDX-License-Identifier: Apache-2.0
"""The live source of an identity: follows the Workload API and serves snapshots, bundles and JWT-SVIDs.

Holds the shell around the rules: one thread owns every change, readers take snapshots. The rules themselves are in
`lifecycle.py`, `updates.py`, `x509_svid.py` and `jwt_svid.py`; reading the wire is `follower.py`.

Example (an agent is needed only at `start()`)::

    source = WorkloadApiSource(spiffe_id="spiffe://example.org/ns/prod/refunds")
    source.start()
    identity = source.identity(timeout=2.0)
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING

import attrs

from jitwi.clock import SystemClock
from jitwi.errors import ConfigurationError, IdentityUnavailableError, InvalidSvidError, StateError
from jitwi.identity.endpoint import Endpoint
from jitwi.identity.follower import Follower, JwtAsk
from jitwi.identity.identity import IdentityEvent, IdentityEventKind, SourceState, SvidKind
from jitwi.identity.judge import Judge, fetch_jwt_svid
from jitwi.identity.jwt_cache import JwtCache, JwtKey
from jitwi.identity.jwt_svid import check_audience
from jitwi.identity.updates import MAX_HINT_BYTES
from jitwi.spiffe_id import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.clock import Clock
    from jitwi.identity.follower import Heard
    from jitwi.identity.identity import Identity, JwtBundle, JwtSvid, X509Bundle
    from jitwi.identity.key import LeafKey
    from jitwi.identity.lifecycle import Live
    from jitwi.spiffe_id import TrustDomain

__all__ = ["DEFAULT_MAX_STALENESS", "SourceStatus", "WorkloadApiSource"]

DEFAULT_MAX_STALENESS = timedelta(seconds=60)
LONGEST_PROBE_INTERVAL = 10.0
"""Seconds between two questions whether a silent agent is still there."""
CLOSE_SECONDS = 2.0
_TICK_SECONDS = 1.0
_SHORTEST_TICK = 0.01

_getpid = os.getpid  # one look-up less in `peek`
_log = logging.getLogger("jitwi.identity")
_sources: weakref.WeakSet[WorkloadApiSource] = weakref.WeakSet()


@attrs.frozen
class SourceStatus:
    """What a source knows, for health checks and messages.

    Args:
        state: The state now.
        reason: One sentence where something is wrong, else empty.
        grpc_code: Name of the last gRPC status behind it, or empty.
        age: Seconds since the agent last answered, or None.
        stale_for: Seconds since the identity became stale, or None.
        spiffe_id: The pinned identity, or None.
        version: Version of the last adopted identity.
        not_after: Its end, seconds since the epoch, or None.
        refused: Updates refused so far.
        last_refusal: Why the last of them was refused.
        untrusted: Trust domains whose bundle in the last update did not parse.
    """

    state: SourceState
    reason: str
    grpc_code: str
    age: float | None
    stale_for: float | None
    spiffe_id: SpiffeId | None
    version: int
    not_after: float | None
    refused: int
    last_refusal: str
    untrusted: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        """True if new tasks could start."""
        return self.state is SourceState.READY


class WorkloadApiSource:
    """Follow the Workload API for one pinned identity; implements `IdentitySource`.

    Args:
        endpoint: Address of the Workload API; None takes `SPIFFE_ENDPOINT_SOCKET` at `start()`.
        svid: In which form the identity is proven.
        spiffe_id: Choose this identity among several.
        hint: Choose by the operator's hint. Whatever was chosen first is pinned from then on.
        audience: For `svid="jwt-svid"`: the audience of our own that the identity is fetched for.
        max_staleness: How long a stale identity may still start tasks; a number means seconds.
        clock: What tells the time.

    Raises:
        ConfigurationError: The arguments do not fit together.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        svid: SvidKind | str = SvidKind.X509,
        spiffe_id: SpiffeId | str | None = None,
        hint: str | None = None,
        audience: str | None = None,
        max_staleness: timedelta | float = DEFAULT_MAX_STALENESS,
        clock: Clock | None = None,
    ) -> None:
        self._endpoint = endpoint
        if endpoint is not None:
            Endpoint.parse(endpoint)
        try:
            self._kind = SvidKind(svid)
        except ValueError as exc:
            raise ConfigurationError(f"`{ascii(svid)[:40]}` is not a kind of SVID", reasons=("svid",)) from exc
        self._chosen = SpiffeId.parse(spiffe_id) if isinstance(spiffe_id, str) else spiffe_id
        if self._chosen is not None:
            self._chosen.require_workload()
        if hint is not None and not 0 < len(hint.encode()) <= MAX_HINT_BYTES:
            raise ConfigurationError(f"a hint has 1 to {MAX_HINT_BYTES} bytes", reasons=("hint",))
        self._hint = hint
        if (self._kind is SvidKind.JWT) != (audience is not None):
            raise ConfigurationError(
                "`audience` belongs to a JWT-SVID identity, and only there",
                reasons=("audience",),
                remedy='pass `svid="jwt-svid", audience="..."`, or neither',
            )
        self._audience = _audience(audience) if audience is not None else ""
        seconds = max_staleness.total_seconds() if isinstance(max_staleness, timedelta) else float(max_staleness)
        if not 0 < seconds < float("inf"):
            raise ConfigurationError("`max_staleness` must be more than zero", reasons=("max-staleness",))
        self._max_staleness = seconds
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._subscribers: list[Callable[[IdentityEvent], None]] = []
        self._keys: weakref.WeakSet[LeafKey] = weakref.WeakSet()
        self._is_closed = False
        self._is_forked = False
        self._reset()
        _sources.add(self)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition(threading.RLock())
        self._judge = Judge(
            kind=self._kind,
            chosen=self._chosen,
            hint=self._hint,
            audience=self._audience,
            max_staleness=self._max_staleness,
            clock=self._clock,
            keys=self._keys,
        )
        self._jwts = JwtCache(self._clock)
        self._live: Live | None = None
        self._follower: Follower | None = None
        self._thread: threading.Thread | None = None

    # Reading ---------------------------------------------------------------------------------------------------

    def peek(self) -> Identity | None:
        """Return the current usable identity without waiting and without raising, else None.

        None as soon as it is withdrawn, replaced, expired, or stale for longer than `max_staleness`: what has begun
        under it goes on by its own snapshot and the events.
        """
        live = self._live
        if live is None or self._pid != _getpid():
            return None
        identity, wall_end, boot_end = live
        wall, boot = self._clock.now()
        return identity if wall < wall_end and boot < boot_end else None

    def identity(self, *, timeout: float) -> Identity:
        """Return the current identity, waiting for the first one at most `timeout` seconds.

        Raises:
            IdentityUnavailableError: None in time, or stale for too long; carries the last gRPC code.
            IdentityWithdrawnError: The agent said so.
            IdentityReplacedError: The pinned SPIFFE ID is gone from the SVIDs.
            IdentityExpiredError: The last one has expired.
            AmbiguousIdentityError: Several and none chosen.
            StateError: The source is closed, not started, or inherited by a forked child.
        """
        found = self.peek()
        if found is not None:
            return found
        follower = self._require_started()
        with self._changed:
            outcome = self._changed.wait_for(self._outcome, max(0.0, timeout))
            if outcome is None:
                outcome = self._judge.life.unavailable()
        if isinstance(outcome, Exception):
            follower.wake()
            raise outcome
        return outcome

    def _outcome(self) -> Identity | Exception | None:
        if self._is_closed:
            return _closed()
        return self._judge.life.outcome(self._clock.now())

    async def identity_async(self, *, timeout: float) -> Identity:  # noqa: ASYNC109 - handed to the waiting thread
        """Do as `identity()` does without blocking the event loop."""
        found = self.peek()
        return found if found is not None else await asyncio.to_thread(self.identity, timeout=timeout)

    def latest(self) -> Identity | None:
        """Return the last good identity, however stale, for work that has begun; None once it has ended."""
        if self._pid != os.getpid() or self._is_closed:
            return None
        found = self._judge.life.current
        return found if found is not None and self._clock.now().wall < found.not_after else None

    @property
    def state(self) -> SourceState:
        """The state now, time taken into account."""
        return self.status().state

    def status(self) -> SourceStatus:
        """Return state, reason, last gRPC code and ages."""
        if self._pid != os.getpid():
            return SourceStatus(
                SourceState.IDLE, "inherited by a forked child", "", None, None, None, 0, None, 0, "", ()
            )
        now = self._clock.now()
        with self._changed:
            life = self._judge.life
            state = SourceState.CLOSED if self._is_closed else life.state(now)
            if state is SourceState.STARTING and self._follower is None:
                state = SourceState.IDLE
            return SourceStatus(
                state=state,
                reason=life.reason,
                grpc_code=life.grpc_code,
                age=None if life.contact_at is None else now.boot - life.contact_at.boot,
                stale_for=life.stale_for(now) if life.current is not None else None,
                spiffe_id=life.pinned,
                version=life.version,
                not_after=None if life.current is None else life.current.not_after,
                refused=self._judge.refused,
                last_refusal=self._judge.last_refusal,
                untrusted=self._judge.skipped,
            )

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        """Return the current X.509 bundle of one trust domain, or None: it is untrusted."""
        return None if self._pid != os.getpid() else self._judge.x509.get(trust_domain)

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        """Return the current JWT bundle of one trust domain, or None: it is untrusted."""
        return None if self._pid != os.getpid() else self._judge.jwt.get(trust_domain)

    # JWT-SVIDs -------------------------------------------------------------------------------------------------

    def jwt_svid(self, audience: str, *, fresh: bool = False, timeout: float = 2.0) -> JwtSvid:
        """Return a JWT-SVID of the pinned identity for one audience, kept up to its half life.

        Args:
            audience: The one recipient.
            fresh: Ask the agent again; `is_repeat` tells whether it gave bytes that it had given before.
            timeout: Seconds, for everything together.

        Raises:
            IdentityError: As for `identity()`; also when the agent does not give one.
            InvalidSvidError: What the agent sent does not hold.
            ConfigurationError: The audience is not one printable text.
        """
        audience = _audience(audience)
        budget = _Budget(timeout)
        identity = self.identity(timeout=timeout)
        follower = self._require_started()
        own = identity.spiffe_id.trust_domain
        bundle = self.jwt_bundle(own)
        given = self._jwts.get(
            JwtKey(identity.spiffe_id, audience, self._hint or ""),
            lambda: fetch_jwt_svid(
                follower, self, self._clock, identity.spiffe_id, audience, self._hint, self._changed, budget.left
            ),
            bundle=bundle.digest if bundle is not None else "",
            fresh=fresh,
            timeout=budget.left(),
        )
        if self.identity(timeout=0.0).spiffe_id != given.spiffe_id:  # it may have ended while we waited
            given.token.destroy()
            raise IdentityUnavailableError("the identity changed meanwhile", reasons=("changed",))
        return given

    async def jwt_svid_async(self, audience: str, *, fresh: bool = False, timeout: float = 2.0) -> JwtSvid:  # noqa: ASYNC109
        """Do as `jwt_svid()` does without blocking the event loop."""
        return await asyncio.to_thread(self.jwt_svid, audience, fresh=fresh, timeout=timeout)

    # Life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow; returns at once; idempotent; also restarts in a forked child.

        Raises:
            ConfigurationError: No address, or one of another form.
            StateError: Closed, or in a child process in which gRPC cannot work.
        """
        if self._is_closed:
            raise _closed()
        if self._pid != os.getpid():
            raise _forked("this process was forked outside of Python: no lock of it can be trusted")
        _require_usable_grpc()
        with self._changed:
            if self._follower is not None:
                return
            endpoint = Endpoint.find(self._endpoint)
            is_jwt = self._kind is SvidKind.JWT
            self._follower = Follower(
                endpoint,
                streams=("jwt-bundles", "x509-bundles") if is_jwt else ("x509", "jwt-bundles"),
                interval=min(LONGEST_PROBE_INTERVAL, max(0.1, self._max_staleness / 4)),
                ask=self._ask if is_jwt else None,
                due=self._due if is_jwt else None,
            )
            self._is_forked = False
            self._thread = threading.Thread(
                target=self._own, args=(self._follower,), name="jitwi-identity", daemon=True
            )
            self._thread.start()

    def subscribe(self, callback: Callable[[IdentityEvent], None]) -> Callable[[], None]:
        """Call `callback` with each event, on the source's own thread; returns the way to stop it."""
        with self._changed:
            self._subscribers = [*self._subscribers, callback]

        def stop() -> None:
            with self._changed:
                self._subscribers = [one for one in self._subscribers if one is not callback]

        return stop

    def close(self) -> None:
        """End the threads and drop keys; idempotent. Nothing is given out afterwards."""
        if self._pid != os.getpid():
            self._is_closed = True
            return
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._live = None
            self._changed.notify_all()
        follower, thread = self._follower, self._thread
        if follower is not None:
            follower.stop()
            follower.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_SECONDS)
        if follower is not None and not follower.join(timeout=CLOSE_SECONDS):
            _log.warning("a thread of the identity source did not end within %s s", CLOSE_SECONDS)
        self._judge.end()
        self._jwts.clear()

    def __repr__(self) -> str:
        """Identity and state."""
        return f"<WorkloadApiSource {self._judge.life.pinned or 'not pinned'} {self.state.value}>"

    def _require_started(self) -> Follower:
        if self._is_closed:
            raise _closed()
        if self._pid != os.getpid() or self._is_forked:
            raise _forked("the source belongs to the parent process")
        follower = self._follower
        if follower is None:
            raise StateError("the source is not started", reasons=("not-started",), remedy="call `start()`")
        return follower

    def _ask(self) -> JwtAsk | None:
        with self._changed:
            return self._judge.ask()

    def _due(self) -> float:
        with self._changed:
            return self._judge.due()

    def _own(self, follower: Follower) -> None:
        """Run the one thread that changes anything."""
        try:
            follower.open()
        except Exception as exc:  # noqa: BLE001 - whatever hinders grpc must reach those who wait
            _log.error("the Workload API client could not be opened: %s", type(exc).__name__)
            with self._changed:
                self._judge.life.reason = f"the Workload API client could not be opened: {type(exc).__name__}"
        while not follower.is_stopped:
            with self._changed:
                wait = min(_TICK_SECONDS, max(_SHORTEST_TICK, self._judge.life.next_change(self._clock.now())))
            heard = None
            with contextlib.suppress(queue.Empty):
                heard = follower.inbox.get(timeout=wait)
            if follower.is_stopped:
                return
            try:
                self._take(follower, heard)
            except Exception:  # noqa: BLE001 - logged, and the next update counts
                _log.exception("an update of the Workload API could not be handled")

    def _take(self, follower: Follower, heard: Heard | None) -> None:
        with self._changed:
            events = self._judge.hear(heard, follower)
            self._live = None if self._is_closed else self._judge.life.live()
            self._changed.notify_all()
        if any(event.kind in _ENDINGS for event in events):
            self._jwts.clear()
        for event in events:
            if event.kind is IdentityEventKind.REFUSED_UPDATE:
                _log.warning("an update of the Workload API was refused: %s", event.reason)
            for callback in self._subscribers:
                try:
                    callback(event)
                except BaseException as exc:  # noqa: BLE001 - a subscriber must not end the thread
                    _log.error("a subscriber raised %s at %s", type(exc).__name__, event.kind.value)

    def _after_fork(self) -> None:
        """In a forked child: nothing of the parent's is used, dropped by finalisers, or readable."""
        _abandoned.append((self._follower, self._thread, self._changed))
        self._jwts.abandon()
        self._judge.end()
        self._is_forked = True
        self._reset()


_ENDINGS = (IdentityEventKind.WITHDRAWN, IdentityEventKind.REPLACED, IdentityEventKind.EXPIRED)
_abandoned: list[object] = []
_is_grpc_inherited = False


class _Budget:
    """What is left of a wait, by the machine's own clock."""

    def __init__(self, seconds: float) -> None:
        self._clock = SystemClock()
        self._end = self._clock.now().boot + seconds

    def left(self) -> float:
        return max(0.0, self._end - self._clock.now().boot)


def _audience(audience: str) -> str:
    try:
        return check_audience(audience)
    except InvalidSvidError as exc:
        raise ConfigurationError(exc.message, reasons=exc.reasons, remedy=exc.remedy) from exc


def _closed() -> StateError:
    return StateError("the source is closed", reasons=("closed",), remedy="make a new one")


def _forked(message: str) -> StateError:
    return StateError(message, reasons=("forked",), remedy="call `start()` in the child, or make a source there")


def _require_usable_grpc() -> None:
    switch = os.environ.get("GRPC_ENABLE_FORK_SUPPORT")
    if _is_grpc_inherited and switch is not None and switch.lower() not in ("1", "true", "yes"):
        raise StateError(
            "gRPC was in use before this process was forked, and its fork support is switched off",
            reasons=("forked", "grpc-fork-support"),
            remedy="start jitwi after the fork, or unset `GRPC_ENABLE_FORK_SUPPORT`",
        )


def _after_fork_in_child() -> None:
    global _is_grpc_inherited  # noqa: PLW0603 - the fact is one of the process
    _is_grpc_inherited = _is_grpc_inherited or "grpc" in sys.modules
    for source in list(_sources):
        source._after_fork()  # noqa: SLF001 - same module


def _close_all() -> None:
    for source in list(_sources):
        source.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
