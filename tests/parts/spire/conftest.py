# SPDX-License-Identifier: Apache-2.0
"""Makes `spire-dev` importable and shares one fast stack among the tests of this folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

SPIRE_DEV = Path(os.environ.get("JITWI_SPIRE_DEV") or Path(__file__).resolve().parents[3] / "spire-dev")
if str(SPIRE_DEV) not in sys.path:
    sys.path.insert(0, str(SPIRE_DEV))


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
