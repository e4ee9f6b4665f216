# SPDX-License-Identifier: Apache-2.0
"""Task classes: registered kinds, their owner, ceilings and triggers. Source: design §2."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jitwi.errors import AccessDeniedError, InvalidPolicyError, LimitExceededError
from jitwi.task import Entity, Task

TASKS = """
[tasks.refund-order]
owner = "team-payments"
required = ["purpose"]
max_ttl = 300
max_uses = 5
permissions = ["read", "Shop::refund"]
triggers = ["ttl", "max_uses", "identity"]

[tasks."team/open:till"]
owner = "team-shop"
"""


def _task(name="refund-order", *, actions=("refund",), seconds=300, **given):
    given = {"purpose": "customer request", "max_uses": 5, **given}
    order = Entity("Shop::Order", "42")
    return Task.declare(name, permissions=dict.fromkeys(actions, order), ttl=timedelta(seconds=seconds), **given)


def test_without_a_file_every_name_passes(shop) -> None:
    """Task classes are optional."""
    snapshot = shop.store().load()
    task = _task("whatever")
    assert snapshot.check_task(task) is task
    assert snapshot.task_classes.is_registered is False


def test_a_class_fills_in_its_owner(shop) -> None:
    """The class's owner wins: filled in where none is declared, the same one accepted."""
    snapshot = shop.store(tasks=TASKS).load()
    assert snapshot.check_task(_task()).owner == "team-payments"
    task = _task(owner="team-payments")
    assert snapshot.check_task(task) is task
    assert snapshot.check_task(_task("team/open:till", actions=("open",))).owner == "team-shop"
    kind = snapshot.task_classes.get("refund-order")
    assert (kind.line, kind.triggers) == (2, {"ttl", "max_uses", "identity"})


REFUSED = {
    "unregistered": ("unregistered-task", {"name": "other"}),
    "case": ("unregistered-task", {"name": "Refund-order"}),
    "owner": ("owner", {"owner": "team-shop"}),
    "purpose": ("required-field", {"purpose": None}),
    "ttl": ("ceiling", {"seconds": 301}),
    "uses": ("ceiling", {"max_uses": 6}),
    "no limit of uses": ("ceiling", {"max_uses": None}),
    "action": ("ceiling", {"actions": ("refund", "open")}),
    "action by uid": ("ceiling", {"actions": (Entity("Shop::Action", "open"),)}),
    "action of nobody": ("ceiling", {"actions": (Entity("Other::Action", "open"),)}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_declaration_outside_of_its_class_is_refused(case, shop) -> None:
    """Over a ceiling is refused and not clamped; another owner is refused."""
    reason, changes = REFUSED[case]
    with pytest.raises(AccessDeniedError) as caught:
        shop.store(tasks=TASKS).load().check_task(_task(**changes))
    assert caught.value.reasons[0] == reason
    assert isinstance(caught.value, LimitExceededError) is (case in {"ttl", "uses", "no limit of uses"})
    assert caught.value.remedy


@pytest.mark.parametrize("case", [case for case in REFUSED if not case.startswith("action")])
def test_a_guard_holds_the_same_rules(case, shop) -> None:
    """The facts of verified evidence are checked as the declaration is."""
    reason, changes = REFUSED[case]
    with pytest.raises(AccessDeniedError) as caught:
        shop.store(tasks=TASKS).load().check_task_facts(_task(**changes).facts(), [Entity("Shop::Action", "refund")])
    assert caught.value.reasons[0] == reason


def test_a_guard_checks_the_action_used(shop) -> None:
    """The action of this use must be one of the class."""
    snapshot = shop.store(tasks=TASKS).load()
    facts = snapshot.check_task_facts(_task().facts(), [Entity("Shop::Action", "refund")])
    assert facts["owner"] == "team-payments"
    with pytest.raises(AccessDeniedError):
        snapshot.check_task_facts(_task().facts(), [Entity("Shop::Action", "open")])


BAD = {
    "not toml": ("[tasks.x\n", 1),
    "unknown table": ("[task.x]\nowner = 'a'\n", 0),
    "not a table": ("tasks = 1\n", 0),
    "class is no table": ("[tasks]\nx = 1\n", 0),
    "no owner": ("\n[tasks.x]\nmax_ttl = 5\n", 2),
    "empty owner": ("[tasks.x]\nowner = ''\n", 1),
    "owner is no text": ("[tasks.x]\nowner = 1\n", 1),
    "unknown member": ("[tasks.x]\nowner = 'a'\nttl = 5\n", 1),
    "bad name": ("[tasks.'a b']\nowner = 'a'\n", 1),
    "approval path": ("[tasks.x]\nowner = 'a'\napproval = 'slack'\n", 1),
    "empty approval path": ("[tasks.x]\nowner = 'a'\napproval = ''\n", 1),
    "unknown trigger": ("[tasks.x]\nowner = 'a'\ntriggers = ['moon']\n", 1),
    "triggers is text": ("[tasks.x]\nowner = 'a'\ntriggers = 'ttl'\n", 1),
    "unknown field": ("[tasks.x]\nowner = 'a'\nrequired = ['moon']\n", 1),
    "zero": ("[tasks.x]\nowner = 'a'\nmax_ttl = 0\n", 1),
    "over a day": ("[tasks.x]\nowner = 'a'\nmax_ttl = 86401\n", 1),
    "fraction": ("[tasks.x]\nowner = 'a'\nmax_ttl = 1.5\n", 1),
    "boolean": ("[tasks.x]\nowner = 'a'\nmax_uses = true\n", 1),
    "unknown action": ("[tasks.x]\nowner = 'a'\npermissions = ['moon']\n", 1),
    "twice": ("[tasks.x]\nowner = 'a'\n[tasks.x]\nowner = 'b'\n", 3),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_refuses_the_whole_set(bad, shop) -> None:
    """Task classes are loaded and refused together with the policies."""
    text, line = BAD[bad]
    with pytest.raises(InvalidPolicyError) as caught:
        shop.store(tasks=text).load()
    assert (caught.value.reasons, caught.value.path) == (("task-class",), "tasks.toml")
    assert caught.value.line == line
    assert caught.value.remedy


def test_an_empty_file_registers_nothing(shop) -> None:
    """Once the file exists, unregistered names are refused: all of them."""
    with pytest.raises(AccessDeniedError):
        shop.store(tasks="").load().check_task(_task())
