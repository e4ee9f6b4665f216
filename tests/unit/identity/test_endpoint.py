# SPDX-License-Identifier: Apache-2.0
"""Addresses of a Workload API (Workload Endpoint §4: WE-2, WE-3)."""

from __future__ import annotations

import pytest

from jitwi.errors import ConfigurationError, StateError
from jitwi.identity import Endpoint, WorkloadApiSource

GOOD = [
    ("unix:///run/spire/agent.sock", "unix:/run/spire/agent.sock"),
    ("unix:/run/spire/agent.sock", "unix:/run/spire/agent.sock"),
    ("unix:///" + "a" * 106, "unix:/" + "a" * 106),
    ("tcp://127.0.0.1:8081", "ipv4:127.0.0.1:8081"),
    ("tcp://[::1]:8081", "ipv6:[::1]:8081"),
    ("tcp://10.0.0.1:65535", "ipv4:10.0.0.1:65535"),
]
BAD = [
    "",
    "/run/agent.sock",
    "agent.sock",
    "unix:",
    "unix://",
    "unix:///",
    "unix:agent.sock",
    "unix://agent.sock",
    "unix://host/agent.sock",
    "unix:///a?b",
    "unix:///a#b",
    "unix:///a%20b",
    "unix:///a b",
    "unix:///a\n",
    "unix:///" + "a" * 107,
    "UNIX:///a",
    "http://127.0.0.1:80",
    "tcp:127.0.0.1:80",
    "tcp://",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:65536",
    "tcp://127.0.0.1:x",
    "tcp://127.0.0.1:80/",
    "tcp://127.0.0.1:80/path",
    "tcp://localhost:80",
    "tcp://agent.example.org:80",
    "tcp://user@127.0.0.1:80",
    "tcp://::1:80",
    "tcp://[::1]",
    "tcp://[127.0.0.1]:80",
    "tcp://127.1:80",
    "tcp://127.0.0.1:80?x",
    "vsock:1:2",
]


@pytest.mark.parametrize(("uri", "target"), GOOD)
def test_good_address(uri: str, target: str) -> None:
    """WE-3: both schemes in every legal form."""
    assert Endpoint.parse(uri).target == target


@pytest.mark.parametrize("uri", BAD)
def test_bad_address(uri: str) -> None:
    """WE-3: any other form is refused with the way out."""
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.parse(uri)
    assert "unix:///" in caught.value.remedy


def test_explicit_comes_first() -> None:
    """WE-2: explicit configuration before the environment."""
    environ = {"SPIFFE_ENDPOINT_SOCKET": "unix:///env"}
    assert Endpoint.find("unix:///explicit", environ).target == "unix:/explicit"
    assert Endpoint.find(None, environ).target == "unix:/env"


def test_environment_is_read_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 13: the constructor reads no environment; `start()` says what is missing."""
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    source = WorkloadApiSource()
    with pytest.raises(ConfigurationError, match="SPIFFE_ENDPOINT_SOCKET"):
        source.start()
    with pytest.raises(StateError):
        source.identity(timeout=0)


@pytest.mark.parametrize(
    "options",
    [
        {"svid": "x"},
        {"svid": "jwt-svid"},
        {"audience": "https://me"},
        {"svid": "jwt-svid", "audience": ""},
        {"hint": ""},
        {"hint": "x" * 1025},
        {"max_staleness": 0},
        {"endpoint": "agent.sock"},
    ],
)
def test_bad_configuration(options: dict[str, object]) -> None:
    """Arguments that do not fit are refused at once."""
    with pytest.raises(ConfigurationError):
        WorkloadApiSource(**options)
