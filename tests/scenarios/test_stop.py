# SPDX-License-Identifier: Apache-2.0
"""A process that is told to stop ends its tasks first."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jitwi.audit import read, verify
from jitwi.testing import TestingBackend

PROGRAM = Path(__file__).parent / "programs" / "stopped.py"
TWICE = Path(__file__).parent / "programs" / "stopped_twice.py"


@pytest.mark.parametrize(
    ("how", "sent", "status"),
    [
        ("block", signal.SIGTERM, -signal.SIGTERM),
        ("own", signal.SIGTERM, 3),
        ("block", signal.SIGINT, None),
        ("exit", None, 0),
    ],
)
def test_stopping_ends_the_tasks_and_the_process_dies_as_it_was_told_to(tmp_path, how, sent, status):
    """SIGTERM, a handler of one's own, Ctrl-C, or the interpreter's exit: nothing is left at the backend."""
    with TestingBackend() as backend:
        token = backend.admin_token.reveal()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(PROGRAM), how, backend.address, token, str(tmp_path / "state")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout.readline() == "open\n"
            if sent is not None:
                process.send_signal(sent)
            assert process.wait(30) == status or status is None
        for _ in range(100):
            if not backend.leases():
                break
            threading.Event().wait(0.05)
        assert backend.leases() == []
    records = [record for chain in (tmp_path / "state" / "audit").glob("*.jsonl") for record in read(chain)]
    assert verify(tmp_path / "state" / "audit").is_intact
    causes = [record["cause"] for record in records if record.get("kind") == "grant.ended"]
    assert len(causes) == 1
    assert causes[0] in ("process-stopped", "leaked", "block-failed")


@pytest.mark.parametrize(
    ("how", "ended"),
    [
        ("thread", None),
        ("forgotten", None),
        ("two", ["first process-stopped", "second process-stopped"]),
        ("second", ["second process-stopped"]),
        ("forked", ["child process-stopped", "first process-stopped"]),
    ],
)
def test_a_stop_signal_ends_every_task_of_the_process_and_is_never_swallowed(how, ended):
    """Closed in a thread, forgotten, two, one of two closed, started before a fork: SIGTERM ends tasks and process."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(TWICE), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        for line in process.stdout:
            if line.startswith("pid "):
                break
        pid = int(line.split()[1])
        os.kill(pid, signal.SIGTERM)
        try:
            told, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.kill(pid, signal.SIGKILL)
            process.kill()
            pytest.fail("the signal was swallowed")
        assert process.returncode == (1 if how == "forked" else -signal.SIGTERM)
    assert ended is None or sorted(told.splitlines()) == ended
