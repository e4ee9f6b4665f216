# SPDX-License-Identifier: Apache-2.0
"""Exactly once and exact counts at a Guard, over threads, processes, tasks and encodings (bars 19, 29)."""

from __future__ import annotations

import base64
import json
import multiprocessing
import random
import threading
from datetime import timedelta

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import jitwi.guard as g
import jitwi.state.sqlite
from jitwi.errors import EvidenceError, JitwiError
from jitwi.guard import Guard, Request
from jitwi.identity import StaticBundleSource, x509_bundle
from jitwi.policy import PolicyStore
from jitwi.spiffe_id import TrustDomain
from jitwi.task import Entity, Permission
from jitwi.testing.audit import RecordingSink
from jitwi.testing.ca import TestCa
from jitwi.testing.guard import CaBundles, Caller, identity_of

AUDIENCE = "https://orders.example.org"
ORDER = Entity("Shop::Order", "42")
POLICIES = 'permit (principal, action, resource) unless { resource == Shop::Order::"denied" };'
SCHEMA = """
namespace Shop {
  entity Order;
  action read, refund appliesTo { principal: [Jitwi::Workload], resource: [Order], context: { task: Jitwi::Task } };
}
"""
SPAWN = multiprocessing.get_context("spawn")


def _store():
    return PolicyStore.from_text(policies=POLICIES, schema=SCHEMA)


def _guard(folder, bundles):
    store = _store()
    store.load()
    return Guard(AUDIENCE, store, identity=bundles, state_dir=folder, audit=RecordingSink())


def _spend(guard, requests, threads):
    """Show all requests from each thread, and return how many were allowed and which refusals there were."""
    gate, allowed, refused = threading.Barrier(threads), [], []

    def run(number: int) -> None:
        order = list(requests)
        random.Random(number).shuffle(order)
        gate.wait(60)
        for action, resource, request in order:
            try:
                allowed.append(guard.check(request, action, resource).jti)
            except JitwiError as error:
                refused.append(error.code)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(100)
    return allowed, refused


def _remember(start) -> None:
    """In a process of the pool: keep the gate at which all start at one moment, and be patient on a slow machine."""
    _elsewhere.start = start
    jitwi.state.sqlite.BUSY_SECONDS = 30.0


def _elsewhere(folder, roots, requests, threads):
    """Do the same in another process, with a Guard of its own on the shared folder."""
    bundles = StaticBundleSource([x509_bundle(TrustDomain("example.org"), roots)])
    with _guard(folder, bundles) as guard:
        _elsewhere.start.wait(60)
        return _spend(guard, requests, threads)


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """A slow machine is no reason for a refusal here."""
    monkeypatch.setattr("jitwi.state.sqlite.BUSY_SECONDS", 30.0)


@pytest.fixture(scope="module")
def real_ca():
    """An authority on the machine's clock, as several processes share it."""
    return TestCa("example.org")


@pytest.fixture
def here(real_ca, folder):
    """A Guard in this process, with real policies and the machine's clock."""
    with _guard(folder, CaBundles(real_ca)) as guard:
        yield guard


def _caller(guard, ca, permissions, **task):
    svid = ca.issue("spiffe://example.org/ns/prod/refunds")
    return Caller(guard, identity_of(svid, clock=guard._clock), permissions, ttl=timedelta(minutes=10), **task)


def test_one_proof_under_a_thousand_threads(here, real_ca) -> None:
    """One request shown by 1,000 threads at once is allowed once; everybody else is told that it is a replay."""
    request = _caller(here, real_ca, {"refund": ORDER}).request("refund", ORDER)
    threading.stack_size(256 * 1024)
    try:
        allowed, refused = _spend(here, [("refund", ORDER, request)], 1000)
    finally:
        threading.stack_size(0)
    assert len(allowed) == 1
    assert refused == ["proof-replayed"] * 999


def test_once_over_processes(here, real_ca, folder) -> None:
    """40 requests, each shown by 8 threads in each of 4 processes, are allowed once each."""
    caller = _caller(here, real_ca, {"refund": ORDER})
    requests = [("refund", ORDER, caller.request("refund", ORDER)) for _ in range(40)]
    with SPAWN.Pool(4, _remember, (SPAWN.Barrier(4),)) as pool:
        results = pool.starmap(_elsewhere, [(folder, real_ca.roots, requests, 8)] * 4, chunksize=1)
    allowed = [jti for one, _ in results for jti in one]
    assert len(allowed) == len(set(allowed)) == 40
    assert {code for _, refused in results for code in refused} == {"proof-replayed"}


def test_limits_over_processes(here, real_ca, folder) -> None:
    """Of 480 fresh requests in 4 processes with 2 threads, exactly `max_uses` are allowed: never more, never fewer."""
    caller = _caller(here, real_ca, [Permission("refund", ORDER), Permission("read", ORDER, 30)], max_uses=100)
    uses = ["refund"] * 60 + ["read"] * 60
    shares = [[(use, ORDER, caller.request(use, ORDER)) for use in uses] for _ in range(4)]
    with SPAWN.Pool(4, _remember, (SPAWN.Barrier(4),)) as pool:
        results = pool.starmap(_elsewhere, [(folder, real_ca.roots, share, 2) for share in shares], chunksize=1)
    assert sum(len(one) for one, _ in results) == 100
    assert {code for _, refused in results for code in refused} == {"proof-replayed", "uses-exhausted"}
    with pytest.raises(g.UsesExhaustedError):
        caller.call("refund", ORDER)


def test_denied_uses_cost_nothing_under_threads(here, real_ca) -> None:
    """Uses that policy denies meanwhile are given back: after them the whole limit can still be spent."""
    denied = Entity("Shop::Order", "denied")
    caller = _caller(here, real_ca, {"refund": [ORDER, denied]}, max_uses=200)
    requests = [("refund", denied, caller.request("refund", denied)) for _ in range(25)]
    allowed, refused = _spend(here, requests, 4)
    assert (allowed, set(refused)) == ([], {"access-denied", "proof-replayed"})
    requests = [("refund", ORDER, caller.request("refund", ORDER)) for _ in range(200)]
    assert len(_spend(here, requests, 4)[0]) == 200
    with pytest.raises(g.UsesExhaustedError):
        caller.call("refund", ORDER)


def test_no_task_serves_another(here, real_ca) -> None:
    """20 tasks: neither token, proof nor permission of one helps another; 380 crossings each, 0 allowed (bar 19)."""
    orders = [Entity("Shop::Order", f"{number}") for number in range(20)]
    callers = [_caller(here, real_ca, {"refund": order}) for order in orders]
    crossed = []
    for i, (caller, order) in enumerate(zip(callers, orders, strict=True)):
        for j, (other, its) in enumerate(zip(callers, orders, strict=True)):
            if i == j:
                continue
            mixed = Request(
                "POST", "/", {"Authorization": f"DPoP {caller.token.text}", "DPoP": other.proof("refund", order)}
            )
            with pytest.raises(g.ProofKeyError):
                here.check(mixed, "refund", order)
            with pytest.raises(g.ScopeMismatchError):
                here.check(caller.request("refund", its), "refund", its)
            with pytest.raises(g.UseMismatchError):
                here.check(caller.request("refund", order), "refund", its)
            crossed.append((i, j))
    assert len(crossed) == 380
    for caller, order in zip(callers, orders, strict=True):
        assert caller.call("refund", order)


def test_two_tokens_of_one_workload_do_not_mix(here, real_ca) -> None:
    """A proof is for one token: that of a re-minted one does not go with the old one."""
    caller = _caller(here, real_ca, {"refund": ORDER})
    first, proof = caller.token, caller.proof("refund", ORDER)
    caller.token = caller.mint()
    with pytest.raises(g.ProofTokenError):
        here.check(Request("POST", "/", {"Authorization": f"DPoP {caller.token.text}", "DPoP": proof}), "refund", ORDER)
    assert here.check(Request("POST", "/", {"Authorization": f"DPoP {first.text}", "DPoP": proof}), "refund", ORDER)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encodings(proof: str, key) -> dict[str, str]:
    """Twenty and more spellings of one proof; some are signed anew by its own key, with the same `jti`."""
    head, body, signature = proof.split(".")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    raw = _raw(signature)
    mirrored = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    header, claims = json.loads(_raw(head)), json.loads(_raw(body))

    def again(new_head: bytes, new_body: bytes) -> str:
        signing_input = f"{_b64(new_head)}.{_b64(new_body)}"
        return f"{signing_input}.{_b64(key.sign(signing_input.encode()))}"

    def compact(value) -> bytes:
        return json.dumps(value, separators=(",", ":")).encode()

    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    nudged = signature[:-1] + last[last.index(signature[-1]) + 1]
    return {
        "as it is": proof,
        "mirrored signature": f"{head}.{body}.{_b64(mirrored)}",
        "signed again": again(_raw(head), _raw(body)),
        "other member order": again(compact(dict(reversed(header.items()))), compact(dict(reversed(claims.items())))),
        "blanks in JSON": again(json.dumps(header).encode(), json.dumps(claims, indent=1).encode()),
        "escapes in JSON": again(compact(header), compact(claims).replace(b'"jti"', b'"\\u006ati"')),
        "padded header": f"{head}=.{body}.{signature}",
        "padded body": f"{head}.{body}==.{signature}",
        "padded signature": f"{head}.{body}.{signature}==",
        "other last bits": f"{head}.{body}.{nudged}",
        "standard alphabet": f"{head}.{body}.{signature.replace('-', '+').replace('_', '/')}+",
        "blank before": f" {proof}",
        "tab after": f"{proof}\t",
        "line after": f"{proof}\n",
        "blank inside": f"{head}. {body}.{signature}",
        "NUL after": f"{proof}\0",
        "dot after": f"{proof}.",
        "four parts": f"{proof}.AA",
        "quoted": f'"{proof}"',
        "percent": proof.replace(".", "%2E"),
        "JSON serialisation": json.dumps({"protected": head, "payload": body, "signature": signature}),
        "DER signature": f"{head}.{body}.{_b64(raw + b'0')}",
        "duplicate member": again(compact(header), compact(claims)[:-1] + b',"jti":"x"}'),
    }


@pytest.mark.parametrize("seed", range(3))
def test_encodings_of_one_proof(here, real_ca, seed) -> None:
    """Whatever the spelling and the order in which they come, one proof is allowed once (bar 19)."""
    assert ec.SECP256R1.key_size == 256
    caller = _caller(here, real_ca, {"refund": ORDER})
    request = caller.request("refund", ORDER)
    spellings = list(_encodings(request.values_of("dpop")[0], caller.key).items())
    assert len({text for _, text in spellings}) >= 20
    random.Random(seed).shuffle(spellings)
    allowed = []
    for name, text in spellings:
        spelled = attrs.evolve(request, headers=[*request.headers[:1], ("DPoP", text)])
        try:
            here.check(spelled, "refund", ORDER)
        except EvidenceError:
            continue
        allowed.append(name)
    assert len(allowed) == 1
