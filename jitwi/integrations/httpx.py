# SPDX-License-Identifier: Apache-2.0
"""httpx: `auth=token.auth(...)`, for `Client` and `AsyncClient`.

Holds one `httpx.Auth`, which asks a handle for headers when the request is sent: each request is one use, and a retry
is another one. Does not hold checks: the handle passes the gate and is pinned to its origin.

What leaves is bound to the one request it was made for. The credential's headers are never stored in the request's own
list, so that neither a redirect (to wherever) nor `repr`, `pickle` or a later look at `response.request` has them; a
redirect that the client followed is refused.

Example::

    response = client.post(url, auth=token.auth("refund", order, input={"amount": 30}), json={"amount": 30})
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from jitwi.errors import ConfigurationError, OutOfScopeError
from jitwi.grants.off_loop import run_off_loop
from jitwi.secret import NoCopy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator, Mapping

    from jitwi.task import Entity

try:
    import httpx
except ImportError as exc:  # pragma: no cover - seen in the session without extras
    raise ConfigurationError(
        "httpx is not installed", reasons=("extra",), remedy="install it with `pip install 'jitwi[httpx]'`"
    ) from exc

__all__ = ["HandleAuth", "RequestHeaders"]


class RequestHeaders(Protocol):
    """Port: a handle that makes the headers for one request."""

    def headers(
        self, method: str, url: str, action: str | Entity, resource: Entity, input: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        """Check one use and return the headers that carry it."""
        ...


class _Released(httpx.Headers):
    """A request's headers with the credential's beside them: on the wire and in look-ups, in no copy and no repr."""

    def __init__(self, plain: httpx.Headers, extra: Mapping[str, str]) -> None:
        self._extra: dict[str, tuple[bytes, bytes]] = {}
        super().__init__(plain)
        for name in extra:
            self.pop(name, None)
        self._extra = {name.lower(): (name.encode(), value.encode()) for name, value in extra.items()}

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        """What transports send."""
        return [*super().raw, *self._extra.values()]

    def __getitem__(self, key: str) -> str:
        found = self._extra.get(key.lower())
        return found[1].decode() if found else super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        return (isinstance(key, str) and key.lower() in self._extra) or super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        return iter([*super().__iter__(), *self._extra])

    def __len__(self) -> int:
        return super().__len__() + len(self._extra)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_extra": {}}

    def withdraw(self) -> None:
        """Forget the credential's headers."""
        self._extra = {}


class HandleAuth(httpx.Auth, NoCopy):
    """Authorise each request by a handle, at the moment it is sent.

    Args:
        handle: The handle; a `TaskToken`, for example.
        action: What the request does.
        resource: To what.
        input: What the service will read from it and execute.
    """

    def __init__(
        self,
        handle: RequestHeaders,
        action: str | Entity,
        resource: Entity,
        input: Mapping[str, Any] | None = None,
    ) -> None:
        if not _COPIES_ARE_CLEAN:
            raise ConfigurationError(
                "this version of httpx copies headers in a way that jitwi does not know",
                reasons=("httpx-version",),
                remedy="use `token.headers(...)`, and do not follow redirects with them",
            )
        self._handle = handle
        self._action = action
        self._resource = resource
        self._input = input

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the credential's headers on one request.

        Raises:
            OutOfScopeError: Another origin; or the client followed a redirect (without the headers).
            JitwiError: The handle refused this use; nothing was sent.
        """
        return self._send(request, self._headers(request))

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Do as `auth_flow` does, off the loop where the decision may wait for an entity provider.

        Raises:
            JitwiError: As for `auth_flow`.
        """
        if getattr(self._handle, "may_block", False) and _is_asyncio():
            extra = await run_off_loop(lambda: self._headers(request))
        else:
            extra = self._headers(request)
        flow = self._send(request, extra)
        try:
            response = yield next(flow)
            with contextlib.suppress(StopIteration):  # it ends here: one request for one use
                flow.send(response)
        finally:
            flow.close()

    def _headers(self, request: httpx.Request) -> dict[str, str]:
        return self._handle.headers(request.method, _url(request), self._action, self._resource, self._input)

    def _send(self, request: httpx.Request, extra: Mapping[str, str]) -> Generator[httpx.Request, httpx.Response, None]:
        plain = request.headers
        released = _Released(plain, extra)
        request.headers = released
        try:
            response = yield request
        finally:
            released.withdraw()
            request.headers = plain
        if any(_was_sent_with(earlier, request) for earlier in response.history):
            raise OutOfScopeError(
                f"`{request.url.host}` redirected the request, and a use is for one request",
                reasons=("redirect",),
                remedy="call the final URL, with `follow_redirects=False`",
            )

    def __repr__(self) -> str:
        """Action and resource only."""
        return f"<HandleAuth {self._action} on {self._resource}>"


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # trio: there is no thread of ours to hand it to
        return False
    return True


def _was_sent_with(earlier: httpx.Response, request: httpx.Request) -> bool:
    return earlier.request is request


def _url(request: httpx.Request) -> str:
    """The URL as it goes out: host and path in their ASCII form."""
    url = request.url
    host = url.raw_host.decode("ascii")
    authority = f"[{host}]" if ":" in host else host
    port = "" if url.port is None else f":{url.port}"
    if url.userinfo:
        raise ConfigurationError("a URL with user information cannot be proven", reasons=("url",))
    return f"{url.scheme}://{authority}{port}{url.raw_path.decode('ascii')}"


_COPIES_ARE_CLEAN = dict(httpx.Headers(_Released(httpx.Headers({"a": "b"}), {"DPoP": "x"}))) == {"a": "b"}
"""What redirects do to headers: copy them by `Headers(headers)`. Looked at once, so that a change of httpx is seen."""
