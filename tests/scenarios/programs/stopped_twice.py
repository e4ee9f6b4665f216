# SPDX-License-Identifier: Apache-2.0
"""Waits to be stopped by SIGTERM, in a state that is not the plain one. Argument: how.

`thread`: its `JIT` was closed in another thread. `forgotten`: its `JIT` was dropped. `two`: two are open, each with a
task. `second`: two were, the first is closed. `forked`: the one was started before a fork, and the child goes on.
"""

import gc
import os
import signal
import sys
import threading
from datetime import timedelta

import jitwi
import jitwi.testing
from jitwi.policy import PolicyStore


def say(line):
    """Write one line in one piece: several threads do."""
    os.write(1, f"{line}\n".encode())


def open_task(name):
    """Return a `JIT` with one open task, and the block."""
    store = PolicyStore.from_text(
        policies="permit (principal, action, resource);",
        schema="namespace S { entity O; action a appliesTo { principal: [Jitwi::Workload], resource: [O],"
        " context: { task: Jitwi::Task } }; }",
    )
    jit = jitwi.testing.jit(
        "spiffe://example.org/a",
        store,
        on_ending=lambda grant, ending: say(f"{name} {ending.cause.value}"),
    )
    block = jit.task("x", permissions={"a": jitwi.Entity("S::O", "1")}, ttl=timedelta(minutes=5))
    block.__enter__()
    return jit, block


def main():
    """Get into the state, say so, wait."""
    how = sys.argv[1]
    first, block = open_task("first")
    if how == "thread":
        closing = threading.Thread(target=first.close)
        closing.start()
        closing.join()
    elif how == "forgotten":
        del first, block
        gc.collect()
    elif how in ("two", "second"):
        kept = open_task("second")
        if how == "second":
            first.close()
        assert kept
    elif how == "forked":
        child = os.fork()
        if child:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM)
        kept = open_task("child")
    say(f"pid {os.getpid()}")
    while True:
        threading.Event().wait(0.2)


main()
