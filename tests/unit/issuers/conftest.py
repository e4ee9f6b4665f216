# SPDX-License-Identifier: Apache-2.0
"""A gate that can be told what to answer, an identity source, and a service on a real socket."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import attrs
import pytest

from jitwi.clock import Deadline, Instant
from jitwi.credentials import Order, Use
from jitwi.identity import Identity, SvidKind
from jitwi.identity.key import LeafKey
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity, Permission, Task, TaskDigest
from jitwi.testing.ca import TestCa

NOW = 1_800_000_000.0
CALLER = "spiffe://example.org/ns/prod/refunds"
READ = Entity("Shop::Action", "read")
REFUND = Entity("Shop::Action", "refund")
ORDER = Entity("Shop::Order", "42")
TASK = Task(
    "refund-order", (Permission(READ, ORDER), Permission(REFUND, ORDER)), timedelta(minutes=2), purpose="p", max_uses=5
)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.wall, self.boot = NOW, 5000.0

    def now(self) -> Instant:
        """Read it."""
        return Instant(self.wall, self.boot)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.boot += seconds


class Rotating:
    """One workload's identity, rotated on demand."""

    def __init__(self, clock: Clock, *, ttl: float = 3600.0) -> None:
        self.clock, self.ttl = clock, ttl
        self.ca = TestCa("example.org", clock=clock)
        self.version = 0
        self.rotate()

    def rotate(self) -> Identity:
        """A new SVID with a new key; the old key signs no more."""
        if self.version:
            self.current.key.drop()
        self.version += 1
        svid = self.ca.issue(CALLER, ttl=self.ttl)
        end = svid.leaf.not_valid_after_utc.timestamp()
        key = LeafKey(svid.key, deadline=Deadline.at_wall(end, now=self.clock.now()), clock=self.clock)
        self.current = Identity(
            spiffe_id=SpiffeId.parse(CALLER),
            kind=SvidKind.X509,
            version=self.version,
            not_before=svid.leaf.not_valid_before_utc.timestamp(),
            not_after=end,
            chain=svid.chain,
            thumbprint=hashlib.sha256(svid.chain[0]).hexdigest(),
            key=key,
        )
        return self.current

    def x509_bundle(self, trust_domain: Any) -> Any:
        """The current bundle."""
        return self.ca.x509_bundle if trust_domain == self.ca.trust_domain else None

    def jwt_bundle(self, trust_domain: Any) -> Any:
        """None."""
        return None


@attrs.define
class StubGate:
    """The gate of one credential: records each check, and refuses when told to."""

    source: Rotating
    clock: Clock
    lease_id: str = "jitwi-1"
    txn: str = "txn-1"
    task: Task = TASK
    permissions: tuple[Permission, ...] = TASK.permissions
    checks: list[Any] = attrs.field(factory=list)
    refused: list[Any] = attrs.field(factory=list)
    refusal: Exception | None = None
    before_return: Any = None
    deadline: Deadline = attrs.field(default=Deadline(NOW + 120, 5000.0 + 120))

    @property
    def task_digest(self) -> TaskDigest:
        """The digest."""
        return self.task.digest(txn=self.txn)

    def refuse(self, error: Any, action: Any, resource: Entity) -> None:
        """Keep what a handle refused itself."""
        self.refused.append(error)

    def check(self, action: Any, resource: Entity, *, input: Any = None) -> Use:
        """Record, refuse or allow."""
        self.checks.append((action, resource, input))
        if self.refusal is not None:
            raise self.refusal
        if self.before_return is not None:
            self.before_return()
        entity = action if isinstance(action, Entity) else Entity("Shop::Action", action)
        return Use(entity, resource, self.permissions[0], len(self.checks), input, self.clock.now())

    def identity(self) -> Identity:
        """The current one."""
        return self.source.current

    def now(self) -> Instant:
        """The time."""
        return self.clock.now()


@attrs.define
class Desk:
    """What a test of an issuer needs."""

    clock: Clock
    source: Rotating
    gate: StubGate

    NOW, READ, REFUND, ORDER, TASK = NOW, READ, REFUND, ORDER, TASK

    def order(self, **changes: Any) -> Order:
        """An order of this desk's task."""
        arguments: dict[str, Any] = {
            "issuer": "orders-api",
            "lease_id": self.gate.lease_id,
            "txn": self.gate.txn,
            "task": TASK,
            "permissions": TASK.permissions,
            "spiffe_id": self.source.current.spiffe_id,
            "svid_kind": SvidKind.X509,
            "issued_at": self.clock.wall,
            "ends_at": NOW + 120,
            "svid_ends_at": self.source.current.not_after,
        }
        return Order(**(arguments | changes))

    def obtain(self, issuer: Any) -> Any:
        """Plan, issue, wrap."""
        order = self.order()
        plan = issuer.plan(order)
        return issuer.handle(order, plan, issuer.issue(order, plan), self.gate)


@pytest.fixture
def desk() -> Desk:
    """The desk."""
    clock = Clock()
    source = Rotating(clock)
    return Desk(clock, source, StubGate(source, clock))


class Service:
    """A real HTTP service on 127.0.0.1 that keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.redirect = ""
        self.status = 307
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                target = service.redirect if self.path != "/final" else ""
                self.send_response(service.status if target else 200)
                if target:
                    self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815 - the name that http.server looks for

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=30)


@pytest.fixture
def service() -> Iterator[Service]:
    """The service that a credential is for."""
    found = Service()
    yield found
    found.close()


@pytest.fixture
def stranger() -> Iterator[Service]:
    """Another service."""
    found = Service()
    yield found
    found.close()
