# SPDX-License-Identifier: Apache-2.0
"""`auth=token.auth(...)` on real sockets, sync and async: one request is one use, and nothing leaves for elsewhere."""

from __future__ import annotations

import asyncio
import pickle

import httpx
import pytest

from jitwi.errors import AccessDeniedError, ConfigurationError, JitwiError, OutOfScopeError
from jitwi.integrations import httpx as integration
from jitwi.issuers import TaskTokens
from jitwi.tokens import ProofTargetError, TaskTokenVerifier, input_digest, verify_proof


@pytest.fixture
def token(desk, service):
    """A handle for the service."""
    return desk.obtain(TaskTokens(service.origin))


def receive(desk, service, index: int = -1, *, url: str | None = None):
    """Verify what the service was sent, as its Guard does."""
    method, path, headers, _ = service.seen[index]
    text = headers["authorization"].removeprefix("DPoP ")
    verified = TaskTokenVerifier(service.origin, desk.source).verify(text, now=desk.clock.wall)
    where = url or service.origin + path
    return verify_proof(headers["dpop"], token=verified, method=method, url=where, now=desk.clock.wall)


async def _post(url: str, **options) -> httpx.Response:
    async with httpx.AsyncClient(follow_redirects=options.pop("follow_redirects", False)) as client:
        return await client.post(url, **options)


def _sync(url: str, **options) -> httpx.Response:
    with httpx.Client(follow_redirects=options.pop("follow_redirects", False)) as client:
        return client.post(url, **options)


def _async(url: str, **options) -> httpx.Response:
    return asyncio.run(_post(url, **options))


both = pytest.mark.parametrize("post", [_sync, _async], ids=["Client", "AsyncClient"])


@both
def test_request(desk, service, token, post) -> None:
    """A request arrives with a proof for its method, URL, action, resource and input."""
    auth = token.auth("refund", desk.ORDER, input={"amount": 30})
    response = post(f"{service.origin}/orders/42?x=1", auth=auth, json={"amount": 30})
    assert response.status_code == 200
    proof = receive(desk, service)
    proof.require_use(desk.REFUND, desk.ORDER, input={"amount": 30})
    assert proof.input_digest == input_digest({"amount": 30})
    with pytest.raises(ProofTargetError):
        receive(desk, service, url=f"{service.origin}/orders/43")


@both
def test_each_request_is_a_use(desk, service, token, post) -> None:
    """The check happens when a request is sent: a second send is a second use with its own proof."""
    auth = token.auth("read", desk.ORDER)
    assert desk.gate.checks == []
    post(f"{service.origin}/a", auth=auth)
    post(f"{service.origin}/a", auth=auth)
    assert len(desk.gate.checks) == 2
    first, second = (headers["dpop"] for _, _, headers, _ in service.seen)
    assert first != second


@both
def test_refusal_sends_nothing(desk, service, token, post) -> None:
    """What the gate refuses never reaches the socket."""
    desk.gate.refusal = AccessDeniedError("no")
    with pytest.raises(AccessDeniedError):
        post(f"{service.origin}/a", auth=token.auth("read", desk.ORDER))
    token.destroy()
    desk.gate.refusal = None
    with pytest.raises(JitwiError):
        post(f"{service.origin}/a", auth=token.auth("read", desk.ORDER))
    assert service.seen == []


@both
def test_another_origin_gets_nothing(desk, service, stranger, token, post) -> None:
    """A request to another origin is refused before anything is made or sent."""
    with pytest.raises(OutOfScopeError):
        post(f"{stranger.origin}/orders/42", auth=token.auth("read", desk.ORDER))
    assert stranger.seen == []
    assert desk.gate.checks == []


@both
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_elsewhere(desk, service, stranger, token, post, status: int) -> None:
    """Bar 37: a redirect to another origin carries no header of the credential, and the use is refused."""
    service.redirect, service.status = f"{stranger.origin}/final", status
    auth = token.auth("read", desk.ORDER)
    with pytest.raises(OutOfScopeError, match="redirected"):
        post(f"{service.origin}/a", auth=auth, follow_redirects=True)
    for _, _, headers, _ in stranger.seen:
        assert "dpop" not in headers
        assert "authorization" not in headers
    assert len(desk.gate.checks) == 1


@both
def test_redirect_at_home(desk, service, token, post) -> None:
    """A redirect to the same origin is another request: no header goes with it."""
    service.redirect = "/final"
    with pytest.raises(OutOfScopeError, match="redirected"):
        post(f"{service.origin}/a", auth=token.auth("read", desk.ORDER), follow_redirects=True)
    assert "dpop" not in service.seen[-1][2]
    assert "authorization" not in service.seen[-1][2]


@both
def test_redirect_that_is_not_followed(desk, service, stranger, token, post) -> None:
    """Without `follow_redirects` the answer is given back, and its `next_request` has no credential."""
    service.redirect = f"{stranger.origin}/final"
    response = post(f"{service.origin}/a", auth=token.auth("read", desk.ORDER))
    assert response.status_code == 307
    assert "dpop" not in response.next_request.headers
    assert "authorization" not in response.next_request.headers


@both
def test_nothing_stays_behind(desk, service, token, post) -> None:
    """After the answer neither the request nor its rendering has the credential (bar 17)."""
    response = post(f"{service.origin}/a", auth=token.auth("read", desk.ORDER))
    kept = response.request
    assert "dpop" not in kept.headers
    assert "authorization" not in kept.headers
    sent = service.seen[-1][2]["authorization"][5:]
    assert sent.encode() not in pickle.dumps(kept)
    assert sent not in repr(kept.headers)


def test_headers_while_they_are_sent(desk, service, token) -> None:
    """Hooks see that the headers are there; a copy, a repr and a pickle of them do not have them."""
    seen = []

    def hook(request: httpx.Request) -> None:
        seen.append((dict(httpx.Headers(request.headers)), repr(request.headers), pickle.dumps(request.headers)))
        assert request.headers["dpop"].startswith("ey")
        assert "DPoP" in request.headers

    with httpx.Client(event_hooks={"request": [hook]}) as client:
        client.post(f"{service.origin}/a", auth=token.auth("read", desk.ORDER))
    (copied, shown, pickled) = seen[0]
    proof = service.seen[0][2]["dpop"]
    assert "dpop" not in copied
    assert proof not in shown
    assert proof.encode() not in pickled


def test_headers_of_the_caller_are_replaced(desk, service, token) -> None:
    """An `Authorization` or `DPoP` that the caller set does not travel beside ours."""
    stale = {"Authorization": "Bearer old", "DPoP": "old", "X-Other": "kept"}
    _sync(f"{service.origin}/a", auth=token.auth("read", desk.ORDER), headers=stale)
    _, _, headers, _ = service.seen[0]
    assert headers["authorization"].startswith("DPoP ey")
    assert headers["x-other"] == "kept"
    receive(desk, service)


def test_transport_of_a_test(desk) -> None:
    """A user's `MockTransport` sees the headers as a server would."""
    token = desk.obtain(TaskTokens("https://orders.example.org"))
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("dpop"))
        return httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        client.get("https://orders.example.org/a", auth=token.auth("read", desk.ORDER))
    assert seen[0].startswith("ey")


def test_failure_in_flight(desk, service, token) -> None:
    """A request that failed keeps no credential either, and the caller's error is kept."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client, pytest.raises(httpx.ReadTimeout) as caught:
        client.get(f"{service.origin}/a", auth=token.auth("read", desk.ORDER))
    assert "dpop" not in caught.value.request.headers


@pytest.mark.parametrize(
    "url",
    ["https://u:p@orders.example.org/a", "https://\u00f6rders.example.org/a", "https://orders.example.org/\u00f6"],
)
def test_urls(desk, url: str) -> None:
    """User information is refused; hosts and paths are taken in the ASCII form that is sent."""
    token = desk.obtain(TaskTokens("https://orders.example.org"))
    with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200))) as client:
        if url.endswith("\u00f6"):
            assert client.get(url, auth=token.auth("read", desk.ORDER)).status_code == 200
        else:
            with pytest.raises((ConfigurationError, OutOfScopeError)):
                client.get(url, auth=token.auth("read", desk.ORDER))


def test_httpx_that_copies_otherwise(desk, token, monkeypatch) -> None:
    """If a version of httpx copies headers in another way, `auth` refuses instead of leaking."""
    monkeypatch.setattr(integration, "_COPIES_ARE_CLEAN", False)
    with pytest.raises(ConfigurationError, match="httpx"):
        token.auth("read", desk.ORDER)
