# SPDX-License-Identifier: Apache-2.0
"""Makes `spire-dev` importable, shares one fast stack among its tests, and runs programs as workloads of their own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SPIRE_DEV = Path(os.environ.get("JITWI_SPIRE_DEV") or Path(__file__).resolve().parents[3] / "spire-dev")
if str(SPIRE_DEV) not in sys.path:
    sys.path.insert(0, str(SPIRE_DEV))
PROGRAMS = Path(__file__).resolve().parent / "programs"


@pytest.fixture(scope="session")
def spire_binaries():
    """Checked SPIRE binaries; skips with the reason, or fails where SPIRE is required."""
    import spiredev

    try:
        return spiredev.find_binaries()
    except spiredev.BinariesError as exc:
        if os.environ.get("JITWI_REQUIRE_SPIRE") == "1":
            pytest.fail(f"SPIRE is required but cannot be used: {exc}", pytrace=False)
        pytest.skip(f"NO SPIRE: {exc}")


@pytest.fixture(scope="module")
def spire_dev(spire_binaries):
    """One fast stack with OIDC for a module; each test brings its own personas and entries."""
    import spiredev

    with spiredev.SpireStack(fast=True) as stack:
        yield stack


class RefusedError(Exception):
    """A program answered with an error.

    Attributes:
        name: Class of the error.
        answer: All of the answer.
    """

    def __init__(self, answer):
        super().__init__(f"{answer['error']}: {answer['message']}")
        self.name = answer["error"]
        self.answer = answer


class Program:
    """One of `programs/` as a process with the identity of a persona; see `programs/control.py`."""

    def __init__(self, persona, script, folder, config):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._errors = (folder / "stderr").open("ab")
        self.process = subprocess.Popen(
            [str(persona.executable), str(PROGRAMS / script), json.dumps(config)],
            env=persona.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.greeting = self.collect(timeout=60)

    def _read(self):
        for line in self.process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def begin(self, do, **arguments):
        """Give a command without waiting for its answer."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def collect(self, *, timeout=30):
        """Return the next answer."""
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            answer = None
        if answer is None:
            said = (self.folder / "stderr").read_text()[-3000:]
            raise AssertionError(f"the program gave no answer; its last words: {said}")
        return answer

    def ask(self, do, *, timeout=30, **arguments):
        """Give a command and return its result; `RefusedError` where it failed."""
        self.begin(do, **arguments)
        answer = self.collect(timeout=timeout)
        if "error" in answer:
            raise RefusedError(answer)
        return answer["ok"]

    def refused(self, do, *, timeout=30, **arguments):
        """Give a command that must fail; return the answer."""
        with pytest.raises(RefusedError) as caught:
            self.ask(do, timeout=timeout, **arguments)
        return caught.value.answer

    def close(self):
        """End it: it closes what it has when its input ends."""
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise
        finally:
            self.process.stdout.close()
            self._errors.close()


@pytest.fixture(scope="module")
def start_program(tmp_path_factory):
    """Return a starter of programs: `start(persona, script, **config)`; they are ended with the module."""
    with contextlib.ExitStack() as running:

        def start(persona, script, **config):
            folder = tmp_path_factory.mktemp(persona.name)
            config = {"state": str(folder / "state"), **config}
            return running.enter_context(contextlib.closing(Program(persona, script, folder, config)))

        yield start


SCHEMA = """
namespace Shop {{
  entity Report;
  entity Order{order};
  action read   appliesTo {{ principal: [Jitwi::Workload], resource: [Order], context: {{ task: Jitwi::Task }} }};
  action cancel appliesTo {{ principal: [Jitwi::Workload], resource: [Order], context: {{ task: Jitwi::Task }} }};
  action refund appliesTo {{ principal: [Jitwi::Workload], resource: [Order],
                             context: {{ task: Jitwi::Task, input: {{ amount: Long }} }} }};
  action report, archive
                appliesTo {{ principal: [Jitwi::Workload], resource: [Report],
                             context: {{ task: Jitwi::Task, evidence: String }} }};
}}
"""
CALLERS_POLICIES = """
@id("caller.read") permit (principal, action == Shop::Action::"read", resource);
@id("caller.report") permit (principal, action in [Shop::Action::"report", Shop::Action::"archive"], resource)
when { context.evidence == "local" || context.evidence == "jwt-svid" };
@id("caller.refund") permit (principal in Jitwi::Path::"example.test/refunds", action == Shop::Action::"refund",
                          resource)
when { context.task.name == "refund-order" && context.input.amount > 0 && context.input.amount <= 1000 };
@id("caller.no-cancel") forbid (principal, action == Shop::Action::"cancel", resource)
unless { context.task.name == "cancel-order" };
@id("caller.cancel") permit (principal, action == Shop::Action::"cancel", resource);
@id("caller.obtain") permit (principal, action == Jitwi::Action::"obtain", resource == Jitwi::Issuer::"reports")
when { context.credential.bearer && !context.credential.exact };
"""
SERVICES_POLICIES = """
@id("service.read") permit (principal in Jitwi::Path::"example.test/refunds", action == Shop::Action::"read",
                          resource);
@id("service.refund") permit (principal in Jitwi::Path::"example.test/refunds", action == Shop::Action::"refund",
                          resource)
when { context.input.amount > 0 && context.input.amount <= resource.total };
"""
SERVICES_ENTITIES = json.dumps(
    [{"uid": {"type": "Shop::Order", "id": one}, "attrs": {"total": 100}, "parents": []} for one in ("42", "43")]
)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Return the folders of caller and service: each side has facts and policies of its own."""
    found = {}
    for side, schema, text in (("caller", "", CALLERS_POLICIES), ("service", " = { total: Long }", SERVICES_POLICIES)):
        folder = found[side] = tmp_path_factory.mktemp(side)
        (folder / "shop.cedarschema").write_text(SCHEMA.format(order=schema))
        (folder / "shop.cedar").write_text(text)
    (found["service"] / "entities.json").write_text(SERVICES_ENTITIES)
    return found
