# SPDX-License-Identifier: Apache-2.0
"""The entity provider: asked with a deadline, its failure is a deny."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from jitwi.policy import EntityRecord, PolicyStore, engine
from jitwi.policy.provider import MAX_THREADS
from jitwi.task import Entity

ORDER = Entity("Shop::Order", "7")
CUSTOMER = Entity("Shop::Customer", "c7")
SCHEMA = """namespace Shop {
  entity Region;
  entity Customer in [Region] = { vip: Bool };
  entity Order in [Customer] = { total: Long };
  action read appliesTo { principal: [Jitwi::Workload], resource: [Order], context: { task: Jitwi::Task } };
}
"""
POLICIES = """
@id("read") permit(principal, action, resource is Shop::Order) when { resource.total <= 100 };
@id("embargo") forbid(principal, action, resource is Shop::Order in Shop::Region::"moon");
"""
RECORDS = {
    ORDER: EntityRecord(ORDER, {"total": 50}, (CUSTOMER,)),
    CUSTOMER: EntityRecord(CUSTOMER, {"vip": True}, (Entity("Shop::Region", "earth"),)),
}


class Shelf:
    """A provider that answers from a dictionary."""

    def __init__(self, records=RECORDS, answer=None) -> None:
        self.records = dict(records)
        self.answer = answer
        self.asked: list[tuple[Entity, ...]] = []

    def entities(self, uids):
        """Answer, and remember the question."""
        self.asked.append(tuple(uids))
        if self.answer is not None:
            return self.answer(uids)
        return [self.records[uid] for uid in uids if uid in self.records]


def _store(provider, *, entities="[]", timeout=20.0, policies=POLICIES):
    files = {"p.cedar": policies, "s.cedarschema": SCHEMA, "entities.json": entities}
    return PolicyStore(files, provider=provider, provider_timeout=timedelta(seconds=timeout))


def test_facts_come_from_the_provider(shop) -> None:
    """The resource and what it refers to, in as many rounds as needed."""
    shelf = Shelf()
    store = _store(shelf)
    snapshot = store.load()
    assert store.may_block
    assert shop.decide(snapshot, "read", ORDER).policy_ids == ("read",)
    assert shelf.asked == [(ORDER,), (CUSTOMER,)]
    assert snapshot.is_under(ORDER, Entity("Shop::Region", "earth")) is True
    assert snapshot.is_under(ORDER, Entity("Shop::Region", "moon")) is False


def test_facts_are_fresh_at_each_decision_and_handles_kept_by_digest(shop, monkeypatch) -> None:
    """A changed fact decides at once; an unchanged one builds nothing."""
    shelf = Shelf()
    snapshot = _store(shelf).load()
    built = []
    original = engine.parse_entities
    monkeypatch.setattr(engine, "parse_entities", lambda *given: built.append(1) or original(*given))
    for _ in range(3):
        assert shop.decide(snapshot, "read", ORDER).is_allowed
    assert len(built) == 1
    shelf.records[ORDER] = EntityRecord(ORDER, {"total": 101}, (CUSTOMER,))
    assert not shop.decide(snapshot, "read", ORDER).is_allowed
    shelf.records[CUSTOMER] = EntityRecord(CUSTOMER, {"vip": True}, (Entity("Shop::Region", "moon"),))
    assert shop.decide(snapshot, "read", ORDER).policy_ids == ("embargo",)
    assert len(built) == 3


def test_the_store_comes_first(shop) -> None:
    """What `entities.json` describes is never asked for."""
    entities = (
        '[{"uid": {"type": "Shop::Order", "id": "7"}, "attrs": {"total": 1}, "parents": []},'
        '{"uid": {"type": "Shop::Order", "id": "8"}, "attrs": {"total": 1},'
        ' "parents": [{"type": "Shop::Customer", "id": "c7"}]}]'
    )
    shelf = Shelf()
    snapshot = _store(shelf, entities=entities).load()
    assert shop.decide(snapshot, "read", ORDER).is_allowed
    assert shelf.asked == []
    assert shop.decide(snapshot, "read", Entity("Shop::Order", "8")).is_allowed
    assert shelf.asked == [(CUSTOMER,)]


def _raise(error):
    raise error


FAILURES = {
    "raises": lambda _: _raise(OSError("secret of the backend")),
    "raises in iteration": lambda _: (_raise(OSError("x")) for _ in range(1)),
    "base exception": lambda _: _raise(SystemExit(1)),
    "none": lambda _: None,
    "other objects": lambda _: [{"uid": "x"}],
    "unknown attribute": lambda _: [EntityRecord(ORDER, {"total": 1, "more": 1})],
    "missing attribute": lambda _: [EntityRecord(ORDER)],
    "wrong type": lambda _: [EntityRecord(ORDER, {"total": "1"})],
    "wrong parent": lambda _: [EntityRecord(ORDER, {"total": 1}, (Entity("Shop::Region", "earth"),))],
    "our own type": lambda _: [EntityRecord(Entity("Jitwi::Path", "a/b"))],
    "described twice": lambda _: [EntityRecord(ORDER, {"total": 1}), EntityRecord(ORDER, {"total": 2})],
    "too many": lambda _: (EntityRecord(Entity("Shop::Region", str(n))) for n in range(10**6)),
    "endless chain": lambda uids: (
        [
            EntityRecord(uid, {"total": 1}, (Entity("Shop::Customer", f"{uid.id}x"),))
            if uid.type == "Shop::Order"
            else EntityRecord(uid, {"vip": True})
            for uid in uids
        ][:0]
        or [EntityRecord(Entity("Shop::Order", "elsewhere"), {"total": 1})]
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_provider_is_a_deny(failure, shop) -> None:
    """Whatever a provider does wrong, the answer is a deny without its inner text."""
    snapshot = _store(Shelf(answer=FAILURES[failure])).load()
    decision = shop.decide(snapshot, "read", ORDER)
    assert decision.is_allowed is False
    assert decision.reason == ("unknown-resource" if failure == "endless chain" else "provider-failed")
    assert "secret" not in "".join(decision.errors)
    assert snapshot.is_under(ORDER, CUSTOMER) is None


def test_what_the_provider_does_not_know_is_unknown(shop) -> None:
    """The resource itself, or something that it is in."""
    assert shop.decide(_store(Shelf({})).load(), "read", ORDER).reason == "unknown-resource"
    only = Shelf({ORDER: RECORDS[ORDER]})
    decision = shop.decide(_store(only).load(), "read", ORDER)
    assert (decision.reason, "c7" in decision.errors[0]) == ("unknown-resource", True)


def test_a_hanging_provider_is_a_deny_within_the_deadline(shop) -> None:
    """No decision waits longer than the timeout; when all threads hang, none waits at all."""
    release = threading.Event()

    def hang(_):
        release.wait(60)
        return []

    snapshot = _store(Shelf(answer=hang), timeout=0.1).load()
    try:
        start = time.monotonic()
        assert shop.decide(snapshot, "read", ORDER).reason == "provider-failed"
        assert time.monotonic() - start < 4
        for number in range(MAX_THREADS + 2):
            decision = shop.decide(snapshot, "read", Entity("Shop::Order", str(number)))
            assert (decision.is_allowed, decision.reason) == (False, "provider-failed")
        assert "busy" in decision.errors[0]
    finally:
        release.set()


def test_a_provider_that_recovers_is_used_again(shop) -> None:
    """A thread that came back late serves the next question."""
    release, shelf = threading.Event(), Shelf()

    def hang(_):
        release.wait(60)
        return []

    shelf.answer = hang
    snapshot = _store(shelf, timeout=0.1).load()
    assert shop.decide(snapshot, "read", ORDER).reason == "provider-failed"
    shelf.answer = None
    release.set()
    assert shop.decide(snapshot, "read", ORDER).reason in {"allow", "provider-failed"}
    assert shop.decide(snapshot, "read", ORDER).is_allowed


def test_many_threads_ask_at_once(shop) -> None:
    """Up to the number of threads, questions run side by side; each gets its own answer."""
    snapshot = _store(Shelf(answer=lambda uids: [
        EntityRecord(uid, {"total": int(uid.id)}) if uid.type == "Shop::Order" else EntityRecord(uid, {"vip": True})
        for uid in uids
    ])).load()  # fmt: skip
    wrong: list[object] = []

    def run(start: int) -> None:
        for number in range(start, start + 40):
            decision = shop.decide(snapshot, "read", Entity("Shop::Order", str(number)))
            if decision.is_allowed is not (number <= 100):
                wrong.append(decision)

    threads = [threading.Thread(target=run, args=(start,)) for start in range(0, 160, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


FORKING = """
import os, sys, threading
from jitwi.policy import EntityRecord, Evidence, Facts, PolicyStore, task_json
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity

class Shelf:
    def entities(self, uids):
        return [EntityRecord(uid, {"total": 1}) for uid in uids]

order = Entity("Shop::Order", "7")
files = {"s.cedarschema": sys.argv[1], "p.cedar": "permit(principal, action, resource);"}
store = PolicyStore(files, provider=Shelf())
facts = Facts(task_json({"name": "a", "ttl": 1}), 0, 0.0, Evidence.LOCAL)

def ask():
    snapshot = store.snapshot
    return snapshot.decide(SpiffeId.parse("spiffe://example.org/a"), snapshot.action("read"), order, facts).is_allowed

store.load()
assert ask()
with store._exclusively():  # as if another thread were reloading at the moment of the fork
    pid = os.fork()
    if pid == 0:
        os._exit(0 if ask() and store.reload() is store.snapshot and ask() else 1)
assert os.waitpid(pid, 0)[1] == 0
print("good")
"""


def test_a_forked_child_decides_and_reloads(shop) -> None:
    """Threads and held locks of the parent are not there; the child does not wait for them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, SCHEMA],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "good\n", done.stderr


def test_literals_of_policies_are_asked_for_but_need_not_exist(shop) -> None:
    """An entity that a condition names may be unknown; what the resource refers to may not."""
    policies = 'permit(principal, action, resource) unless { Shop::Customer::"vip" in Shop::Region::"moon" };'
    shelf = Shelf()
    snapshot = _store(shelf, policies=policies).load()
    assert shop.decide(snapshot, "read", ORDER).is_allowed
    vip = Entity("Shop::Customer", "vip")
    assert vip in shelf.asked[0]
    shelf.records[vip] = EntityRecord(vip, {"vip": True}, (Entity("Shop::Region", "moon"),))
    assert not shop.decide(snapshot, "read", ORDER).is_allowed
