# SPDX-License-Identifier: Apache-2.0
"""Holds ten tasks with a backend credential and a session each, and leaves them when told to.

Prints `holding`, waits for a line, leaves the blocks one by one and prints how each ended. Arguments: address of the
backend, folder of the state. The admin token comes from the environment.
"""

import os
import sys
from datetime import timedelta

import jitwi
from jitwi.policy import PolicyStore
from jitwi.secret import Secret
from jitwi.testing import BackendIssuer, FixedIdentity

SCHEMA = """namespace S { entity O;
action a appliesTo { principal: [Jitwi::Workload], resource: [O], context: { task: Jitwi::Task } }; }"""
ORDER = jitwi.Entity("S::O", "1")


def say(text):
    """Print one line at once."""
    print(text, flush=True)


def main():
    """Hold, wait, leave."""
    issuer = BackendIssuer(sys.argv[1], Secret(os.environ["JITWI_ADMIN"]), timeout=0.5)
    jit = jitwi.JIT(
        PolicyStore.from_text(policies="permit (principal, action, resource);", schema=SCHEMA),
        issuers={"backend": issuer},
        identity=FixedIdentity("spiffe://example.org/ten"),
        state_dir=sys.argv[2],
        end_timeout=timedelta(seconds=1),
    )
    held = []
    for _ in range(10):
        block = jit.task("ten", permissions={"a": ORDER}, ttl=timedelta(minutes=10))
        grant = block.__enter__()
        grant.credential("backend").open_session().use("a", ORDER)
        held.append((block, grant))
    say("holding")
    sys.stdin.readline()
    for block, grant in held:
        block.__exit__(None, None, None)
        say(grant.ending.credentials[0].outcome.value)
    say("left")
    sys.stdin.readline()


main()
