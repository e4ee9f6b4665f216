# SPDX-License-Identifier: Apache-2.0
"""Bar 8: interrupts at any moment leave nothing live."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "interrupt_storm.py"
TASKS = int(os.environ.get("JITWI_STORM_TASKS", "4000"))


@pytest.mark.slow
def test_a_storm_of_interrupts_leaves_no_task_live_and_no_ending_unrecorded():
    """KeyboardInterrupt in enter, body and exit: after the watchdog's second every grant is over and on record."""
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), str(TASKS)], capture_output=True, text=True, timeout=110, check=True
    )
    found = json.loads(ran.stdout)
    assert found["interrupted"] > TASKS / 20
    assert found["live"] == []
    assert found["opened_never_ended"] == 0
