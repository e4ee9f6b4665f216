# SPDX-License-Identifier: Apache-2.0
"""Where the Workload API is: `SPIFFE_ENDPOINT_SOCKET` and its forms.

Holds the parser of the address. Opens nothing, and does not ask whether anybody listens there.

Example:
    >>> from jitwi.identity.endpoint import Endpoint
    >>> Endpoint.parse("unix:///run/spire/agent.sock").target
    'unix:/run/spire/agent.sock'
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING

import attrs

from jitwi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENVIRONMENT_NAME", "MAX_SOCKET_PATH_BYTES", "Endpoint"]

ENVIRONMENT_NAME = "SPIFFE_ENDPOINT_SOCKET"
MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` of Linux without its final NUL."""

_REMEDY = "write `unix:///absolute/path` or `tcp://127.0.0.1:8081`"
_TCP = re.compile(r"(\[[^\]/?#@]+\]|[^\[\]:/?#@]+):([0-9]{1,5})", re.ASCII)
_MAX_PORT = 65535
_SHOWN = 120


def _refusal(value: object, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"`{ascii(value)[:_SHOWN]}` is not the address of a Workload API: {why}",
        reasons=("endpoint",),
        remedy=_REMEDY,
    )


@attrs.frozen
class Endpoint:
    """The address of a Workload API.

    Args:
        uri: As it was given.
        target: The same for gRPC.
    """

    uri: str
    target: str

    @classmethod
    def parse(cls, uri: str) -> Endpoint:
        """Parse a Unix socket or TCP address.

        Raises:
            ConfigurationError: Any other form. Source: Workload Endpoint §4.
        """
        if not isinstance(uri, str):
            raise _refusal(uri, "it is not text")
        if not uri.isascii() or not uri.isprintable() or " " in uri:
            raise _refusal(uri, "it has characters that no URI has")
        if "?" in uri or "#" in uri:
            raise _refusal(uri, "it has a query or a fragment")
        scheme, colon, rest = uri.partition(":")
        if not colon or scheme not in ("unix", "tcp"):
            raise _refusal(uri, "the scheme is neither `unix` nor `tcp`")
        return cls(uri, _unix(uri, rest) if scheme == "unix" else _tcp(uri, rest))

    @classmethod
    def find(cls, explicit: str | None, environ: Mapping[str, str] | None = None) -> Endpoint:
        """Return the explicit address or else that of the environment. Source: Workload Endpoint §4.

        Raises:
            ConfigurationError: Neither is there, or it has another form.
        """
        uri = explicit if explicit is not None else (os.environ if environ is None else environ).get(ENVIRONMENT_NAME)
        if not uri:
            raise ConfigurationError(
                f"no Workload API is configured: `{ENVIRONMENT_NAME}` is not set",
                reasons=("endpoint",),
                remedy=f"set it or pass `endpoint=`; {_REMEDY}",
            )
        return cls.parse(uri)


def _unix(uri: str, rest: str) -> str:
    path = rest
    if rest.startswith("//"):
        path = rest[2:]
        if not path.startswith("/"):
            raise _refusal(uri, "a Unix socket has no authority" if path else "the path is missing")
    if not path.startswith("/") or path == "/":
        raise _refusal(uri, "the path is not absolute")
    if "%" in path:
        raise _refusal(uri, "percent-encoding is not supported in a socket path")
    if len(path) > MAX_SOCKET_PATH_BYTES:
        raise _refusal(uri, f"a socket path has at most {MAX_SOCKET_PATH_BYTES} bytes")
    return f"unix:{path}"


def _tcp(uri: str, rest: str) -> str:
    if not rest.startswith("//"):
        raise _refusal(uri, "the address is missing")
    found = _TCP.fullmatch(rest[2:])
    if found is None:
        raise _refusal(uri, "it is not an IP address with a port and nothing else")
    host, port = found.groups()
    if not 0 < int(port) <= _MAX_PORT:
        raise _refusal(uri, "the port is out of range")
    try:
        if host.startswith("["):
            return f"ipv6:[{ipaddress.IPv6Address(host[1:-1])}]:{int(port)}"
        return f"ipv4:{ipaddress.IPv4Address(host)}:{int(port)}"
    except ValueError as exc:
        raise _refusal(uri, "the host is not an IP address") from exc
