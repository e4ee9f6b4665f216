# SPDX-License-Identifier: Apache-2.0
"""A caller and a guarded service in two processes, on embedded Workload APIs of one trust domain."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from jitwi.testing import FakeWorkloadApi, TestCa

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
AUDIENCE = "https://orders.example.org"
CALLER = "spiffe://example.org/ns/prod/refunds"


class Shop:
    """Where things are."""

    def __init__(self, folder, agent, url):
        self.folder = folder
        self.agent = agent
        self.url = url
        self.audience = AUDIENCE
        self.policies = DEMO / "policies" / "caller"


@pytest.fixture(scope="module")
def guarded():
    """Return a running orders service in a process of its own, and the caller's agent."""
    folder = Path(tempfile.mkdtemp(prefix="jw"))
    ca = TestCa("example.org")
    with (
        FakeWorkloadApi(CALLER, ca=ca) as agent,
        FakeWorkloadApi("spiffe://example.org/ns/prod/orders", ca=ca) as other,
    ):
        port_file = folder / "port"
        process = subprocess.Popen(
            [
                sys.executable,
                str(DEMO / "service.py"),
                *("--audience", AUDIENCE, "--port-file", str(port_file)),
                *("--state", str(folder / "service"), "--endings", str(folder / "caller" / "endings")),
            ],
            env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": other.socket},
        )
        try:
            pause = threading.Event()
            for _ in range(1500):
                if port_file.exists():
                    break
                assert process.poll() is None, "the service did not start"
                pause.wait(0.02)
            yield Shop(folder, agent, f"http://127.0.0.1:{port_file.read_text()}")
        finally:
            process.terminate()
            process.wait(10)
