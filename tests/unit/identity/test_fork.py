# SPDX-License-Identifier: Apache-2.0
"""Forked children: a typed error or a rebuilt source, never a hang, never the parent's key (bar 11)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jitwi.testing.workload_api import FakeWorkloadApi

PROGRAM = Path(__file__).with_name("fork_child.py")
SETTINGS = [None, "1", "0"]


def run(api: FakeWorkloadApi, way: str, setting: str | None) -> dict[str, Any]:
    """Run the program with one setting of gRPC's fork support."""
    environ = {key: value for key, value in os.environ.items() if key != "GRPC_ENABLE_FORK_SUPPORT"}
    if setting is not None:
        environ["GRPC_ENABLE_FORK_SUPPORT"] = setting
    done = subprocess.run(
        [sys.executable, str(PROGRAM), api.socket, way],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def refuses_everything(child: dict[str, Any]) -> None:
    """Assert that nothing inherited works, and that this is said within a second."""
    for use in ("identity", "jwt", "sign"):
        assert child[use] == "StateError:forked"
    assert (child["peek"], child["latest"]) == ("None", "None")
    assert child["seconds"] < 1.0


@pytest.mark.parametrize("setting", SETTINGS, ids=["default", "on", "off"])
@pytest.mark.parametrize("way", ["os.fork", "fork"])
def test_forked_child(api: FakeWorkloadApi, way: str, setting: str | None) -> None:
    """The child is refused at once; `start()` rebuilds, or is refused at once where gRPC cannot work."""
    seen = run(api, way, setting)
    child = seen["child"]
    refuses_everything(child)
    restarted = child["restarted"]
    if setting == "0":
        assert restarted["start"].startswith("StateError:forked,grpc-fork-support")
        assert restarted["again"].startswith("StateError")
        assert restarted["restart_seconds"] < 1.0
    else:
        assert (restarted["start"], restarted["again"], restarted["sign"]) == ("None", "value", "value")
    assert child["exit"] == 0
    assert seen["parent"] == "value"


@pytest.mark.parametrize("setting", SETTINGS, ids=["default", "on", "off"])
@pytest.mark.parametrize("way", ["libc", "pool"])
def test_child_without_a_restart(api: FakeWorkloadApi, way: str, setting: str | None) -> None:
    """A pool's worker and a child of libc's fork, which runs no hook of Python, are refused as well."""
    seen = run(api, way, setting)
    refuses_everything(seen["child"])
    if way == "libc":
        assert seen["child"]["start"].startswith("StateError:forked")
    assert seen["parent"] == "value"


def test_spawned_child(api: FakeWorkloadApi) -> None:
    """A spawned child has nothing to inherit and makes its own source."""
    seen = run(api, "spawn", None)
    assert (seen["child"]["again"], seen["child"]["exit"], seen["parent"]) == ("value", 0, "value")
