# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of code that uses jitwi. pytest finds this plugin by itself once jitwi is installed.

Holds the fixtures below and the leak check. What a fixture needs is imported when it is asked for: a run that asks for
none pays for none. Does not hold the fakes themselves; `-p no:jitwi` switches everything off.

=====================  ==============================================================================================
`jitwi_ca`             a `TestCa` of `example.org`
`jitwi_clock`          a `FakeClock`; whoever asks for it moves the time of the other fixtures too
`jitwi_audit`          a `RecordingSink`, shared by all sides of one test
`jitwi_workload_api`   `jitwi_workload_api("spiffe://example.org/x", ...)`: a `FakeWorkloadApi` that runs
`jitwi_jit`            `jitwi_jit(as_, policies, ...)`: a `JIT` that acts as that workload, without an agent
`jitwi_guard`          `jitwi_guard(audience, policies, ...)`: a `Guard` that trusts `jitwi_ca`
`jitwi_spire`          a real SPIRE stack for the module; skips if there is none, fails if it is required
`jitwi_leak_check`     fails a test that leaves a grant live; `jitwi_leak_check = true` in the ini file: every test
=====================  ==============================================================================================

Whatever a factory made is closed at the end of the test.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator

    from jitwi.clock import Clock
    from jitwi.grants import Grant
    from jitwi.guard import Guard
    from jitwi.jit import JIT
    from jitwi.policy import PolicyStore
    from jitwi.spiffe_id import SpiffeId
    from jitwi.testing.audit import RecordingSink
    from jitwi.testing.ca import TestCa
    from jitwi.testing.clock import FakeClock
    from jitwi.testing.workload_api import FakeWorkloadApi

    Policies = str | os.PathLike[str] | PolicyStore

__all__ = [
    "jitwi_audit",
    "jitwi_ca",
    "jitwi_clock",
    "jitwi_guard",
    "jitwi_jit",
    "jitwi_leak_check",
    "jitwi_spire",
    "jitwi_workload_api",
]

_LEAK_CHECK = "jitwi_leak_check"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(_LEAK_CHECK, "fail every test that leaves a jitwi grant live (default: false)", "bool", default=False)


def _clock_of(request: pytest.FixtureRequest) -> Clock | None:
    """The fake clock, if this test asked for it: a frozen clock that nobody asked for would only surprise."""
    clock: Clock | None = request.getfixturevalue("jitwi_clock") if "jitwi_clock" in request.fixturenames else None
    return clock


@pytest.fixture
def jitwi_clock() -> FakeClock:
    """A `FakeClock` that stands at the time of the test's start; the other fixtures of the test go by it."""
    from jitwi.testing.clock import FakeClock

    return FakeClock()


@pytest.fixture
def jitwi_ca(request: pytest.FixtureRequest) -> TestCa:
    """The `TestCa` of `example.org` that the other fixtures of the test use."""
    from jitwi.testing.ca import TestCa

    return TestCa("example.org", clock=_clock_of(request))


@pytest.fixture
def jitwi_audit() -> RecordingSink:
    """The `RecordingSink` that `jitwi_jit` and `jitwi_guard` write to: both sides of a test in one list."""
    from jitwi.testing.audit import RecordingSink

    return RecordingSink()


def _ca_for(spiffe_id: SpiffeId | str, ca: TestCa) -> TestCa | None:
    """The test's CA where it is the right one; None lets the caller make another."""
    from jitwi.spiffe_id import SpiffeId

    parsed = SpiffeId.parse(spiffe_id) if isinstance(spiffe_id, str) else spiffe_id
    return ca if parsed.trust_domain == ca.trust_domain else None


@pytest.fixture
def jitwi_workload_api(request: pytest.FixtureRequest, jitwi_ca: TestCa) -> Iterator[Callable[..., FakeWorkloadApi]]:
    """`make(*spiffe_ids, **settings)` returns a running `FakeWorkloadApi`; its `socket` is the endpoint.

    Args are those of `FakeWorkloadApi`. Identities of `example.org` are issued by `jitwi_ca`. For several processes
    with different identities make one each.
    """
    from jitwi.testing.workload_api import FakeWorkloadApi

    with contextlib.ExitStack() as running:

        def make(*spiffe_ids: SpiffeId | str, **settings: Any) -> FakeWorkloadApi:
            settings.setdefault("ca", _ca_for(spiffe_ids[0], jitwi_ca) if spiffe_ids else jitwi_ca)
            settings.setdefault("clock", _clock_of(request))
            return running.enter_context(FakeWorkloadApi(*spiffe_ids, **settings))

        yield make


@pytest.fixture
def jitwi_jit(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    jitwi_ca: TestCa,
    jitwi_audit: RecordingSink,
) -> Iterator[Callable[..., JIT]]:
    """`make(as_, policies, **settings)` returns a `JIT` that acts as the workload `as_`, without an agent.

    Args are those of `jitwi.testing.jit`. Unless given, its SVID is issued by `jitwi_ca`, it writes to `jitwi_audit`
    and keeps its state in a folder of its own.
    """
    from jitwi.testing import jit

    with contextlib.ExitStack() as made:

        def make(as_: SpiffeId | str, policies: Policies, **settings: Any) -> JIT:
            settings.setdefault("ca", _ca_for(as_, jitwi_ca))
            settings.setdefault("clock", _clock_of(request))
            settings.setdefault("audit", jitwi_audit)
            settings.setdefault("state_dir", tmp_path_factory.mktemp("jitwi-state"))
            one = jit(as_, policies, **settings)
            made.callback(one.close)
            return one

        yield make


@pytest.fixture
def jitwi_guard(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    jitwi_ca: TestCa,
    jitwi_audit: RecordingSink,
) -> Iterator[Callable[..., Guard]]:
    """`make(audience, policies, **settings)` returns a `Guard`; call it by `jitwi.testing.call`, or from `jitwi_jit`.

    Args are those of `Guard`. Unless given, it trusts `jitwi_ca`, writes to `jitwi_audit` and keeps its state in a
    folder of its own.
    """
    from jitwi.guard import Guard
    from jitwi.testing.guard import CaBundles

    with contextlib.ExitStack() as made:

        def make(audience: str, policies: Policies, **settings: Any) -> Guard:
            settings.setdefault("identity", CaBundles(jitwi_ca))
            settings.setdefault("clock", _clock_of(request))
            settings.setdefault("audit", jitwi_audit)
            settings.setdefault("state_dir", tmp_path_factory.mktemp("jitwi-guard"))
            one = Guard(audience, policies, **settings)
            made.callback(one.close)
            return one

        yield make


@pytest.fixture(scope="module")
def jitwi_spire(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A real SPIRE server and agent of their own for the module: a `SpireStack`, fast, without entries.

    Its tools are looked for in the folder that `JITWI_SPIRE_DEV` names, or in `spire-dev` of the root folder. Without
    them the test is skipped with the reason; with `JITWI_REQUIRE_SPIRE=1` it fails.
    """
    from jitwi.errors import ConfigurationError
    from jitwi.testing.spire import is_spire_required, load_spire_dev

    try:
        tools = load_spire_dev(request.config.rootpath)
    except ConfigurationError as exc:
        if is_spire_required():
            pytest.fail(f"SPIRE is required: {exc}", pytrace=False)
        pytest.skip(f"NO SPIRE: {exc}")
    with tools.SpireStack(fast=True) as stack:
        yield stack


@pytest.fixture
def jitwi_leak_check() -> Callable[[], tuple[Grant, ...]]:
    """Fails this test if it leaves a grant live that it opened: a `with` block that was entered and never left.

    Looked at when the test function is over, before its fixtures are: what fixtures opened does not count. The grants
    are revoked then. Also returns a function that returns all grants that are live now in this process.
    """
    return lambda: tuple(_live_grants().values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Do the leak check around a test that asked for it."""
    if _LEAK_CHECK not in getattr(item, "fixturenames", ()) and not item.config.getini(_LEAK_CHECK):
        return (yield)
    before = set(_live_grants())
    try:
        result = yield
    finally:
        left = [grant for grant_id, grant in _live_grants().items() if grant_id not in before]
        for grant in left:
            grant.revoke("left live by a test")
    if left:
        names = "\n".join(f"  task `{grant.declaration.name}` of {grant.workload}, grant {grant.id}" for grant in left)
        pytest.fail(f"{len(left)} grant(s) live at the end of the test:\n{names}", pytrace=False)
    return result


def _live_grants() -> dict[str, Grant]:
    module = sys.modules.get("jitwi.jit")
    if module is None:  # then nobody can have opened one
        return {}
    instances: list[JIT] = list(module._all)  # noqa: SLF001 - one package
    return {grant.id: grant for one in instances for grant in one.live_grants if grant.is_live}
