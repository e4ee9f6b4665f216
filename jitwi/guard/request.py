# SPDX-License-Identifier: Apache-2.0
"""The request as a Guard reads it.

Holds `Request`, the two headers that carry evidence, and the URL that a proof must be for. Does not hold any framework:
integrations build a `Request` from theirs. Nothing that a client can set names the host: the origin is the Guard's
configuration, and `Host`, `Forwarded` and `X-Forwarded-*` are never looked at.

Example:
    >>> from jitwi.guard import Request
    >>> Request("POST", "/orders/42", [("Authorization", "DPoP ..."), ("DPoP", "...")])
    <Request POST /orders/42>
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.errors import ConfigurationError
from jitwi.guard.errors import AmbiguousEvidenceError, InvalidRequestError, MissingEvidenceError
from jitwi.tokens import proof
from jitwi.tokens.names import HTTP_AUTHORIZATION, HTTP_DPOP, MAX_URL_CHARS, SCHEME_DPOP

if TYPE_CHECKING:
    from jitwi.errors import EvidenceError

__all__ = ["Request", "evidence_of", "origin_of", "target_of"]

_ABSOLUTE = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://[^/?#\\]*", re.ASCII)
_CREDENTIALS = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) +([A-Za-z0-9._~+/-]+=*)", re.ASCII)
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}", re.ASCII)
_ORIGIN = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://[^/?#\\]+/?", re.ASCII)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""


def _pairs(headers: object) -> tuple[tuple[str, str], ...]:
    items: Iterable[Any] = headers.items() if isinstance(headers, Mapping) else headers  # type: ignore[assignment]
    try:
        return tuple((_text(name).lower(), _text(value)) for name, value in items)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(
            "`headers` is a mapping or a list of pairs", reasons=("headers",), remedy="give `[(name, value), ...]`"
        ) from exc


@attrs.frozen(repr=False)
class Request:
    """What a Guard needs of an HTTP request.

    Args:
        method: As received.
        url: As received: `/path?query`, or an absolute URL whose host is ignored. The path must be the raw one, still
            percent-encoded.
        headers: A mapping, or a list of pairs where a name can come twice; text or bytes. Give every header line: a
            mapping that joined or dropped duplicates hides them from the Guard.

    Raises:
        ConfigurationError: `headers` is neither.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = attrs.field(converter=_pairs)

    def values_of(self, name: str) -> list[str]:
        """Return the values of all headers of that name, whatever their case."""
        wanted = name.lower()
        return [value for key, value in self.headers if key == wanted]

    def __repr__(self) -> str:
        """Method and path; no header, no query."""
        return f"<Request {ascii(self.method)[1:-1][:32]} {ascii(self.url)[1:-1].partition('?')[0][:200]}>"


def _one(request: Request, name: str) -> str:
    values = request.values_of(name)
    if not values:
        raise MissingEvidenceError(f"there is no `{name}` header", reasons=(f"no-{name.lower()}",))
    if len(values) > 1:
        raise AmbiguousEvidenceError(
            f"there are {len(values)} `{name}` headers", reasons=(f"several-{name.lower()}",), remedy="send exactly one"
        )
    return values[0].strip(" \t")


def evidence_of(request: Request) -> tuple[str, str]:
    """Return the texts of task token and proof, unverified.

    Raises:
        MissingEvidenceError: One is missing, or the scheme is not `DPoP`.
        AmbiguousEvidenceError: One comes twice.

    Source:
        RFC 9449 §4.3 and §7.1.
    """
    authorization = _one(request, HTTP_AUTHORIZATION)
    matched = _CREDENTIALS.fullmatch(authorization)
    if matched is None or matched[1].lower() != SCHEME_DPOP.lower():
        raise MissingEvidenceError(
            "`Authorization` does not carry a task token of the scheme `DPoP`",
            reasons=("scheme",),
            remedy="use the `auth` of the task's credential",
        )
    return matched[2], _one(request, HTTP_DPOP)


def _unsafe(message: str, reason: str) -> EvidenceError:
    return InvalidRequestError(message, reasons=(reason,), remedy="send the path without dot segments, percent-encoded")


def target_of(request: Request, origin: str) -> str:
    """Return the URL that a proof for this request must name: the configured origin and the path of the request.

    Args:
        request: The request.
        origin: `scheme://host[:port]`, from the Guard's configuration.

    Raises:
        InvalidRequestError: The method or the path has more than one reading, or none.

    Source:
        RFC 9449 §4.2 (`htu` is without query and fragment) and §4.3.
    """
    if not isinstance(request.method, str) or _METHOD.fullmatch(request.method) is None:
        raise _unsafe("the method is not an HTTP method", "method")
    url = request.url
    if not isinstance(url, str) or len(url) > MAX_URL_CHARS:
        raise _unsafe(f"the URL is not text of at most {MAX_URL_CHARS} characters", "url")
    absolute = _ABSOLUTE.match(url)
    path = (url[absolute.end() :] if absolute else url).partition("?")[0]
    if "#" in url:
        raise _unsafe("the URL has a fragment", "fragment")
    if absolute and not path:
        path = "/"
    if not path.startswith("/"):
        raise _unsafe(f"the path {ascii(path)[:80]} does not start with `/`", "path")
    try:
        return proof.normalise_url(origin + path)
    except ConfigurationError as exc:
        raise _unsafe(f"the path {ascii(path)[:80]} has more than one reading: {exc.message}", "path") from exc


def origin_of(audience: str, origin: str | None) -> str:
    """Return the origin that requests come to, from the configuration alone.

    Args:
        audience: The Guard's audience; its origin is the default if it is a URL.
        origin: `https://host[:port]` as callers address the service, or None.

    Raises:
        ConfigurationError: Neither names an origin, or `origin` has more than scheme, host and port.
    """
    if origin is not None and (not isinstance(origin, str) or _ORIGIN.fullmatch(origin) is None):
        raise ConfigurationError(
            f"`origin` {ascii(origin)[:200]} is not scheme, host and port",
            reasons=("origin",),
            remedy="write `https://orders.example.org`: the URL that callers use, without a path",
        )
    try:
        return proof.origin_of(origin if origin is not None else audience)
    except ConfigurationError as exc:
        raise ConfigurationError(
            f"{ascii(origin if origin is not None else audience)[:200]} does not name an origin",
            reasons=("origin",),
            remedy="give `origin`, for example `https://orders.example.org`: the URL that callers use, without a path",
        ) from exc
