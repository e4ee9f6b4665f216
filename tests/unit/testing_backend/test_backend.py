# SPDX-License-Identifier: Apache-2.0
"""The testing backend and its issuer do what the tests of others rely on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jitwi.credentials import ProbeResult, Strength, Wider
from jitwi.errors import AccessDeniedError, ConfigurationError, GrantEndedError, IssuanceError
from jitwi.secret import Secret
from jitwi.task import Entity, Permission, under
from jitwi.testing.backend import Refusal, TestingBackend, call_backend
from jitwi.testing.backend_issuer import BackendIssuer
from jitwi.testing.kill_point import KILL_AT_VARIABLE

READ = Entity("Shop::Action", "read")
REFUND = Entity("Shop::Action", "refund")
ORDER = Entity("Shop::Order", "42")
OTHER = Entity("Shop::Order", "43")


def test_plan_is_honest(issuer, make):
    """The plan says bearer, exact, closable sessions, effects outside and which standing right stands behind it."""
    plan = make().plan
    assert plan.is_bearer
    assert plan.is_exact
    assert plan.strength is Strength.SESSIONS_CLOSED
    assert plan.has_outside_effects
    assert "admin token" in plan.standing_right
    assert Wider.TIME not in plan.wider


def test_plan_refuses_under(issuer, make):
    """What the backend cannot enforce is refused, not widened."""
    with pytest.raises(IssuanceError) as caught:
        issuer.plan(make.order(permissions=[Permission(READ, under(ORDER))]))
    assert caught.value.reasons == ("under",)


def test_it_honours_what_was_declared(backend, make):
    """The backend itself allows the declared action on the declared resource and refuses everything else."""
    made = make()
    assert made.handle.use(READ, ORDER, {"amount": 30})["input"] == {"amount": 30}
    for action, resource in ((READ, OTHER), (Entity("Shop::Action", "delete"), ORDER)):
        with pytest.raises(AccessDeniedError) as caught:
            made.handle.use(action, resource)
        assert caught.value.reasons == ("backend-refused",)
    assert [use["action"] for use in backend.uses()] == [str(READ)]


def test_it_counts_uses(make):
    """`max_uses` of permission and task hold at the backend too, so the plan may say exact."""
    made = make(max_uses=3)
    made.handle.use(REFUND, ORDER)
    with pytest.raises(AccessDeniedError):
        made.handle.use(REFUND, ORDER)
    made.handle.use(READ, ORDER)
    made.handle.use(READ, ORDER)
    with pytest.raises(AccessDeniedError):
        made.handle.use(READ, ORDER)


def test_it_forgets_at_expiry(backend, issuer, make):
    """From its expiry on a credential is refused, and still listed until it is ended."""
    made = make(seconds=0.5)
    time.sleep(0.6)
    with pytest.raises(AccessDeniedError):
        made.handle.use(READ, ORDER)
    assert backend.leases() == []
    assert issuer.outstanding() == (made.order.lease_id,)


def test_gate_comes_first(backend, make):
    """A handle whose gate refuses sends nothing."""
    made = make()
    made.gate.error = GrantEndedError("over")
    with pytest.raises(GrantEndedError):
        made.handle.use(READ, ORDER)
    assert backend.uses() == []


def test_destroyed_handle(make):
    """A destroyed handle holds no secret; the grant's own reference is left for the last try."""
    made = make()
    made.handle.destroy()
    made.handle.destroy()
    with pytest.raises(GrantEndedError):
        made.handle.use(READ, ORDER)
    with pytest.raises(GrantEndedError):
        made.handle.open_session()
    assert not made.ref.secret.is_destroyed


def test_secret_is_not_shown(backend, issuer, make, tmp_path):
    """Secret and admin token are in no rendering and not in the backend's store."""
    made = make()
    secret, admin = made.ref.secret.reveal(), backend.admin_token.reveal()
    shown = repr([made.handle, made.issued, made.ref, issuer, backend, vars(issuer)])
    store = backend._store.read_text()
    assert secret not in shown + store
    assert admin not in shown + store


def test_probe(backend, issuer, make, crashed):
    """A probe says allowed while it lives, refused when it is gone, unreachable when nobody answers."""
    made = make()
    assert issuer.probe(made.ref) is ProbeResult.ALLOWED
    assert issuer.probe(made.ref, (READ, ORDER)) is ProbeResult.ALLOWED
    assert issuer.probe(crashed(made.ref)) is ProbeResult.ALLOWED
    issuer.end(made.ref)
    issuer.end(made.ref)
    assert issuer.probe(made.ref) is ProbeResult.REFUSED
    assert issuer.probe(crashed(made.ref)) is ProbeResult.REFUSED
    backend.kill()
    assert issuer.probe(made.ref) is ProbeResult.UNREACHABLE


def test_admin_only(backend, make):
    """Making, ending and listing need the admin token."""
    made = make()
    stranger = Secret("wrong")
    for operation, body in (("create", {}), ("end", {"lease_id": made.order.lease_id}), ("list", {"prefix": ""})):
        with pytest.raises(Refusal) as caught:
            call_backend(backend.address, operation, body, admin=stranger)
        assert caught.value.status == 401
    assert backend.leases() == [made.order.lease_id]


def test_one_id_one_credential(issuer, make):
    """Our id is taken once only."""
    made = make()
    with pytest.raises(Refusal) as caught:
        issuer.issue(made.order, made.plan)
    assert caught.value.status == 409


@pytest.mark.parametrize("fault", ["cut", "die", "late"])
def test_half_answered_issue(backend, make, issuer, fault):
    """The backend can make a credential and not say so; it is there under our id, also after a restart."""
    order = make.order()
    plan = issuer.plan(order)
    backend.fault("create", fault, seconds=20, times=1)
    with pytest.raises(IssuanceError) as caught:
        issuer.issue(order, plan)
    assert caught.value.reasons == ("unreachable",)
    if fault == "die":
        backend.wait_until_dead()
        backend.start()
    assert issuer.outstanding() == (order.lease_id,)


def test_slow_issue_comes_true_later(backend, make, issuer):
    """A request that nobody waits for any more can still make a credential."""
    order = make.order()
    backend.fault("create", "slow", seconds=2.5, times=1)
    with pytest.raises(IssuanceError):
        issuer.issue(order, issuer.plan(order))
    assert backend.leases() == []
    over = time.monotonic() + 20
    while backend.leases() != [order.lease_id]:
        assert time.monotonic() < over
        time.sleep(0.05)


def test_pause_and_resume(backend, issuer):
    """A stopped backend does not answer; the issuer gives up by itself; it answers again afterwards."""
    backend.pause()
    with pytest.raises(IssuanceError):
        issuer.outstanding()
    backend.resume()
    assert issuer.outstanding() == ()


def test_faults_can_be_counted(backend, issuer):
    """A fault with `times` goes away by itself."""
    backend.fault("list", "fail", times=2)
    for _ in range(2):
        with pytest.raises(Refusal):
            issuer.outstanding()
    assert issuer.outstanding() == ()


def test_unknown_fault_is_refused(backend):
    """A fault that does not exist is an error, not a silent no-op."""
    with pytest.raises(Refusal):
        backend.fault("end", "explode")


def test_it_dies_with_its_parent(tmp_path):
    """The backend ends when the process that started it is gone, however that went."""
    program = (
        "import os, sys\n"
        "from jitwi.testing.backend import TestingBackend\n"
        f"backend = TestingBackend({str(tmp_path / 'store')!r}); backend.start()\n"
        "print(backend.address, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    address = done.stdout.strip()
    assert done.returncode == -signal.SIGKILL
    over = time.monotonic() + 30
    while True:
        try:
            call_backend(address, "list", {"prefix": ""}, timeout=1)
        except Refusal:
            assert time.monotonic() < over
            time.sleep(0.05)
        except IssuanceError:
            break


def test_admin_token_file(backend, tmp_path):
    """The admin token can come from a file, read at the first call; a missing one is our error."""
    place = tmp_path / "token"
    issuer = BackendIssuer(backend.address, admin_token_file=str(place))
    with pytest.raises(IssuanceError):
        issuer.outstanding()
    place.write_text(backend.admin_token.reveal() + "\n")
    assert issuer.outstanding() == ()


def test_configuration_is_checked():
    """Without a token, or with a strength that it does not have, there is no issuer."""
    with pytest.raises(ConfigurationError):
        BackendIssuer("127.0.0.1:1")
    with pytest.raises(ConfigurationError):
        BackendIssuer("127.0.0.1:1", Secret("x"), strength="EXPIRES_ONLY")


def test_parallel_use_is_exact(make):
    """Eight threads on one credential with five uses: five are accepted."""
    made = make(max_uses=5, permissions=[Permission(READ, ORDER)])
    accepted = []

    def spend():
        for _ in range(3):
            with contextlib.suppress(AccessDeniedError):
                accepted.append(made.handle.use(READ, ORDER))

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(accepted) == 5


KILLED = """
import sys
from jitwi.testing.kill_point import Mortal, kill_point
class Thing:
    def act(self): print("acted", flush=True)
thing = Mortal(Thing(), "thing")
thing.act(); thing.act(); kill_point("end"); print("alive", flush=True)
"""


@pytest.mark.parametrize(
    ("kill_at", "output"),
    [
        ("", "acted acted alive"),
        ("elsewhere", "acted acted alive"),
        ("thing.act.before", ""),
        ("thing.act.after", "acted"),
        ("thing.act.before:2", "acted"),
        ("thing.act.after:2", "acted acted"),
        ("end", "acted acted"),
    ],
)
def test_kill_points(kill_at, output):
    """The environment says where a process under test dies, and at which pass."""
    environment = {**os.environ, KILL_AT_VARIABLE: kill_at}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout.split() == output.split()
    assert done.returncode == (0 if output.endswith("alive") else -signal.SIGKILL)


def test_store_survives_a_restart(tmp_path):
    """What the backend was told is on disk: a second one on the same store honours it."""
    store = tmp_path / "store"
    body = {"lease_id": "jitwi-a", "permissions": [["a", "b", None]], "max_uses": None, "expires_at": time.time() + 60}
    with TestingBackend(store) as first:
        secret = call_backend(first.address, "create", body, admin=first.admin_token)["secret"]
    with TestingBackend(store) as second:
        assert second.leases() == ["jitwi-a"]
        use = {"secret": secret, "action": "a", "resource": "b"}
        assert call_backend(second.address, "use", use)["lease_id"] == "jitwi-a"
        assert json.loads(store.read_text().splitlines()[0])["lease_id"] == "jitwi-a"
