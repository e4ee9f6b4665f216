# SPDX-License-Identifier: Apache-2.0
"""The Workload API over gRPC: the only module of the package that imports grpc and the generated stubs.

Holds one channel and its calls, as plain values and one error. Does not interpret: what an update means is the
source's business. grpc and the stubs are imported when a channel is opened, not before.

The synchronous API is used, with a thread per stream: `grpc.aio` has one poller for all event loops of a process and
reports errors to the loops of others (grpc/grpc #25364), and only the synchronous one is known to survive a fork.

Source: Workload API §5, §6; Workload Endpoint §3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from jitwi.errors import IdentityUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jitwi.identity.endpoint import Endpoint

__all__ = ["BundlesUpdate", "CallFailedError", "RawJwtSvid", "RawX509Svid", "Stream", "WorkloadApi", "X509Update"]

_METADATA = (("workload.spiffe.io", "true"),)
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # nobody else's backoff is inherited
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
)
_SHOWN = 200


class CallFailedError(IdentityUnavailableError):
    """A call ended with a gRPC status. The room turns it into what it means; it does not leave as it is.

    Attributes:
        details: The agent's words, shortened and escaped.
    """

    details: str = ""


@attrs.frozen(repr=False)
class RawX509Svid:
    """One SVID of an answer, nothing checked."""

    spiffe_id: str
    chain: bytes
    key: bytes
    bundle: bytes
    hint: str


@attrs.frozen(repr=False)
class X509Update:
    """One message of `FetchX509SVID`: the full set. Source: Workload API §4.3."""

    svids: tuple[RawX509Svid, ...]
    federated: dict[str, bytes]


@attrs.frozen(repr=False)
class BundlesUpdate:
    """One message of `FetchX509Bundles` or `FetchJWTBundles`: the full set, by trust domain."""

    bundles: dict[str, bytes]


@attrs.frozen(repr=False)
class RawJwtSvid:
    """One SVID of `FetchJWTSVID`, nothing checked."""

    spiffe_id: str
    token: str
    hint: str


def _x509_update(message: Any) -> X509Update:
    svids = tuple(
        RawX509Svid(one.spiffe_id, one.x509_svid, one.x509_svid_key, one.bundle, one.hint) for one in message.svids
    )
    return X509Update(svids, dict(message.federated_bundles))


def _bundles_update(message: Any) -> BundlesUpdate:
    return BundlesUpdate(dict(message.bundles))


class Stream:
    """One open stream: iterate over its updates from one thread, cancel it from any."""

    def __init__(self, call: Any, convert: Callable[[Any], Any], failure: type[BaseException]) -> None:
        self._call = call
        self._convert = convert
        self._failure = failure

    def __iter__(self) -> Iterator[Any]:
        """Yield updates until the stream ends.

        Raises:
            CallFailedError: It ended with a status other than OK.
        """
        try:
            for message in self._call:
                yield self._convert(message)
        except self._failure as exc:
            raise _failed(exc) from exc

    def cancel(self) -> None:
        """End the stream; its iterator raises."""
        self._call.cancel()


def _failure(code: str, details: str) -> CallFailedError:
    return CallFailedError(f"{code}: {details}", reasons=("grpc",), grpc_code=code, details=details)


def _failed(exc: Any) -> CallFailedError:
    code, details = "UNKNOWN", ""
    if callable(getattr(exc, "code", None)):
        status = exc.code()
        code = getattr(status, "name", None) or "UNKNOWN"
        details = ascii(exc.details() or "")[1:-1][:_SHOWN]
    return _failure(code, details)


class WorkloadApi:
    """A channel of our own to one Workload API.

    Args:
        endpoint: Its address.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        import grpc
        from spiffe._proto import workload_pb2, workload_pb2_grpc

        self._messages = workload_pb2
        self._failure: type[BaseException] = grpc.RpcError
        self._channel = grpc.insecure_channel(endpoint.target, options=_OPTIONS)
        self._stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(self._channel)

    def x509_svids(self) -> Stream:
        """Open the stream of X.509 contexts."""
        return self._stream(self._stub.FetchX509SVID, self._messages.X509SVIDRequest(), _x509_update)

    def x509_bundles(self) -> Stream:
        """Open the stream of X.509 bundles."""
        return self._stream(self._stub.FetchX509Bundles, self._messages.X509BundlesRequest(), _bundles_update)

    def jwt_bundles(self, *, timeout: float | None = None) -> Stream:
        """Open the stream of JWT bundles; with `timeout` (seconds) it ends after that time."""
        return self._stream(self._stub.FetchJWTBundles, self._messages.JWTBundlesRequest(), _bundles_update, timeout)

    def _stream(self, method: Any, request: Any, convert: Callable[[Any], Any], timeout: float | None = None) -> Stream:
        try:
            return Stream(method(request, metadata=_METADATA, timeout=timeout), convert, self._failure)
        except ValueError as exc:  # the channel was closed
            raise _failure("CANCELLED", "the channel is closed") from exc

    def jwt_svids(self, audience: str, spiffe_id: str, *, timeout: float) -> tuple[RawJwtSvid, ...]:
        """Fetch JWT-SVIDs for one audience.

        Args:
            audience: The one audience.
            spiffe_id: The subject; empty asks for all identities.
            timeout: Seconds.

        Raises:
            CallFailedError: The agent refused or did not answer in time.
        """
        request = self._messages.JWTSVIDRequest(audience=[audience], spiffe_id=spiffe_id)
        try:
            answer = self._stub.FetchJWTSVID(request, metadata=_METADATA, timeout=timeout)
        except self._failure as exc:
            raise _failed(exc) from exc
        except ValueError as exc:
            raise _failure("CANCELLED", "the channel is closed") from exc
        return tuple(RawJwtSvid(one.spiffe_id, one.svid, one.hint) for one in answer.svids)

    def probe(self, *, timeout: float) -> None:
        """Ask for something cheap and return at the first answer, whatever it is.

        `FetchJWTBundles` serves: public, attested like any call, and a good agent does not log it as an error.

        Raises:
            CallFailedError: The agent refused or did not answer within `timeout` seconds.
        """
        stream = self.jwt_bundles(timeout=timeout)
        try:
            for _ in stream:
                return
        finally:
            stream.cancel()

    def close(self) -> None:
        """Close the channel; every open call ends."""
        self._channel.close()
