# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin as users meet it: test suites of their own, run by pytester.

What loads `cryptography` runs in a process of its own: its extension module cannot be loaded twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

pytest_plugins = ["pytester"]

SCHEMA = """
namespace Shop {
  entity Order;
  action refund appliesTo { principal: [Jitwi::Workload], resource: [Order],
                            context: { task: Jitwi::Task, input: { amount: Long } } };
}
"""
PRELUDE = f'''
import jitwi, pytest
from datetime import timedelta
from jitwi.policy import PolicyStore
SCHEMA = """{SCHEMA}"""
POLICIES = """@id("refund") permit (principal in Jitwi::Path::"example.org/ns", action, resource is Shop::Order)
when {{ context.input.amount <= 100 }};"""
ME = "spiffe://example.org/ns/refunds"
ORDER = jitwi.Entity("Shop::Order", "42")
TASK = dict(permissions={{"refund": ORDER}}, ttl=timedelta(minutes=1))
def policies():
    return PolicyStore.from_text(policies=POLICIES, schema=SCHEMA)
'''
HEAVY = ("grpc", "cedarpy", "cryptography", "httpx", "attrs", "spiffe", "sqlite3")
FIXTURES = ("jitwi_audit", "jitwi_ca", "jitwi_clock", "jitwi_guard", "jitwi_jit", "jitwi_leak_check", "jitwi_spire")
FIXTURES += ("jitwi_workload_api",)


@pytest.fixture
def run(pytester, monkeypatch):
    """Return a runner of a test file in this process, with the plugin."""
    for name in ("JITWI_SPIRE_DEV", "JITWI_REQUIRE_SPIRE"):
        monkeypatch.delenv(name, raising=False)
    loaded = any(dist.metadata["Name"] == "jitwi" for dist in _plugins_of_distributions())
    plugin = [] if loaded else ["-p", "jitwi.testing.pytest_plugin"]

    def run_file(body, *arguments, prelude=PRELUDE):
        pytester.makepyfile(prelude + textwrap.dedent(body))
        start = pytester.runpytest_subprocess if prelude else pytester.runpytest_inprocess
        return start(*plugin, "-p", "no:randomly", "-p", "no:asyncio", "-ra", *arguments)

    return run_file


def _plugins_of_distributions():
    from importlib.metadata import distributions

    return [dist for dist in distributions() if any(e.group == "pytest11" for e in dist.entry_points)]


def test_loading_it_costs_next_to_nothing() -> None:
    """A test run that uses no fixture loads no gRPC, no Cedar, no crypto: the plugin itself and pytest."""
    probe = (
        "import json, sys; import pytest; before = set(sys.modules); import jitwi.testing.pytest_plugin;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    loaded = json.loads(done.stdout)
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)
    assert len([name for name in loaded if name.startswith("jitwi")]) <= 4


def test_every_fixture_says_what_it_is(run) -> None:
    """`pytest --fixtures` lists each public fixture with a sentence."""
    result = run("", "--fixtures", prelude="")
    for name in FIXTURES:
        result.stdout.re_match_lines([f"^{name}.*pytest_plugin.py"])
    listed = result.stdout.str()
    assert "no docstring available" not in listed[listed.index("jitwi_") :].partition("-- fixtures defined")[0]


SUITE = """
from pathlib import Path
from jitwi.clock import SystemClock
from jitwi.errors import AccessDeniedError, GrantExpiredError
from jitwi.identity import WorkloadApiSource
from jitwi.issuers import TaskTokens
sockets = []

def test_walk(jitwi_jit, jitwi_guard, jitwi_audit):
    url = "https://orders.example.org/42"
    guard = jitwi_guard("https://orders.example.org", policies())
    jit = jitwi_jit(ME, policies(), issuers={"orders": TaskTokens("https://orders.example.org")})
    with jit.task("refund-order", **TASK) as grant:
        headers = grant.credential("orders").headers("POST", url, "refund", ORDER, input={"amount": 30})
        call = guard.check(jitwi.Request("POST", "/42", headers), "refund", ORDER, input={"amount": 30})
        assert (str(call.workload), call.txn) == (ME, grant.txn)
        with pytest.raises(AccessDeniedError):
            grant.check("refund", ORDER, input={"amount": 101})
    walk = {"task.opened", "use.allowed", "guard.allowed", "use.denied", "grant.ended"}
    assert walk <= set(jitwi_audit.kinds)

def test_time_stands_still(jitwi_clock, jitwi_jit):
    with jitwi_jit(ME, policies()).task("x", **TASK) as grant:
        jitwi_clock.advance(61)
        with pytest.raises(GrantExpiredError):
            grant.check("refund", ORDER, input={"amount": 1})

def test_time_goes_on(jitwi_jit):
    with jitwi_jit(ME, policies()).task("x", **TASK) as grant:
        assert isinstance(grant.runtime.clock, SystemClock)

def test_workload_apis(jitwi_workload_api, jitwi_ca):
    for name in ("a", "b"):
        api = jitwi_workload_api(f"spiffe://example.org/{name}")
        sockets.append(api.socket.removeprefix("unix://"))
        source = WorkloadApiSource(api.socket)
        source.start()
        try:
            assert source.identity(timeout=10).spiffe_id.path == f"/{name}"
            assert source.x509_bundle(jitwi_ca.trust_domain).authorities == jitwi_ca.x509_bundle.authorities
        finally:
            source.close()
    assert jitwi_workload_api("spiffe://elsewhere.test/x").ca is not jitwi_ca

def test_workload_apis_are_gone():
    assert sockets and not any(Path(one).exists() for one in sockets)

def test_live_grants(jitwi_jit, jitwi_leak_check):
    assert jitwi_leak_check() == ()
    with jitwi_jit(ME, policies()).task("x", **TASK) as grant:
        assert jitwi_leak_check() == (grant,)
    assert jitwi_leak_check() == ()
"""


def test_a_users_suite(run) -> None:
    """Caller and Guard share authority and record; who asks for the fake clock gets it; fakes end with their test."""
    run(SUITE).assert_outcomes(passed=6)


LEAKS = """
    import contextlib
    seen = []

    @pytest.fixture
    def held(jitwi_jit):
        with jitwi_jit(ME, policies()).task("held", **TASK) as grant:
            yield grant

    def test_leaks(jitwi_jit{also}):
        block = jitwi_jit(ME, policies()).task("forgotten", **TASK)
        seen.append((block, block.__enter__()))

    def test_raises_and_leaks(jitwi_jit{also}):
        block = jitwi_jit(ME, policies()).task("forgotten", **TASK)
        seen.append((block, block.__enter__()))
        assert 1 == 2

    def test_was_ended():
        for block, grant in seen:
            assert grant.ending.cause.value == {cause}
            block.__exit__(None, None, None)

    def test_clean(jitwi_jit, held{also}):
        with jitwi_jit(ME, policies()).task("x", **TASK) as grant:
            assert grant.is_live and held.is_live
"""


@pytest.mark.parametrize("how", ["fixture", "ini"])
def test_a_grant_left_live_fails_its_test(run, pytester, how) -> None:
    """A leak fails the test that made it and is ended; one that a fixture holds is none; its own error wins."""
    if how == "ini":
        pytester.makeini("[pytest]\njitwi_leak_check = true\n")
    result = run(LEAKS.format(also=", jitwi_leak_check" if how == "fixture" else "", cause='"revoked"'))
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*1 grant(s) live at the end of the test*", "*task `forgotten` of spiffe://*"])
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])
    assert sum(line.startswith("1 grant(s) live at the end") for line in result.outlines) == 1


def test_nobody_is_checked_who_did_not_ask(run) -> None:
    """Without fixture and ini option the plugin looks at nothing; `jitwi_jit` still ends what is left."""
    result = run(LEAKS.format(also="", cause='"process-stopped"'))
    result.assert_outcomes(passed=3, failed=1)
    assert "live at the end of the test:" not in result.stdout.str()


SPIRE = """
    def test_needs_spire(jitwi_spire):
        assert False, "it must not get here"
"""


def test_without_spire_a_test_skips_with_the_reason(run) -> None:
    """No `spire-dev` folder: the skip says where it was looked for and what to set."""
    result = run(SPIRE, prelude="")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*NO SPIRE: there is no `spiredev.py` in *spire-dev*JITWI_SPIRE_DEV*"])


def test_a_required_spire_that_is_missing_is_a_failure(run, monkeypatch, tmp_path) -> None:
    """With `JITWI_REQUIRE_SPIRE=1` nothing is skipped; the named folder is the one that counts."""
    monkeypatch.setenv("JITWI_REQUIRE_SPIRE", "1")
    monkeypatch.setenv("JITWI_SPIRE_DEV", str(tmp_path / "nowhere"))
    result = run(SPIRE, prelude="")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*SPIRE is required: there is no `spiredev.py` in *nowhere*"])


FAKE_TOOLS = """
class BinariesError(Exception): ...
def find_binaries():
    {find}
class SpireStack:
    def __init__(self, **settings): self.log = [settings]
    def __enter__(self): return self
    def __exit__(self, *_): print("stack is down")
"""


@pytest.fixture
def fake_tools(tmp_path, monkeypatch):
    """Return a maker of a `spire-dev` folder in the run's root."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("spiredev", "spirestack"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def make(folder, *, find="return None"):
        folder.mkdir()
        (folder / "spiredev.py").write_text(FAKE_TOOLS.format(find=find))
        return folder

    yield make
    sys.modules.pop("spiredev", None)


def test_unusable_binaries_skip_with_the_tools_own_words(run, pytester, fake_tools) -> None:
    """Tools that find no SPIRE say why, and that is the reason of the skip."""
    fake_tools(pytester.path / "spire-dev", find="raise BinariesError('no spire-server, run `build`')")
    result = run(SPIRE, prelude="")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*NO SPIRE: SPIRE cannot be used: no spire-server, run `build`*"])


def test_a_module_has_one_stack_and_takes_it_down(run, pytester, fake_tools) -> None:
    """The stack is fast, shared by the module's tests, and down afterwards; it is found in the root folder."""
    fake_tools(pytester.path / "spire-dev")
    result = run(
        """
        def test_one(jitwi_spire):
            assert jitwi_spire.log == [{"fast": True}]
            jitwi_spire.log.append("one")

        def test_two(jitwi_spire):
            assert jitwi_spire.log[1:] == ["one"]
        """,
        "-s",
        prelude="",
    )
    result.assert_outcomes(passed=2)
    assert result.stdout.str().count("stack is down") == 1


def test_tools_of_another_folder_are_not_taken_for_these(tmp_path, fake_tools) -> None:
    """A `spiredev` that was imported from elsewhere is refused, not used."""
    from jitwi.errors import ConfigurationError
    from jitwi.testing.spire import load_spire_dev, spire_stack

    (tmp_path / "b").mkdir()
    fake_tools(tmp_path / "spire-dev")
    fake_tools(tmp_path / "b" / "spire-dev")
    with spire_stack(tmp_path, oidc=False) as stack:
        assert stack.log == [{"fast": True, "oidc": False}]
    with pytest.raises(ConfigurationError, match="was imported from"):
        load_spire_dev(tmp_path / "b")
