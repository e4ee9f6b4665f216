# SPDX-License-Identifier: Apache-2.0
"""Folders, logs and one event of every kind."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest

from jitwi.audit import AuditLog, DecisionRecord, Subject, events


def subject(**changes):
    """Return a subject with every field set."""
    fields = {
        "txn": "txn-1",
        "grant_id": "grant-1",
        "workload": "spiffe://example.org/ns/prod/refunds",
        "task": "refund-order",
        "task_digest": "sha256-x",
        "owner": "team-payments",
        "on_behalf_of": "customer-7",
        "agent": "planner",
        "parent": None,
    }
    return Subject(**{**fields, **changes})


def decision(**changes):
    """Return a decision with every field set."""
    fields = {
        "question": "use",
        "action": 'Shop::Action::"refund"',
        "resource": 'Shop::Order::"42"',
        "permission": 'Shop::Action::"refund" on Shop::Order::"42"',
        "is_allowed": True,
        "reason": "allow",
        "policy_ids": ("refunds",),
        "errors": (),
        "policy_digest": "sha256-p",
        "entities_digest": "sha256-e",
        "context": '{"used":1,"task":{"name":"refund-order"}}',
        "input": {"amount": 30},
        "scope": "local",
    }
    return DecisionRecord(**{**fields, **changes})


def every_event():
    """Return one event of each kind."""
    who, made = subject(), decision()
    return [
        events.TaskOpened(who, "sha256-svid", "x509-svid", "customer request", 120, 5, 1800.5, (made, made)),
        events.TaskRefused(who, "access-denied", "no-permit", "policy says no", (made,)),
        events.CredentialIntended(who, "lease-1", "orders-api", {"kind": "task-token", "exact": True}, "", made),
        events.CredentialIssued(who, "lease-1", "orders-api", 1800.5),
        events.CredentialRefused(who, "lease-1", "orders-api", "scope-too-wide", "wider in time", made),
        events.UseAllowed(who, "lease-1", 1, made),
        events.UseDenied(who, "lease-1", "out-of-scope", "scope", "not declared", None),
        events.CredentialEnded(who, "lease-1", "orders-api", "by_construction", "destroyed", "", 1800.5),
        events.GrantEnded(who, "block", "", 2, ("by_construction",)),
        events.GrantLeaked(who, "the block was left without its exit"),
        events.LeaseReaped(who, "lease-1", "orders-db", "verified", "tried", ""),
        events.IdentityChanged(None, "spiffe://example.org/a", "withdrawn", "gone", "PERMISSION_DENIED", 3),
        events.PolicyLoaded(None, "sha256-p", 12),
        events.PolicyRefused(None, "policies/a.cedar", 7, "unexpected token"),
        events.GuardAllowed(who, "jti-1", "https://orders.example.org", "task-token", made),
        events.GuardDenied(None, "jti-1", "https://orders.example.org", "proof", "replayed", "seen before"),
        events.AuditGap(None, 3, 1700.25, "disk full", 2, 1),
    ]


@pytest.fixture
def folder():
    """A place for an audit folder that does not exist yet."""
    parent = Path(tempfile.mkdtemp(prefix="jw"))
    yield parent / "audit"
    for locked in (parent / "audit", *parent.rglob("*")):
        if locked.is_dir():
            locked.chmod(0o700)
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def open_log(folder):
    """A maker of logs on that folder; they are closed afterwards."""
    logs = []

    def make(**settings):
        log = AuditLog(folder, **{"deadline": timedelta(seconds=20), **settings})
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()


@pytest.fixture
def events_of_every_kind():
    """One event of each kind."""
    return every_event()


@pytest.fixture
def make_subject():
    """A maker of subjects."""
    return subject


@pytest.fixture
def make_decision():
    """A maker of decisions."""
    return decision
