# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs kept to their half life, one request at a time per key, and a pause after a failure.

Holds the cache. Does not fetch or verify: it is given a way to do both. Whether the identity is still ours is the
source's to check before it asks here; every read looks at the clock.
"""

from __future__ import annotations

import concurrent.futures
import copy
import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import attrs

from jitwi.clock import Deadline
from jitwi.errors import IdentityUnavailableError, IdentityWithdrawnError, JitwiError, StateError
from jitwi.identity.identity import JwtSvid
from jitwi.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.clock import Clock, Instant
    from jitwi.identity.jwt_svid import VerifiedJwtSvid
    from jitwi.spiffe_id import SpiffeId

__all__ = ["FetchedJwtSvid", "JwtCache", "JwtKey"]

MAX_ENTRIES = 1000
SAME_AGAIN_SHARE = 0.05
"""Share of a lifetime to wait when the agent's own copy had not reached its half life yet."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_REMEMBERED = 8
_PASSED = Deadline(0.0, 0.0)


@attrs.frozen
class JwtKey:
    """What makes two requests the same."""

    spiffe_id: SpiffeId
    audience: str
    hint: str


@attrs.frozen(repr=False, eq=False)
class FetchedJwtSvid:
    """A token that was fetched and verified.

    Args:
        token: The token.
        svid: What it says.
        hint: The operator's hint.
        bundle: Digest of the bundle that verified it.
    """

    token: str
    svid: VerifiedJwtSvid
    hint: str
    bundle: str


@attrs.define(repr=False, eq=False)
class _Entry:
    held: Secret | None = None
    fetched: VerifiedJwtSvid | None = None
    hint: str = ""
    bundle: str = ""
    expiry: Deadline = _PASSED
    renewal: Deadline = _PASSED
    seen: deque[str] = attrs.field(factory=lambda: deque(maxlen=_REMEMBERED))
    failure: JitwiError | None = None
    failures: int = 0
    pause_until: float = 0.0
    flight: concurrent.futures.Future[JwtSvid] | None = None

    def forget(self) -> None:
        if self.held is not None:
            self.held.destroy()
        self.held = self.fetched = None

    def give(self, *, is_repeat: bool = False) -> JwtSvid | None:
        if self.held is None or self.fetched is None:
            return None
        svid = self.fetched
        token = Secret(self.held.reveal_bytes().decode(), kind="JWT-SVID")  # a copy: whoever gets it may destroy it
        return JwtSvid(svid.spiffe_id, svid.audience, svid.issued_at, svid.expires_at, token, is_repeat, self.hint)


class JwtCache:
    """Cache with single flight.

    Args:
        clock: What tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[JwtKey, _Entry] = OrderedDict()

    def get(
        self,
        key: JwtKey,
        fetch: Callable[[], FetchedJwtSvid],
        *,
        bundle: str,
        fresh: bool,
        timeout: float,
    ) -> JwtSvid:
        """Return a kept token, or one that is fetched now, by us or by whoever asked first.

        Args:
            key: What is asked for.
            fetch: Asks the agent and verifies.
            bundle: Digest of the current bundle: what an older one verified is not given out.
            fresh: Ask the agent whatever is kept.
            timeout: Seconds to wait for somebody else's request.

        Raises:
            JitwiError: What `fetch` raised, also during the pause after it.
            IdentityUnavailableError: Somebody else's request took too long.
        """
        now = self._clock.now()
        with self._lock:
            entry = self._entry(key)
            kept = entry.give() if entry.bundle == bundle and not entry.expiry.is_passed(now) else None
            if not fresh and kept is not None and not entry.renewal.is_passed(now):
                return kept
            if entry.failure is not None and now.boot < entry.pause_until:
                if kept is not None and not fresh:
                    return kept
                raise copy.copy(entry.failure)
            flight = None if fresh else entry.flight
            if flight is None:
                mine: concurrent.futures.Future[JwtSvid] = concurrent.futures.Future()
                if not fresh:
                    entry.flight = mine
        if flight is not None:
            return self._wait(flight, entry, kept, timeout)
        return self._fetch(entry, mine, fetch, kept, fresh=fresh)

    def _entry(self, key: JwtKey) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            if len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)[1].forget()
        else:
            self._entries.move_to_end(key)
        return entry

    def _wait(
        self, flight: concurrent.futures.Future[JwtSvid], entry: _Entry, kept: JwtSvid | None, timeout: float
    ) -> JwtSvid:
        try:
            flight.result(timeout)
        except concurrent.futures.TimeoutError as exc:
            raise IdentityUnavailableError(
                f"no JWT-SVID within {timeout} s", reasons=("timeout",), grpc_code="DEADLINE_EXCEEDED"
            ) from exc
        except JitwiError as exc:
            if kept is not None and isinstance(exc, IdentityUnavailableError):
                return kept
            raise copy.copy(exc) from exc
        with self._lock:
            given = entry.give()
        if given is None:
            raise StateError("the JWT-SVID was dropped meanwhile", reasons=("dropped",))
        return given

    def _fetch(
        self,
        entry: _Entry,
        mine: concurrent.futures.Future[JwtSvid],
        fetch: Callable[[], FetchedJwtSvid],
        kept: JwtSvid | None,
        *,
        fresh: bool,
    ) -> JwtSvid:
        try:
            fetched = fetch()
            with self._lock:
                given = self._keep(entry, fetched, self._clock.now(), fresh=fresh)
        except BaseException as exc:
            self._fail(entry, mine, exc)
            if kept is not None and not fresh and isinstance(exc, IdentityUnavailableError):
                return kept
            raise
        finally:
            with self._lock:
                if entry.flight is mine:
                    entry.flight = None
        mine.set_result(given)
        return given

    def _keep(self, entry: _Entry, fetched: FetchedJwtSvid, now: Instant, *, fresh: bool) -> JwtSvid:
        svid = fetched.svid
        is_same = svid.thumbprint in entry.seen
        entry.forget()
        entry.held = Secret(fetched.token, kind="JWT-SVID")
        entry.fetched, entry.hint, entry.bundle = svid, fetched.hint, fetched.bundle
        entry.expiry = Deadline.at_wall(svid.expires_at, now=now)
        start = now.wall if svid.issued_at is None else min(svid.issued_at, now.wall)
        life = svid.expires_at - start
        half = Deadline.at_wall(start + life / 2, now=now)
        entry.renewal = Deadline.after(now, seconds=life * SAME_AGAIN_SHARE) if half.is_passed(now) else half
        entry.failure, entry.failures = None, 0
        if not is_same:
            entry.seen.append(svid.thumbprint)
        given = entry.give(is_repeat=fresh and is_same)
        if given is None:
            raise StateError("the JWT-SVID was dropped meanwhile", reasons=("dropped",))
        return given

    def _fail(self, entry: _Entry, mine: concurrent.futures.Future[JwtSvid], exc: BaseException) -> None:
        with self._lock:
            if isinstance(exc, JitwiError):
                entry.failures += 1
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(entry.failures - 1, 10))
                entry.failure, entry.pause_until = copy.copy(exc), self._clock.now().boot + pause
                if isinstance(exc, IdentityWithdrawnError):
                    entry.forget()
        if isinstance(exc, JitwiError):
            mine.set_exception(exc)
        else:
            mine.set_exception(IdentityUnavailableError("the request was interrupted", reasons=("interrupted",)))

    def clear(self) -> None:
        """Forget and destroy all that is kept."""
        with self._lock:
            for entry in self._entries.values():
                entry.forget()
            self._entries.clear()

    def abandon(self) -> None:
        """In a forked child: destroy the copies, with a lock of our own."""
        self._lock = threading.Lock()
        self.clear()
