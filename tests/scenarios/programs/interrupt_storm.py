# SPDX-License-Identifier: Apache-2.0
"""Opens and leaves tasks under a storm of interrupts; prints what is left. Arguments: number of tasks."""

import gc
import json
import random
import signal
import sys
import threading
import warnings
from datetime import timedelta

import jitwi
import jitwi.testing
from jitwi.policy import PolicyStore
from jitwi.testing import RecordingSink

WANTED = int(sys.argv[1])
STORE = PolicyStore.from_text(
    policies="permit (principal, action, resource);",
    schema="namespace S { entity O; action a appliesTo { principal: [Jitwi::Workload], resource: [O],"
    " context: { task: Jitwi::Task } }; }",
)
ORDER = jitwi.Entity("S::O", "1")


class Counting(RecordingSink):
    """Counts instead of keeping."""

    def __init__(self):
        super().__init__()
        self.opened = set()
        self.ended = set()

    def _keep(self, event, *, durable):
        if event.kind == "task.opened":
            self.opened.add(event.subject.grant_id)
        elif event.kind == "grant.ended":
            self.ended.add(event.subject.grant_id)


def interrupt(number, frame):
    """Raise wherever the program is."""
    raise KeyboardInterrupt


def main():
    """Run the storm."""
    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = lambda _: None  # an interrupt inside a finaliser is Python's to report
    sink = Counting()
    jit = jitwi.testing.jit("spiffe://example.org/a", STORE, audit=sink, stop_signals=())
    jit.start()
    chance = random.Random(7)
    interrupted = entered = 0
    signal.signal(signal.SIGALRM, interrupt)
    for _ in range(WANTED):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00001, 0.0008))
            with jit.task("x", permissions={"a": ORDER}, ttl=timedelta(hours=1)) as grant:
                entered += 1
                grant.check("a", ORDER)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            while True:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    break
                except KeyboardInterrupt:
                    interrupted += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    gc.collect()
    pause = threading.Event()
    for _ in range(40):
        if not jit.live_grants:
            break
        pause.wait(0.05)
    live = [str(grant) for grant in jit.live_grants]
    print(
        json.dumps(
            {
                "tasks": WANTED,
                "interrupted": interrupted,
                "entered": entered,
                "live": live,
                "opened_never_ended": len(sink.opened - sink.ended),
            }
        )
    )
    jit.close()


main()
