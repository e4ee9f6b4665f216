# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of `jitwi.identity`: a fake agent, sources that are closed, and a way to wait for an event."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

import pytest

from jitwi.identity import IdentityEvent, IdentityEventKind, SourceState, WorkloadApiSource
from jitwi.testing.ca import TestCa
from jitwi.testing.workload_api import FakeWorkloadApi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDE = 20.0


class Watcher:
    """Records a source's events and waits for one of a kind."""

    def __init__(self, source: WorkloadApiSource) -> None:
        self.all: list[IdentityEvent] = []
        self._new: queue.Queue[IdentityEvent] = queue.Queue()
        self.threads: set[str] = set()
        source.subscribe(self._take)

    def _take(self, event: IdentityEvent) -> None:
        self.threads.add(threading.current_thread().name)
        self.all.append(event)
        self._new.put(event)

    def wait(self, kind: IdentityEventKind, timeout: float = WIDE) -> IdentityEvent:
        """Return the next event of this kind, skipping others."""
        while True:
            event = self._new.get(timeout=timeout)
            if event.kind is kind:
                return event

    def kinds(self, *, without_bundles: bool = True) -> list[str]:
        """Names of all events so far."""
        return [e.kind.value for e in self.all if not (without_bundles and e.kind is IdentityEventKind.BUNDLES)]


def until(condition: Callable[[], bool], timeout: float = WIDE) -> float:
    """Wait until something holds; returns how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout, "waited too long"
        time.sleep(0.002)
    return time.monotonic() - start


@pytest.fixture(scope="session")
def ca() -> TestCa:
    """An authority of example.org."""
    return TestCa("example.org")


@pytest.fixture
def api() -> Iterator[FakeWorkloadApi]:
    """A fake agent that serves one identity."""
    with FakeWorkloadApi("spiffe://example.org/ns/prod/refunds") as fake:
        yield fake


@pytest.fixture
def make_source(api: FakeWorkloadApi) -> Iterator[Callable[..., WorkloadApiSource]]:
    """Makes sources on the fake agent, not started; closes them."""
    made = []

    def make(endpoint: str | None = None, **options: object) -> WorkloadApiSource:
        source = WorkloadApiSource(endpoint if endpoint is not None else api.socket, **options)
        made.append(source)
        return source

    yield make
    for source in made:
        source.close()


@pytest.fixture
def source(make_source: Callable[..., WorkloadApiSource]) -> WorkloadApiSource:
    """A started source that has its identity and the JWT bundle."""
    made = make_source()
    made.start()
    found = made.identity(timeout=WIDE)
    until(lambda: made.jwt_bundle(found.spiffe_id.trust_domain) is not None)
    assert made.state is SourceState.READY
    return made


@pytest.fixture
def events(source: WorkloadApiSource) -> Watcher:
    """The events of `source` from now on."""
    return Watcher(source)


@pytest.fixture
def watch() -> type[Watcher]:
    """The watcher class, for sources that a test makes."""
    return Watcher


@pytest.fixture
def wait_until() -> Callable[..., float]:
    """The function `until`."""
    return until
