# SPDX-License-Identifier: Apache-2.0
"""The one origin that a handle's headers may be sent to.

Holds the rule shared by the issuers of this folder whose credential travels in HTTP headers. Does not send anything.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jitwi.errors import ConfigurationError, OutOfScopeError
from jitwi.tokens.proof import origin_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitwi.credentials import Gate
    from jitwi.task import Entity

__all__ = ["pinned_origin", "require_origin", "served_actions"]


def pinned_origin(audience: str, origin: str | None, *, allow_insecure_http: bool) -> str:
    """Return the origin of `origin`, or of the audience where that is a URL.

    Raises:
        ConfigurationError: Neither is an `https` URL; plain `http` is for loopback unless it was allowed by name.
    """
    if not isinstance(audience, str) or not audience or len(audience) > _MAX_AUDIENCE_CHARS:
        raise ConfigurationError("an issuer has exactly one audience, as text", reasons=("audience",))
    text = audience if origin is None else origin
    try:
        found = origin_of(text)
    except ConfigurationError as exc:
        raise ConfigurationError(
            f"the audience `{ascii(audience)[:80]}` is not a URL, so the origin must be given: {exc.message}"
            if origin is None
            else f"`origin` is not a URL: {exc.message}",
            reasons=("origin",),
            remedy='write `origin="https://orders.example.org"`',
        ) from exc
    if origin is not None and urlsplit(origin).path not in ("", "/"):
        raise ConfigurationError("`origin` is scheme, host and port, without a path", reasons=("origin",))
    if found.startswith("http://") and not allow_insecure_http and not _is_loopback(found):
        raise ConfigurationError(
            f"`{found}` is plain HTTP",
            reasons=("insecure-http",),
            remedy="use `https`, or say `allow_insecure_http=True` where something else protects the connection",
        )
    return found


def require_origin(gate: Gate, url: str, pinned: str, action: str | Entity, resource: Entity) -> None:
    """Require that `url` is of the pinned origin; another one is a refused use, on record.

    Raises:
        OutOfScopeError: It is another one, or no URL that can be told: nothing is made.
    """
    try:
        _check_origin(url, pinned)
    except OutOfScopeError as error:
        gate.refuse(error, action, resource)
        raise


def _check_origin(url: str, pinned: str) -> None:
    try:
        found = origin_of(url)
    except ConfigurationError as exc:
        raise OutOfScopeError(f"the request goes to no plain URL: {exc.message}", reasons=("origin",)) from exc
    if found != pinned:
        raise OutOfScopeError(
            f"the credential is for `{pinned}`, not for `{found}`",
            reasons=("origin",),
            remedy="one audience and one origin per issuer: configure another issuer for the other service",
        )


def served_actions(serves: Iterable[str] | None) -> frozenset[str] | None:
    """Return `serves` as the port wants it.

    Raises:
        ConfigurationError: Text instead of a list, or an empty list.
    """
    if serves is None:
        return None
    if isinstance(serves, str):
        raise ConfigurationError(
            "`serves` is a list of action names", reasons=("serves",), remedy=f"write `[{serves!r}]`"
        )
    found = frozenset(serves)
    if not found or not all(isinstance(name, str) and name for name in found):
        raise ConfigurationError("`serves` names at least one action, each as text", reasons=("serves",))
    return found


_MAX_AUDIENCE_CHARS = 1024


def _is_loopback(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
