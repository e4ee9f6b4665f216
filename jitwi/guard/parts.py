# SPDX-License-Identifier: Apache-2.0
"""What a Guard is made of, and when it is made.

Holds the parts and their life cycle: built at the first use, followed again in a forked child, closed by who made them.
Does not hold any rule about evidence.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from typing import TYPE_CHECKING

import attrs

from jitwi.errors import IdentityError, IdentityUnavailableError, StateError
from jitwi.tokens import TaskTokenVerifier

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from jitwi.audit.port import Audit
    from jitwi.clock import Clock
    from jitwi.identity import BundleSource, JwtBundle, X509Bundle
    from jitwi.policy import EntityProvider, PolicyStore
    from jitwi.spiffe_id import TrustDomain
    from jitwi.state import Endings, ProofLedger

__all__ = ["Parts", "Settings"]

_FIRST_BUNDLE_SECONDS = 2.0
_START_SECONDS = 10.0


@attrs.frozen
class Settings:
    """What the Guard was told; see `Guard`."""

    audience: str
    policies: str | os.PathLike[str] | PolicyStore
    identity: BundleSource | None
    state_dir: Path | None
    endings_dir: Path | None
    audit: str | os.PathLike[str] | Audit | None
    max_ttl: timedelta
    provider: EntityProvider | None


class _Bundles:
    """The source's bundles; says apart "not trusted" and "nothing has arrived yet"."""

    __slots__ = ("_has_any", "_source")

    def __init__(self, source: BundleSource) -> None:
        self._source = source
        self._has_any = False

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        """Return the current bundle of one trust domain.

        Raises:
            IdentityUnavailableError: The source has not heard anything yet.
        """
        bundle = self._source.x509_bundle(trust_domain)
        if bundle is not None:
            self._has_any = True
        elif not self._has_any and not _is_ready(self._source):
            raise IdentityUnavailableError(
                "no trust bundle has arrived yet", reasons=("no-bundle",), remedy="check the agent's socket"
            )
        return bundle

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        """Return the current bundle of one trust domain."""
        return self._source.jwt_bundle(trust_domain)


def _is_ready(source: BundleSource) -> bool:
    """True if a live source hears its agent; a source without a state is a fixed one."""
    state = getattr(source, "state", None)
    return state is None or getattr(state, "value", None) == "ready"


class Parts:
    """The parts of one Guard. `verifier`, `policies`, `ledger`, `endings`, `audit` are there after `start()`."""

    verifier: TaskTokenVerifier
    policies: PolicyStore
    ledger: ProofLedger
    endings: Endings
    audit: Audit

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._born = clock.now()
        self._locks: dict[int, threading.Lock] = {}
        self._pid = 0
        self._is_built = False
        self._is_closed = False
        self._source: BundleSource | None = None
        self._own: contextlib.ExitStack | None = None

    def start(self) -> None:
        """Build what is missing; cheap once that is done.

        Raises:
            StateError: Closed, or another thread is starting for too long.
            JitwiError: A part cannot be built.
        """
        if self._is_closed:
            raise StateError("this Guard is closed", reasons=("closed",), remedy="make a new one")
        if self._is_built and self._pid == os.getpid():
            return
        # A lock per process: the parent's may have been held by a thread that is not in the forked child.
        lock = self._locks.setdefault(os.getpid(), threading.Lock())
        if not lock.acquire(timeout=_START_SECONDS):
            raise StateError("this Guard is still starting", reasons=("starting",), remedy="try again")
        try:
            if not self._is_built:
                self._build()
            if self._pid != os.getpid():
                self._follow()
                self._pid = os.getpid()
        finally:
            lock.release()

    def close(self) -> None:
        """Close what was made here; what was given stays open. Idempotent."""
        self._is_closed = True
        own, self._own = self._own, None
        if own is not None:
            own.close()

    def _build(self) -> None:
        told = self._settings
        from jitwi.state import SqliteEndings, SqliteProofLedger
        from jitwi.state.folder import default_folder

        with contextlib.ExitStack() as own:
            self.policies = self._policies()
            folder = told.state_dir or default_folder()
            self.audit = self._audit(own, folder)
            name = hashlib.sha256(told.audience.encode()).hexdigest()[:16]
            ledger = SqliteProofLedger(
                folder / "guard", clock=self._clock, name=f"proofs-{name}.sqlite3", since=self._born.wall
            )
            own.callback(ledger.close)
            self.ledger = ledger
            endings = SqliteEndings(told.endings_dir or folder / "endings", clock=self._clock)
            own.callback(endings.close)
            self.endings = endings
            self._source = self._identity(own)
            self.verifier = TaskTokenVerifier(told.audience, _Bundles(self._source), max_ttl=told.max_ttl)
            self._own = own.pop_all()
            weakref.finalize(self, self._own.close)  # a Guard of a whole program is closed when it goes
        self._is_built = True

    def _follow(self) -> None:
        """Open the memory, start the source in this process and give it a moment for its first bundle."""
        _ = self.ledger.created_at
        start = getattr(self._source, "start", None)
        if start is None:
            return
        start()
        wait = getattr(self._source, "identity", None)
        if wait is not None:
            # Only bundles are needed: a source without an identity of its own may well have them.
            with contextlib.suppress(IdentityError):
                wait(timeout=_FIRST_BUNDLE_SECONDS)

    def _policies(self) -> PolicyStore:
        given = self._settings.policies
        if not isinstance(given, str | os.PathLike):
            given.load()
            return given
        from jitwi.policy import PolicyStore

        store = PolicyStore(given, provider=self._settings.provider, clock=self._clock)
        store.load()
        return store

    def _audit(self, own: contextlib.ExitStack, folder: Path) -> Audit:
        given = self._settings.audit
        if given is not None and not isinstance(given, str | os.PathLike):
            return given
        from jitwi.audit import AuditLog

        log = AuditLog(folder / "audit" if given is None else given, clock=self._clock)
        own.callback(log.close)
        return log

    def _identity(self, own: contextlib.ExitStack) -> BundleSource:
        given = self._settings.identity
        if given is not None:
            return given
        from jitwi.identity import WorkloadApiSource

        source = WorkloadApiSource(clock=self._clock)
        own.callback(source.close)
        return source
