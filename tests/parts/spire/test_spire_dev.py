# SPDX-License-Identifier: Apache-2.0
"""spire-dev on the real SPIRE: every command's effect as a workload sees it.

Fetches through gRPC use the stubs that py-spiffe ships; the others go through `spire-agent api fetch`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from spiredev import SpireDevError, SpireStack, StackStateError
from spirestack import config
from spirestack.config import HOME, Settings
from spirestack.domain import Domain
from spirestack.process import ProcessRef, start_time, wait_until

pytestmark = pytest.mark.spire

PATIENCE = 30.0
ONE_FETCH = """
import sys
import grpc
from spiffe._proto import workload_pb2, workload_pb2_grpc
import os
with grpc.insecure_channel(os.environ["SPIFFE_ENDPOINT_SOCKET"]) as channel:
    stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
    stream = stub.FetchX509SVID(
        workload_pb2.X509SVIDRequest(), metadata=[("workload.spiffe.io", "true")], timeout=20, wait_for_ready=True
    )
    print(next(iter(stream)).svids[0].spiffe_id)
"""
names = (f"p{number}" for number in itertools.count())


@pytest.fixture
def persona(spire_dev):
    """A fresh persona of the shared stack, without an entry."""
    return spire_dev.add_persona(next(names))


@pytest.fixture
def workload(spire_dev, persona):
    """A fresh persona with one entry: (persona, SPIFFE ID, entry id)."""
    spiffe_id = spire_dev.spiffe_id(f"/{persona.name}")
    return persona, spiffe_id, spire_dev.add_entry(spiffe_id, persona)


@pytest.fixture
def own_stack(spire_binaries):
    """A stack for tests that hurt it."""
    with SpireStack(fast=True, oidc=False) as stack:
        yield stack


@contextlib.contextmanager
def x509_stream(endpoint, *, timeout=PATIENCE):
    """A live FetchX509SVID stream through gRPC."""
    grpc = pytest.importorskip("grpc")
    from spiffe._proto import workload_pb2, workload_pb2_grpc

    # Channels of one process share connections, and so the back-off of a test before, unless told otherwise.
    with grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        metadata = [("workload.spiffe.io", "true")]
        yield stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=metadata, timeout=timeout)


def ids(stack, persona):
    """SPIFFE IDs a persona is served now."""
    return sorted(svid.spiffe_id for svid in stack.fetch(persona))


def code_of(endpoint, *, timeout=PATIENCE):
    """Name of the status a new stream ends with before its first message, or the first SPIFFE ID."""
    import grpc

    with x509_stream(endpoint, timeout=timeout) as stream:
        try:
            return next(stream).svids[0].spiffe_id
        except grpc.RpcError as exc:
            return exc.code().name


def processes_of(stack):
    """All processes a stack recorded."""
    record = json.loads((stack.run_dir / "state.json").read_text())
    found = [ProcessRef.from_json(value) for value in record["processes"].values()]
    return found + [persona.process for persona in stack.personas().values()]


@pytest.mark.parametrize("oidc", [None, 4711])
@pytest.mark.parametrize("fast", [False, True])
def test_rendered_configuration_passes_validate(spire_binaries, fast, oidc):
    """Rule: SPIRE itself accepts every form of our configuration, and would refuse an unknown key."""
    run = config.make_run_dir(None)
    try:
        config.make_node_credentials(run)
        (run / "bootstrap.crt").write_bytes((run / "node-ca.crt").read_bytes())
        for name in ("server", "agent"):
            config.render(name, run, Settings("example.test", fast=fast), server_port=4712, oidc_port=oidc)
        Domain(run, spire_binaries, "example.test").validate()
        path = run / "agent.conf"
        path.write_text(path.read_text().replace("log_level", "log_levle"))
        with pytest.raises(SpireDevError):
            Domain(run, spire_binaries, "example.test").validate()
    finally:
        shutil.rmtree(run)


def test_up_and_down_leave_nothing(spire_binaries):
    """Rule: `down` leaves no process and no directory, and may be called twice."""
    stack = SpireStack(fast=True).up()
    person = stack.add_persona("one")
    stack.add_entry("/one", person)
    everything, run = processes_of(stack), stack.run_dir
    assert len(everything) == 5
    assert all(process.is_running() for process in everything)
    assert run.stat().st_mode & 0o777 == 0o711
    stack.down()
    assert not any(process.is_running() for process in everything)
    assert not run.exists()
    assert stack.down() is None
    with pytest.raises(StackStateError):
        _ = stack.socket


def test_down_ends_a_halted_stack(spire_binaries):
    """Rule: halted processes are ended like others."""
    stack = SpireStack(fast=True, oidc=False).up()
    everything = processes_of(stack)
    stack.pause("agent")
    stack.pause("server")
    stack.down()
    assert not any(process.is_running() for process in everything)


def test_logs_stay_when_the_body_fails(spire_binaries):
    """Rule: a failing test keeps the logs, nothing else, and its error says where."""
    stack = SpireStack(fast=True, oidc=False)

    def fail_inside():
        with stack:
            raise ZeroDivisionError(str(stack.run_dir))

    with pytest.raises(ZeroDivisionError) as caught:
        fail_inside()
    run = Path(str(caught.value))
    try:
        assert str(run) in caught.value.__notes__[0]
        assert [path.name for path in run.iterdir()] == ["log"]
        assert (run / "log" / "server.log").exists()
    finally:
        shutil.rmtree(run)


def test_a_taken_port_is_tried_again(spire_binaries, monkeypatch):
    """Rule: losing the race for a free port costs another try, not the stack."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        offers = iter([taken.getsockname()[1]])
        real = config.free_port
        monkeypatch.setattr(config, "free_port", lambda: next(offers, None) or real())
        with SpireStack(fast=True, oidc=False) as stack:
            assert stack.is_running()


def test_two_stacks_side_by_side(spire_dev, workload, own_stack):
    """Rule: stacks share no port, path or name: each serves its own and ends alone."""
    person = own_stack.add_persona(workload[0].name)
    own_stack.add_entry("/other", person)
    assert ids(spire_dev, workload[0]) == [workload[1]]
    assert ids(own_stack, person) == ["spiffe://example.test/other"]
    own_stack.down()
    assert spire_dev.is_running()
    assert ids(spire_dev, workload[0]) == [workload[1]]


def test_a_stack_ends_with_its_owner(spire_binaries):
    """Rule: a killed test run leaves no SPIRE behind."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(HOME)!r}); from spiredev import SpireStack\n"
        "stack = SpireStack(fast=True, oidc=False).up(); print(stack.run_dir, flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        try:
            run = Path(owner.stdout.readline().strip())
            everything = processes_of(SpireStack.attach(run))
        finally:
            owner.kill()
    wait_until(lambda: not run.exists(), "the end of the run directory", timeout=PATIENCE)
    gone = lambda: not any(start_time(process.pid) == process.started for process in everything)  # noqa: E731
    wait_until(gone, "the end of all processes, the guard's own last", timeout=PATIENCE)


def test_two_personas_get_two_identities(spire_dev, workload):
    """Rule: one test process is two workloads, and without an entry a persona is nobody."""
    second = spire_dev.add_persona(next(names))
    assert code_of(second.socket) == "PERMISSION_DENIED"
    spire_dev.add_entry("/second", second)
    assert code_of(second.socket) == "spiffe://example.test/second"
    assert code_of(workload[0].socket) == workload[1]


def test_a_real_process_has_a_personas_identity(spire_dev, workload):
    """Rule: a program run by the persona's interpreter talks to the agent itself and is that workload."""
    person, spiffe_id, _ = workload
    command = [str(person.executable), "-c", ONE_FETCH]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=person.environment(), cwd="/"
    )
    assert done.stdout.strip() == spiffe_id, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
def test_a_persona_of_another_user(spire_dev):
    """Rule: as root a persona may be another user and have other groups, without a copied interpreter."""
    user = spire_dev.add_persona(next(names), uid=2001, gid=2001, groups=(4001,), copy=False)
    member = spire_dev.add_persona(next(names), groups=(4002,), copy=False)
    spire_dev.add_entry("/user", ["unix:uid:2001", "unix:supplementary_gid:4001"])
    spire_dev.add_entry("/member", ["unix:supplementary_gid:4002"])
    assert ids(spire_dev, user) == ["spiffe://example.test/user"]
    assert ids(spire_dev, member) == ["spiffe://example.test/member"]


def test_two_entries_for_one_process(spire_dev, workload):
    """Rule: two matching entries give two SVIDs in one answer, in the order of the entry ids."""
    person = workload[0]
    spire_dev.add_entry("/zz", person, entry_id=f"zz-{person.name}", hint="z")
    spire_dev.add_entry("/aa", person, entry_id=f"00-{person.name}", hint="a")
    served = [(svid.spiffe_id, svid.hint) for svid in spire_dev.fetch(person)]
    assert served[0] == ("spiffe://example.test/aa", "a")
    assert served[-1] == ("spiffe://example.test/zz", "z")
    assert len(served) == 3


def test_a_deleted_entry_ends_the_stream(spire_dev, workload):
    """Rule: `delete_entry` returns when the workload is refused; its open stream ends PermissionDenied."""
    grpc = pytest.importorskip("grpc")
    person, spiffe_id, entry_id = workload
    with x509_stream(person.socket) as stream:
        assert next(stream).svids[0].spiffe_id == spiffe_id
        spire_dev.delete_entry(entry_id)
        assert spire_dev.fetch(person) == []
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_withdraw_takes_every_entry_of_an_id(spire_dev, workload):
    """Rule: `withdraw` deletes all entries of one SPIFFE ID and leaves the others."""
    person, spiffe_id, _ = workload
    spire_dev.add_entry(spiffe_id, [f"unix:path:{person.executable}"], hint="second")
    spire_dev.add_entry("/stays", person)
    assert spire_dev.withdraw(spiffe_id) == 2
    assert ids(spire_dev, person) == ["spiffe://example.test/stays"]
    with pytest.raises(SpireDevError):
        spire_dev.withdraw(spiffe_id)


def test_touch_rotates_one_svid_and_keeps_the_entry(spire_dev, persona):
    """Rule: a touched entry is signed anew with everything it had."""
    entry_id = spire_dev.add_entry(
        "/touched", persona, x509_ttl=90, jwt_ttl=20, hint="h", dns=["worker"], include_jti=True
    )
    before, entry = spire_dev.fetch(persona)[0], spire_dev.entry(entry_id)
    spire_dev.touch_entry(entry_id)
    after, again = spire_dev.fetch(persona)[0], spire_dev.entry(entry_id)
    assert (after.spiffe_id, after.hint) == (before.spiffe_id, before.hint)
    assert after.serial != before.serial
    assert again.revision == entry.revision + 1
    assert {**again.raw, "revision_number": 0} == {**entry.raw, "revision_number": 0}


def test_a_paused_agent_hangs_and_serves_again(own_stack):
    """Rule: a halted agent lets callers run into their deadline; resumed, it serves."""
    person = own_stack.add_persona("one")
    own_stack.add_entry("/one", person)
    own_stack.pause_agent()
    assert own_stack.status()["processes"]["agent"] == "paused"
    assert code_of(person.socket, timeout=0.5) == "DEADLINE_EXCEEDED"
    own_stack.resume_agent()
    assert code_of(person.socket) == "spiffe://example.test/one"


def test_a_killed_agent_is_gone_and_comes_back(own_stack):
    """Rule: a killed agent means Unavailable; started again it attests and serves."""
    person = own_stack.add_persona("one")
    own_stack.add_entry("/one", person)
    own_stack.kill_agent()
    assert code_of(person.socket) == "UNAVAILABLE"
    with pytest.raises(StackStateError):
        own_stack.pause_agent()
    own_stack.start_agent()
    wait_until(lambda: ids(own_stack, person) == ["spiffe://example.test/one"], "the identity", timeout=PATIENCE)
    with pytest.raises(StackStateError, match="already"):
        own_stack.start_agent()


def test_without_a_server_the_agent_goes_on(own_stack):
    """Rule: SVIDs are served while the server is away, changes are refused, and entries survive its restart."""
    person = own_stack.add_persona("one")
    own_stack.add_entry("/one", person)
    own_stack.kill("server")
    assert ids(own_stack, person) == ["spiffe://example.test/one"]
    with pytest.raises(StackStateError):
        own_stack.add_entry("/two", person)
    own_stack.start_server()
    assert [entry.spiffe_id for entry in own_stack.entries()] == ["spiffe://example.test/one"]


def test_evicted_and_banned_agents(own_stack):
    """Rule: an evicted agent attests itself again; a banned one ends itself until it is started again."""
    person = own_stack.add_persona("one")
    own_stack.add_entry("/one", person)
    own_stack.evict_agent()
    wait_until(lambda: ids(own_stack, person) == ["spiffe://example.test/one"], "the identity", timeout=PATIENCE)
    own_stack.ban_agent()
    assert not own_stack.process("agent").is_running()
    own_stack.start_agent()
    wait_until(lambda: ids(own_stack, person) == ["spiffe://example.test/one"], "the identity", timeout=PATIENCE)


@pytest.mark.slow
def test_rotated_authorities_are_the_only_ones_left(own_stack):
    """Rule: after `rotate` workloads hold SVIDs of the new authority and trust nothing else."""
    person = own_stack.add_persona("one")
    own_stack.add_entry("/one", person)
    before = own_stack.fetch(person)[0]
    new, new_jwt = own_stack.rotate_all()
    after = own_stack.fetch(person)[0]
    assert after.spiffe_id == before.spiffe_id
    assert after.authority_id == new != before.authority_id
    assert after.bundle_ids == {new}
    tokens, keys = own_stack.domain.fetch_jwt(person.folder / "api.sock", "somebody")
    assert keys == {new_jwt}
    assert json.loads(decoded(tokens[0], 0))["kid"] == new_jwt


def test_minted_svids_live_as_long_as_asked(spire_dev):
    """Rule: minted SVIDs are the server's own signatures with any lifetime."""
    minted = spire_dev.mint_x509("/minted", ttl=5, dns=["minted"])
    leaf = x509.load_pem_x509_certificate(minted.certificates.encode())
    names_ = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names_.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.test/minted"]
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == 15
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(minted.bundle.encode()))
    key = serialization.load_pem_private_key(minted.private_key.encode(), None)
    assert key.public_key() == leaf.public_key()
    assert minted.private_key not in repr(minted)
    claims = json.loads(decoded(spire_dev.mint_jwt("/minted", ["a", "b"], ttl=2), 1))
    assert claims["exp"] - claims["iat"] == 2
    assert sorted(claims["aud"]) == ["a", "b"]
    assert claims["iss"] == spire_dev.oidc_issuer


def test_the_provider_serves_the_keys_of_our_server(spire_dev):
    """Rule: the discovery document names our issuer, and its keys have an issued token's `kid`."""
    parts = urlsplit(spire_dev.oidc_issuer)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    connection.request("GET", "/.well-known/openid-configuration")
    assert json.loads(connection.getresponse().read())["issuer"] == spire_dev.oidc_issuer
    connection.request("GET", "/keys")
    keys = json.loads(connection.getresponse().read())["keys"]
    connection.close()
    kid = json.loads(decoded(spire_dev.mint_jwt("/minted", "a"), 0))["kid"]
    assert kid in {key["kid"] for key in keys if key["use"] == "sig"}


def test_faults_of_a_relay_reach_grpc(spire_dev, workload):
    """Rule: a cut relay is Unavailable, a swallowing one runs into the deadline, and `ok` repairs both."""
    person, spiffe_id, _ = workload
    person.cut()
    assert code_of(person.socket) == "UNAVAILABLE"
    person.ok()
    person.drop()
    assert code_of(person.socket, timeout=0.5) == "DEADLINE_EXCEEDED"
    person.ok()
    assert code_of(person.socket) == spiffe_id


def test_an_effect_that_cannot_be_seen_runs_into_its_deadline(own_stack):
    """Rule: a wait ends at its deadline with what was waited for."""
    person = own_stack.add_persona("one")
    own_stack.pause_agent()
    begun = time.monotonic()
    with pytest.raises(SpireDevError, match=r"`spiffe://example\.test/one` was not seen within 0\.2 s"):
        own_stack.add_entry("/one", person, timeout=0.2)
    assert time.monotonic() - begun < PATIENCE


@pytest.mark.slow
def test_federated_domains_know_each_other(spire_binaries):
    """Rule: both domains hold the other's bundle, and `down` ends both."""
    with SpireStack(fast=True, federated=True, oidc=False) as stack:
        partner = stack.partner
        person, other = stack.add_persona("one"), partner.add_persona("one")
        stack.add_entry("/one", person, federates_with=["partner.test"])
        partner.add_entry("/one", other, federates_with=["example.test"])
        for here, endpoint in (("example.test", person.socket), ("partner.test", other.socket)):
            there = {"example.test": "partner.test", "partner.test": "example.test"}[here]
            with x509_stream(endpoint) as stream:
                message = next(stream)
            assert message.svids[0].spiffe_id == f"spiffe://{here}/one"
            assert set(message.federated_bundles) == {f"spiffe://{there}"}
        everything = processes_of(stack) + processes_of(partner)
    assert not any(process.is_running() for process in everything)


@pytest.mark.slow
def test_the_command_line_from_up_to_down(spire_binaries):
    """Rule: the commands of the README work in sequence, each in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="jw", dir="/tmp"))
    run = folder / "r"
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "SPIRE_BIN_DIR": str(spire_binaries.server.parent)}
    environment.pop("JITWI_SPIRE_RUN", None)

    def call(*words, status=0, stream="stdout"):
        command = [sys.executable, str(HOME / "spiredev.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment)
        assert done.returncode == status, done.stderr
        return getattr(done, stream)

    try:
        exports = dict(
            line.removeprefix("export ").split("=", 1)
            for line in call("up", "--fast", "--run-dir", str(run)).splitlines()
        )
        assert exports["SPIFFE_ENDPOINT_SOCKET"] == f"unix://{run}/p/worker/api.sock"
        assert code_of(exports["SPIFFE_ENDPOINT_SOCKET"]) == "spiffe://example.test/worker"
        assert f"unix://{run}/p/guarded/api.sock" in call("env", "--persona", "guarded")
        assert f"unix://{run}/w/api.sock" in call("env", "--agent")
        assert call("persona", "add", "third").strip() == f"unix://{run}/p/third/api.sock"
        entry_id = call("entry", "add", "/third", "--persona", "third", "--hint", "h").strip()
        call("entry", "touch", entry_id)
        assert f"{entry_id} spiffe://example.test/third hint=h" in call("entry", "list")
        call("entry", "rm", entry_id)
        call("withdraw", "/worker")
        unseen = call("entry", "add", "/far", "--selector", "unix:uid:4294", stream="stderr")
        assert "not seen" in unseen
        for words in (["pause"], ["resume"], ["kill", "agent"], ["start", "agent"], ["evict"], ["ban"], ["start"]):
            call(*words)
        assert call("persona", "fault", "third", "delay", "0.1").startswith("delay 0.1")
        status = json.loads(call("status"))
        assert set(status["processes"].values()) == {"running"}
        assert status["identities"]["worker"] == []
        assert "== server" in call("logs")
        call("withdraw", "/nobody", status=1)
        call("down")
        assert not run.exists()
        call("status", status=1)
    finally:
        if run.exists():
            SpireStack.attach(run).down()
        shutil.rmtree(folder)


def test_the_python_example_of_the_readme_runs(spire_binaries):
    """Rule: what spire-dev/README.md shows works as it stands there."""
    example = (HOME / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=90, check=False, cwd=HOME.parent
    )
    assert done.returncode == 0, done.stderr


def decoded(token, part):
    """One part of a compact token, unverified."""
    text = token.split(".")[part]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
