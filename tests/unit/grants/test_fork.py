# SPDX-License-Identifier: Apache-2.0
"""Bar 11 at the grants: a forked child uses nothing of its parent's, does not hang, and starts anew."""

import asyncio
import ctypes
import json
import multiprocessing
import os
import select
import sys
import threading

import pytest

import jitwi
from jitwi.errors import StateError
from jitwi.issuers import TaskTokens

URL = "https://orders.example.org/orders/42"


def run_in_child(fork, work):
    """Fork, run `work` in the child, return what it answered within the deadline."""
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 - the child reports whatever it was
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], 20)
        assert ready, "the child hangs"
        return json.loads(os.read(reading, 65536))
    finally:
        os.close(reading)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def libc_fork():
    """Fork without Python's hooks, the interpreter's lock held and, for that moment, asked for by no other thread.

    In the child nobody would ever take it over: the interpreter itself would wait for that, before any code of ours.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    threading.Event().wait(0.05)
    try:
        return ctypes.PyDLL(None).fork()
    finally:
        sys.setswitchinterval(interval)


FORKS = {"os.fork": os.fork, "libc": libc_fork}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", FORKS)
def test_a_child_uses_neither_grant_nor_handle_of_its_parent(make_jit, shop, how):
    """Both raise `StateError` in the child; the parent goes on as if nothing had happened."""
    jit, _ = make_jit(issuers={"api": TaskTokens("https://orders.example.org")})
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        token = grant.credential("api")
        token.headers("GET", URL, "read", shop.order)

        def attempts():
            found = []
            for attempt in (
                lambda: grant.check("read", shop.order),
                lambda: grant.credential("api"),
                lambda: token.headers("GET", URL, "read", shop.order),
                lambda: grant.identity.key.sign(b"x"),
            ):
                try:
                    attempt()
                except StateError as error:
                    found.append(error.reasons[0])
                else:
                    found.append("ALLOWED")
            return found

        answers = run_in_child(FORKS[how], attempts)
        assert "ALLOWED" not in answers
        assert answers[:3] == ["forked"] * 3
        grant.check("read", shop.order)
        token.headers("GET", URL, "read", shop.order)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_revoking_in_a_child_is_refused(make_jit, shop):
    """The child cannot end its parent's grant by name either."""
    jit, _ = make_jit()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:

        def revoke():
            try:
                grant.revoke()
            except StateError as error:
                return error.reasons[0]
            return "revoked"

        assert run_in_child(os.fork, revoke) == "forked"
        grant.check("read", shop.order)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", ["with", "async with"])
def test_leaving_the_block_in_a_child_does_not_end_the_parents_grant(make_jit, shop, how):
    """A child that runs out of its parent's block publishes no ending: Guards go on accepting the parent's proofs."""
    jit, sink = make_jit(issuers={"api": TaskTokens("https://orders.example.org")})
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    with block as grant:
        token = grant.credential("api")
        token.headers("GET", URL, "read", shop.order)
        (public_id,) = token.public_ids

        def leave():
            if how == "with":
                block.__exit__(None, None, None)
            else:
                asyncio.run(block.__aexit__(None, None, None))
            return "left"

        assert run_in_child(os.fork, leave) == "left"
        assert not grant.runtime.endings.is_ended(public_id)
        token.headers("GET", URL, "read", shop.order)
    assert grant.runtime.endings.is_ended(public_id)
    assert "grant.ended" in sink.kinds


def _open_in_child(connection, make):
    jit = make()
    with jit.task("x", permissions={"read": jitwi.Entity("Shop::Order", "42")}, ttl=_ttl()) as grant:
        grant.check("read", jitwi.Entity("Shop::Order", "42"))
        connection.send(grant.uses)
    jit.close()


def _ttl():
    from datetime import timedelta

    return timedelta(seconds=30)


def _fresh():
    from jitwi.policy import PolicyStore
    from jitwi.testing import jit as make_test_jit

    store = PolicyStore.from_text(
        policies="permit (principal, action, resource);",
        schema="namespace Shop { entity Order; action read appliesTo { principal: [Jitwi::Workload],"
        " resource: [Order], context: { task: Jitwi::Task } }; }",
    )
    return make_test_jit("spiffe://example.org/a", store)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_start_anew(method):
    """Whatever the start method, a child that makes its own `JIT` works, within seconds."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    parent = _fresh().start()
    child = context.Process(target=_open_in_child, args=(theirs, _fresh))
    child.start()
    try:
        assert ours.poll(30), "the child hangs"
        assert ours.recv() == 1
        child.join(20)
        assert child.exitcode == 0
    finally:
        child.kill()
        parent.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_same_jit_starts_anew_in_a_child_as_in_a_preforking_server(make_jit, shop, tmp_path):
    """The `JIT` that a server made before it forked serves tasks in its workers, with an audit chain of their own."""
    jit, _ = make_jit(audit=str(tmp_path / "audit"))
    jit.start()

    def work():
        with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
            return grant.check("read", shop.order).number

    assert run_in_child(os.fork, work) == 1
    assert work() == 1
