# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the state tests."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import attrs
import pytest

from jitwi.clock import Instant


@attrs.define
class StepClock:
    """A clock that a test moves by hand."""

    wall: float = 1_800_000_000.0
    boot: float = 1_000.0

    def now(self) -> Instant:
        """Return the instant that was set."""
        return Instant(self.wall, self.boot)

    def forward(self, seconds: float) -> None:
        """Move both clocks."""
        self.wall += seconds
        self.boot += seconds


@pytest.fixture
def clock():
    """A clock that stands still."""
    return StepClock()


@pytest.fixture
def folder():
    """The path of a folder that does not exist yet, below one that only we can read."""
    base = Path(tempfile.mkdtemp(prefix="jw"))
    yield base / "state"
    shutil.rmtree(base)
