# SPDX-License-Identifier: Apache-2.0
"""An identity without an agent, for tests of code that uses `JIT` or a `Guard`.

Holds `FixedIdentity`, which serves real SVIDs of a `TestCa` through the port of the live source. Not for real use: its
authority is made on the spot and protects nothing.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from jitwi.clock import Deadline, SystemClock
from jitwi.errors import IdentityError, IdentityExpiredError, IdentityReplacedError, IdentityWithdrawnError
from jitwi.identity import Identity, IdentityEvent, IdentityEventKind, JwtSvid, SourceState, SvidKind
from jitwi.identity.jwt_svid import parse_and_verify
from jitwi.identity.key import LeafKey
from jitwi.secret import Secret
from jitwi.spiffe_id import SpiffeId
from jitwi.testing.ca import TestCa

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.clock import Clock
    from jitwi.identity import JwtBundle, X509Bundle
    from jitwi.spiffe_id import TrustDomain

__all__ = ["FixedIdentity"]


class FixedIdentity:
    """Serves one workload's identity, and its end when the test says so; implements `IdentitySource`.

    Args:
        spiffe_id: Who.
        ca: The authority of its trust domain; None makes one.
        ttl: Seconds that each SVID is valid.
        clock: What tells the time.
    """

    def __init__(
        self, spiffe_id: SpiffeId | str, *, ca: TestCa | None = None, ttl: float = 3600.0, clock: Clock | None = None
    ) -> None:
        self._spiffe_id = SpiffeId.parse(spiffe_id) if isinstance(spiffe_id, str) else spiffe_id
        self._clock = SystemClock() if clock is None else clock
        self.ca = TestCa(self._spiffe_id.trust_domain.name, clock=self._clock) if ca is None else ca
        self._ttl = ttl
        self._lock = threading.Lock()
        self._subscribers: list[Callable[[IdentityEvent], None]] = []
        self._gone: IdentityError | None = None
        self._state = SourceState.IDLE
        self._current = self._issue(1)

    def _issue(self, version: int) -> Identity:
        issued = self.ca.issue(self._spiffe_id, ttl=self._ttl)
        leaf = issued.leaf
        not_after = leaf.not_valid_after_utc.timestamp()
        key = issued.key
        deadline = Deadline.at_wall(not_after, now=self._clock.now())
        return Identity(
            self._spiffe_id,
            SvidKind.X509,
            version,
            leaf.not_valid_before_utc.timestamp(),
            not_after,
            issued.chain,
            hashlib.sha256(issued.chain[0]).hexdigest(),
            key=LeafKey(key, deadline=deadline, clock=self._clock),  # type: ignore[arg-type]
        )

    @property
    def state(self) -> SourceState:
        """The state now."""
        return self._state

    def start(self) -> None:
        """Begin to serve."""
        if self._gone is None:
            self._state = SourceState.READY

    def identity(self, *, timeout: float) -> Identity:
        """Return the identity.

        Raises:
            IdentityError: The test has ended it, or it has expired.
        """
        found = self.peek()
        if found is not None:
            return found
        raise self._gone or IdentityExpiredError("the SVID has expired", reasons=("expired",))

    def peek(self) -> Identity | None:
        """Return the identity, or None."""
        current = self._current
        return current if self._gone is None and self._clock.now().wall < current.not_after else None

    def latest(self) -> Identity | None:
        """Return the identity, or None."""
        return self.peek()

    def jwt_svid(self, audience: str, *, fresh: bool = False, timeout: float = 2.0) -> JwtSvid:
        """Return a JWT-SVID made now.

        Raises:
            IdentityError: The test has ended the identity.
        """
        identity = self.identity(timeout=timeout)
        token = self.ca.jwt(str(identity.spiffe_id), audience)
        verified = parse_and_verify(token, audience=audience, bundles=self, now=self._clock.now().wall)
        return JwtSvid(
            identity.spiffe_id, audience, verified.issued_at, verified.expires_at, Secret(token, kind="JWT-SVID")
        )

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        """Return the bundle of our own trust domain."""
        return self.ca.x509_bundle if trust_domain == self.ca.trust_domain else None

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        """Return the bundle of our own trust domain."""
        return self.ca.jwt_bundle if trust_domain == self.ca.trust_domain else None

    def subscribe(self, callback: Callable[[IdentityEvent], None]) -> Callable[[], None]:
        """Call `callback` with each event, in the thread of the test."""
        with self._lock:
            self._subscribers.append(callback)

        def stop() -> None:
            with self._lock:
                if callback in self._subscribers:
                    self._subscribers.remove(callback)

        return stop

    def rotate(self) -> None:
        """Serve a new SVID with a new key, as an agent does at half life."""
        self._current = self._issue(self._current.version + 1)
        self._tell(IdentityEventKind.ROTATED, "rotated by the test")

    def withdraw(self) -> None:
        """Behave as if the workload's entry was deleted."""
        self._end(
            SourceState.WITHDRAWN,
            IdentityEventKind.WITHDRAWN,
            IdentityWithdrawnError("the agent has no identity for this workload", reasons=("withdrawn",)),
        )

    def replace(self) -> None:
        """Behave as if the agent served another SPIFFE ID from now on."""
        self._end(
            SourceState.REPLACED,
            IdentityEventKind.REPLACED,
            IdentityReplacedError("the SPIFFE ID is not served any more", reasons=("replaced",)),
        )

    def restore(self) -> None:
        """Serve a new SVID again."""
        self._gone = None
        self._state = SourceState.READY
        self._current = self._issue(self._current.version + 1)
        self._tell(IdentityEventKind.READY, "restored by the test")

    def close(self) -> None:
        """Drop the key; idempotent."""
        self._state = SourceState.CLOSED

    def _end(self, state: SourceState, kind: IdentityEventKind, error: IdentityError) -> None:
        self._gone = error
        self._state = state
        self._tell(kind, "told to by the test", with_identity=False)

    def _tell(self, kind: IdentityEventKind, reason: str, *, with_identity: bool = True) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for callback in subscribers:
            callback(IdentityEvent(kind, self._current if with_identity else None, reason))
