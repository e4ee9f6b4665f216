# SPDX-License-Identifier: Apache-2.0
"""The demo is the walk: every line of it must come out as it must."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_shows_every_refusal_by_its_own_reason(tmp_path):
    """Exit status 0 says that all lines are right; the reasons that a reader looks for are on the screen."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo" / "main.py")],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for reason in (
        "ProofTargetError",
        "WrongAudienceError",
        "InputMismatchError",
        "ProofKeyError",
        "ReplayedProofError",
        "TaskEndedError",
        "AccessDeniedError",
        "ScopeTooWideError",
        "verified, 0 left",
        "broken at line",
    ):
        assert reason in ran.stdout
    assert ran.stderr == ""
