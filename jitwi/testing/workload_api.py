# SPDX-License-Identifier: Apache-2.0
"""A Workload API for tests: a real gRPC server on a real Unix socket, which does what it is told, faults included.

Holds `FakeWorkloadApi`. Not for real use: it attests nobody and serves its identities to whoever connects. For two
processes with different identities, run two of them on one `TestCa`.

Example::

    with FakeWorkloadApi("spiffe://example.org/ns/prod/refunds") as api:
        source = WorkloadApiSource(api.socket)
        source.start()
        source.identity(timeout=5)
        api.withdraw()
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from jitwi.clock import SystemClock
from jitwi.errors import InvalidSvidError, StateError
from jitwi.identity.jwt_svid import parse_and_verify
from jitwi.spiffe_id import SpiffeId
from jitwi.testing.ca import TestCa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from jitwi.clock import Clock
    from jitwi.testing.ca import IssuedX509Svid

__all__ = ["MALFORMED", "FakeWorkloadApi"]

_DENIED = "no identity issued"
_WORKERS = 64
_STOP_SECONDS = 5.0


def _without_svids(message: Any) -> None:
    del message.svids[:]


def _garbage_chain(message: Any) -> None:
    message.svids[0].x509_svid = b"\x30\x03abc" + b"garbage"


def _garbage_key(message: Any) -> None:
    message.svids[0].x509_svid_key = b"garbage"


def _no_bundle(message: Any) -> None:
    message.svids[0].bundle = b""


def _garbage_bundle(message: Any) -> None:
    message.svids[0].bundle = b"garbage"


def _cut_chain(message: Any) -> None:
    message.svids[0].x509_svid = message.svids[0].x509_svid[:-7]


MALFORMED: Mapping[str, Callable[[Any], None]] = {
    "no-svids": _without_svids,
    "garbage-chain": _garbage_chain,
    "cut-chain": _cut_chain,
    "garbage-key": _garbage_key,
    "no-bundle": _no_bundle,
    "garbage-bundle": _garbage_bundle,
}
"""Ways to spoil an X.509 update, by name, for `FakeWorkloadApi.push_malformed`."""


@attrs.define
class _Served:
    spiffe_id: str
    hint: str
    ca: TestCa
    svid: IssuedX509Svid


class _Undo:
    """Something that was done, to be undone at the end of a `with` block."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo()


class FakeWorkloadApi:
    """A scripted Workload API, as a context manager. Not for real use.

    Args:
        *spiffe_ids: Identities to serve, in this order.
        ca: The authority; None makes one for the trust domain of the first identity.
        ttl: Life of X.509-SVIDs; a number means seconds.
        jwt_ttl: Life of JWT-SVIDs; a number means seconds.
        is_caching_jwts: Give the same JWT-SVID again until its half life, as SPIRE does.
        clock: What tells the time when it issues.
    """

    def __init__(
        self,
        *spiffe_ids: SpiffeId | str,
        ca: TestCa | None = None,
        ttl: timedelta | float = timedelta(hours=1),
        jwt_ttl: timedelta | float = timedelta(minutes=5),
        is_caching_jwts: bool = True,
        clock: Clock | None = None,
    ) -> None:
        ids = [str(one) for one in spiffe_ids]
        domain = SpiffeId.parse(ids[0]).trust_domain.name if ids else "example.org"
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.ca = ca if ca is not None else TestCa(domain, clock=self.clock)
        self.ttl = ttl
        self.jwt_ttl = jwt_ttl
        self.is_caching_jwts = is_caching_jwts
        self.calls: Counter[str] = Counter()
        self.jwt_claims: dict[str, Any] = {}
        self.jwt_header: dict[str, Any] = {}
        self.jwt_subject: str | None = None
        self.response_delay = 0.0
        self._changed = threading.Condition()
        self._served = [_Served(one, "", self.ca, self._issue(one, self.ca)) for one in ids]
        self._federated: dict[str, bytes] = {}
        self._federated_jwt: dict[str, bytes] = {}
        self._log: dict[str, list[Any]] = {"x509": [], "x509-bundles": [], "jwt-bundles": []}
        self._denied: dict[str, tuple[str, str]] = {}
        self._cut = 0
        self._cut_code = "UNAVAILABLE"
        self._is_hanging = False
        self._is_stopping = False
        self._jwts: dict[tuple[str, tuple[str, ...]], tuple[str, float]] = {}
        self._server: Any = None
        self._folder: Path | None = None

    # Life ------------------------------------------------------------------------------------------------------

    @property
    def socket(self) -> str:
        """Its address, as `SPIFFE_ENDPOINT_SOCKET` wants it.

        Raises:
            StateError: It has not been started.
        """
        if self._folder is None:
            raise StateError("the fake Workload API was not started", reasons=("not-started",))
        return f"unix://{self._folder}/api.sock"

    def prepare(self) -> str:
        """Choose the socket without listening there; returns its address."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="jw", dir="/tmp"))
        return self.socket

    def start(self) -> Self:
        """Listen; on the same socket again after `stop()`."""
        import grpc
        from spiffe._proto import workload_pb2_grpc

        self.prepare()
        if self._server is None:
            self._is_stopping = False
            pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="fake-workload-api")
            self._server = grpc.server(pool, options=(("grpc.so_reuseport", 0),))
            workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(_Servicer(self), self._server)
            self._server.add_insecure_port(f"unix:{self._folder}/api.sock")
            self._server.start()
        return self

    def stop(self) -> None:
        """Go away: every call ends Unavailable, the socket is gone."""
        server, self._server = self._server, None
        if server is not None:
            with self._changed:
                self._is_stopping = True
                self._changed.notify_all()
            server.stop(grace=None).wait(_STOP_SECONDS)
            if self._folder is not None:
                (self._folder / "api.sock").unlink(missing_ok=True)

    def close(self) -> None:
        """Stop and remove the socket's folder."""
        self.stop()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    # What is served --------------------------------------------------------------------------------------------

    def _issue(self, spiffe_id: str, ca: TestCa) -> IssuedX509Svid:
        return ca.issue(spiffe_id, ttl=self.ttl)

    @property
    def spiffe_ids(self) -> tuple[str, ...]:
        """What is served now."""
        return tuple(one.spiffe_id for one in self._served)

    def rotate(self) -> None:
        """Issue every SVID anew, with new keys, and push."""
        with self._changed:
            for one in self._served:
                one.svid = self._issue(one.spiffe_id, one.ca)
        self.push()

    def replace(self, *spiffe_ids: SpiffeId | str) -> None:
        """Serve these identities instead, and push."""
        with self._changed:
            self._served = [_Served(str(one), "", self.ca, self._issue(str(one), self.ca)) for one in spiffe_ids]
        self.push()

    def add(self, spiffe_id: SpiffeId | str, *, hint: str = "", first: bool = False, ca: TestCa | None = None) -> None:
        """Serve one more identity, at the end or as the first, and push."""
        ca = ca if ca is not None else self.ca
        served = _Served(str(spiffe_id), hint, ca, self._issue(str(spiffe_id), ca))
        with self._changed:
            self._served.insert(0 if first else len(self._served), served)
        self.push()

    def remove(self, spiffe_id: SpiffeId | str) -> None:
        """Serve one identity less, and push."""
        with self._changed:
            self._served = [one for one in self._served if one.spiffe_id != str(spiffe_id)]
        self.push()

    def flip(self) -> None:
        """Serve the same identities in the opposite order, and push."""
        with self._changed:
            self._served.reverse()
        self.push()

    def serve(self, svid: IssuedX509Svid, *, hint: str = "") -> None:
        """Serve exactly this SVID, good or bad, and push."""
        with self._changed:
            self._served = [_Served(svid.spiffe_id, hint, self.ca, svid)]
        self.push()

    def federate(self, ca: TestCa) -> None:
        """Serve another trust domain's bundles too, and push."""
        self.federate_raw(f"spiffe://{ca.trust_domain}", ca.x509_bundle_der, ca.jwks)

    def federate_raw(self, name: str, x509: bytes | None, jwks: bytes | None) -> None:
        """Serve these bytes as bundles of trust domain `name` (None removes), and push."""
        with self._changed:
            for bundles, data in ((self._federated, x509), (self._federated_jwt, jwks)):
                bundles.pop(name, None)
                if data is not None:
                    bundles[name] = data
        self.push()

    def push(self, *, times: int = 1) -> None:
        """Send the current state on every open stream, `times` times."""
        with self._changed:
            for topic, messages in self._log.items():
                messages.extend([self._state(topic)] * times)
            self._changed.notify_all()

    def push_malformed(self, how: str | Callable[[Any], None]) -> None:
        """Send one spoilt X.509 update on the open streams; who connects later gets the good state.

        Args:
            how: A name of `MALFORMED`, or a function that changes the message.
        """
        with self._changed:
            message = self._state("x509")
            (MALFORMED[how] if isinstance(how, str) else how)(message)
            self._log["x509"].append(message)
            self._changed.notify_all()

    # Faults ----------------------------------------------------------------------------------------------------

    def withdraw(self) -> _Undo:
        """Answer PermissionDenied to everything, as SPIRE does once the entry is gone; undone by `restore()`."""
        return self.deny("PERMISSION_DENIED", _DENIED)

    def deny(self, code: str, details: str = "told to", *, methods: tuple[str, ...] = ()) -> _Undo:
        """Answer with a gRPC status, by name; open streams end with it.

        Args:
            code: For example `UNAVAILABLE`.
            details: The words with it.
            methods: Names as in `FetchX509SVID`; none means all.
        """
        with self._changed:
            for method in methods or _METHODS:
                self._denied[method] = (code, details)
            self._changed.notify_all()
        return _Undo(self.restore)

    def restore(self) -> None:
        """Undo `withdraw`, `deny`, `hang`, `outage` and delays."""
        with self._changed:
            self._denied.clear()
            self._is_hanging = False
            self.response_delay = 0.0
            self._changed.notify_all()
        self.start()

    def cut(self, code: str = "UNAVAILABLE") -> None:
        """End the open streams once, with this status or normally (`OK`)."""
        with self._changed:
            self._cut += 1
            self._cut_code = code
            self._changed.notify_all()

    def hang(self) -> _Undo:
        """Say nothing more on any call, old or new, without ending it; undone by `restore()`."""
        with self._changed:
            self._is_hanging = True
        return _Undo(self.restore)

    def outage(self) -> _Undo:
        """Go away; undone by `restore()`."""
        self.stop()
        return _Undo(self.restore)

    # Answers ---------------------------------------------------------------------------------------------------

    def _state(self, topic: str) -> Any:
        from spiffe._proto import workload_pb2 as messages

        if topic == "x509":
            answer = messages.X509SVIDResponse(federated_bundles=self._federated)
            for one in self._served:
                answer.svids.add(
                    spiffe_id=one.spiffe_id,
                    x509_svid=one.svid.chain_der,
                    x509_svid_key=one.svid.key_der,
                    bundle=one.ca.x509_bundle_der,
                    hint=one.hint,
                )
            return answer
        authorities = {f"spiffe://{ca.trust_domain}": ca for ca in (self.ca, *(one.ca for one in self._served))}
        if topic == "x509-bundles":
            own = {name: ca.x509_bundle_der for name, ca in authorities.items()}
            return messages.X509BundlesResponse(bundles=self._federated | own)
        own = {name: ca.jwks for name, ca in authorities.items()}
        return messages.JWTBundlesResponse(bundles=self._federated_jwt | own)

    def _mint(self, served: _Served, audience: tuple[str, ...]) -> str:
        now = self.clock.now().wall
        key = (served.spiffe_id, audience)
        kept = self._jwts.get(key)
        if self.is_caching_jwts and kept is not None and now < kept[1]:
            return kept[0]
        seconds = self.jwt_ttl.total_seconds() if isinstance(self.jwt_ttl, timedelta) else self.jwt_ttl
        claims = self.jwt_claims if self.is_caching_jwts else {"jti": str(self.calls["FetchJWTSVID"])} | self.jwt_claims
        subject = self.jwt_subject if self.jwt_subject is not None else served.spiffe_id
        token = served.ca.jwt(subject, audience, ttl=seconds, claims=claims, header=self.jwt_header)
        self._jwts[key] = (token, now + seconds / 2)
        return token

    def forget_jwts(self) -> None:
        """Empty the cache of JWT-SVIDs."""
        with self._changed:
            self._jwts.clear()


_METHODS = ("FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID")


class _Servicer:
    """The gRPC side of one fake."""

    def __init__(self, api: FakeWorkloadApi) -> None:
        import grpc
        from spiffe._proto import workload_pb2

        self._api = api
        self._codes = grpc.StatusCode
        self._messages = workload_pb2

    def FetchX509SVID(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802 - gRPC's name
        return self._follow("FetchX509SVID", "x509", context)

    def FetchX509Bundles(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._follow("FetchX509Bundles", "x509-bundles", context)

    def FetchJWTBundles(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._follow("FetchJWTBundles", "jwt-bundles", context)

    def _begin(self, method: str, context: Any) -> None:
        with self._api._changed:  # noqa: SLF001 - one room
            self._api.calls[method] += 1
        if ("workload.spiffe.io", "true") not in [(key, value) for key, value in context.invocation_metadata()]:
            context.abort(self._codes.INVALID_ARGUMENT, "security header missing from request")
        self._wait(method, context)

    def _wait(self, method: str, context: Any) -> None:
        """Hang while told to, then fail if told to."""
        api = self._api
        context.add_callback(self._notify)
        with api._changed:  # noqa: SLF001
            api._changed.wait_for(  # noqa: SLF001
                lambda: not api._is_hanging or api._is_stopping or not context.is_active()  # noqa: SLF001
            )
            denied = api._denied.get(method)  # noqa: SLF001
        if denied is not None:
            context.abort(self._codes[denied[0]], denied[1])

    def _notify(self) -> None:
        with self._api._changed:  # noqa: SLF001
            self._api._changed.notify_all()  # noqa: SLF001

    def _follow(self, method: str, topic: str, context: Any) -> Iterator[Any]:
        api = self._api
        self._begin(method, context)
        with api._changed:  # noqa: SLF001
            cut = api._cut  # noqa: SLF001
            log = api._log[topic]  # noqa: SLF001
            at = len(log)
            message = api._state(topic)  # noqa: SLF001
        while True:
            if api.response_delay:
                with api._changed:  # noqa: SLF001
                    api._changed.wait_for(lambda: api._is_stopping or not context.is_active(), api.response_delay)  # noqa: SLF001
            yield message
            with api._changed:  # noqa: SLF001
                api._changed.wait_for(lambda: self._is_due(method, context, cut, len(log) > at))  # noqa: B023, SLF001
                if api._is_stopping or not context.is_active():  # noqa: SLF001
                    return
                denied = api._denied.get(method)  # noqa: SLF001
                if denied is None and api._cut != cut:  # noqa: SLF001
                    denied = (api._cut_code, "told to end")  # noqa: SLF001
                if denied is None:
                    message = log[at]
                    at += 1
            if denied is not None:
                if denied[0] == "OK":
                    return
                context.abort(self._codes[denied[0]], denied[1])

    def _is_due(self, method: str, context: Any, cut: int, has_news: bool) -> bool:  # noqa: FBT001
        api = self._api
        if api._is_stopping or not context.is_active():  # noqa: SLF001
            return True
        return not api._is_hanging and (has_news or method in api._denied or api._cut != cut)  # noqa: SLF001

    def FetchJWTSVID(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._begin("FetchJWTSVID", context)
        api = self._api
        answer = self._messages.JWTSVIDResponse()
        if not request.audience:
            context.abort(self._codes.INVALID_ARGUMENT, "audience must be specified")
        with api._changed:  # noqa: SLF001
            for one in api._served:  # noqa: SLF001
                if request.spiffe_id in ("", one.spiffe_id):
                    token = api._mint(one, tuple(sorted(request.audience)))  # noqa: SLF001
                    answer.svids.add(spiffe_id=one.spiffe_id, svid=token, hint=one.hint)
        if not answer.svids:
            context.abort(self._codes.PERMISSION_DENIED, _DENIED)
        return answer

    def ValidateJWTSVID(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._begin("ValidateJWTSVID", context)
        api = self._api
        try:
            svid = parse_and_verify(
                request.svid, audience=request.audience, bundles=api.ca.jwt_bundle, now=api.clock.now().wall
            )
        except InvalidSvidError as exc:
            context.abort(self._codes.INVALID_ARGUMENT, exc.message)
            raise
        answer = self._messages.ValidateJWTSVIDResponse(spiffe_id=str(svid.spiffe_id))
        with contextlib.suppress(ValueError):
            answer.claims.update(json.loads(json.dumps(dict(svid.claims))))
        return answer
