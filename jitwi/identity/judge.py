# SPDX-License-Identifier: Apache-2.0
"""What an update means: admission, choice, pinning, bundles; and the checks after a JWT-SVID was fetched.

Holds `Judge`, the mutable core that the source's own thread drives, and `fetch_jwt_svid`. Does not hold threads.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jitwi.clock import Deadline
from jitwi.errors import IdentityUnavailableError, IdentityWithdrawnError, InvalidSvidError
from jitwi.identity.follower import JwtAsk
from jitwi.identity.identity import Identity, IdentityEvent, IdentityEventKind, SourceState, SvidKind
from jitwi.identity.jwt_cache import FetchedJwtSvid
from jitwi.identity.jwt_svid import parse_and_verify
from jitwi.identity.key import LeafKey
from jitwi.identity.lifecycle import Lifecycle
from jitwi.identity.strict import refusal
from jitwi.identity.updates import (
    choose,
    clean_hint,
    common_bundles,
    jwt_bundles,
    x509_bundles,
    x509_update_bundles,
)
from jitwi.identity.x509_svid import admit_x509_svid

if TYPE_CHECKING:
    import threading
    import weakref
    from collections.abc import Callable, Mapping

    from jitwi.clock import Clock, Instant
    from jitwi.identity.follower import Follower, Heard
    from jitwi.identity.identity import BundleSource, JwtBundle, X509Bundle
    from jitwi.identity.workload_api import RawJwtSvid, RawX509Svid, X509Update
    from jitwi.spiffe_id import SpiffeId, TrustDomain

__all__ = ["Judge", "fetch_jwt_svid"]

_log = logging.getLogger("jitwi.identity")

_DENIED = "PERMISSION_DENIED"
_SILENT = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED")
_ASK_AGAIN = 0.5
"""Seconds between two questions for a JWT-SVID identity while there is none that holds."""
_BUNDLE_WAIT = 1.0
"""Seconds to wait for the bundle that has a token's key, when the token was faster."""


class Judge:
    """State of one source, changed by one thread under the source's lock.

    Args:
        kind: In which form the identity is proven.
        chosen: The SPIFFE ID chosen, or None.
        hint: The hint chosen, or None.
        audience: Audience of a JWT-SVID identity.
        max_staleness: Seconds.
        clock: What tells the time.
        keys: Where keys that were given out are remembered, so that they can be dropped.
    """

    def __init__(
        self,
        *,
        kind: SvidKind,
        chosen: SpiffeId | None,
        hint: str | None,
        audience: str,
        max_staleness: float,
        clock: Clock,
        keys: weakref.WeakSet[LeafKey],
    ) -> None:
        self.life = Lifecycle(max_staleness=max_staleness, pinned=chosen)
        self.x509: Mapping[TrustDomain, X509Bundle] = {}
        self.jwt: Mapping[TrustDomain, JwtBundle] = {}
        self.refused = 0
        self.last_refusal = ""
        self._kind = kind
        self._hint = hint
        self._audience = audience
        self._clock = clock
        self._keys = keys
        self._is_jwt_bundle_known = False
        self._skipped: dict[str, tuple[str, ...]] = {}
        self._is_asking_again = False

    def end(self) -> None:
        """Drop every key that was given out, and all bundles."""
        for key in list(self._keys):
            key.drop()
        self.x509, self.jwt = {}, {}

    @property
    def skipped(self) -> tuple[str, ...]:
        """Trust domains whose bundle did not parse in the last update."""
        return tuple(sorted({name for names in self._skipped.values() for name in names}))

    def due(self) -> float:
        """Seconds until a JWT-SVID identity must be asked for again: at its half life, soon when there is none."""
        current = self.life.current
        if current is None or self._is_asking_again:
            return _ASK_AGAIN
        now = self._clock.now().wall
        return max(_ASK_AGAIN, (current.not_before + current.not_after) / 2 - now)

    def ask(self) -> JwtAsk | None:
        """Which JWT-SVID proves the identity, or None while nothing could verify it."""
        if not self._is_jwt_bundle_known:
            return None
        return JwtAsk(self._audience, "" if self.life.pinned is None else str(self.life.pinned))

    def hear(self, heard: Heard | None, follower: Follower) -> list[IdentityEvent]:
        """Take in one message, or None for the passing of time; returns the events it makes."""
        now = self._clock.now()
        events = [] if heard is None else self._hear(heard, follower, now)
        events += self.life.tick(now)
        if any(event.kind.value in ("withdrawn", "replaced", "expired") for event in events):
            for key in list(self._keys):
                key.drop()
        return events

    def _hear(self, heard: Heard, follower: Follower, now: Instant) -> list[IdentityEvent]:
        if heard.topic == "wake":
            return []
        if heard.topic == "probe":
            return self._probed(heard, follower, now)
        if heard.code:
            return self._lost(heard, follower, now)
        if heard.topic == "jwt":
            ask, svids = heard.update
            return self._jwt_identity(ask, svids, now)
        if heard.topic == "x509":
            return self.life.touch("probe", now) + self._x509_context(heard.update, now)
        return self._bundles(heard, follower, now)

    def _probed(self, heard: Heard, follower: Follower, now: Instant) -> list[IdentityEvent]:
        if heard.code in _SILENT:
            return self.life.lose("probe", now, reason="the agent does not answer", grpc_code=heard.code)
        if heard.code == _DENIED:
            follower.reopen("x509")  # the stream decides, and it decides now
        return self.life.touch("probe", now)

    def _lost(self, heard: Heard, follower: Follower, now: Instant) -> list[IdentityEvent]:
        """A stream or fetch ended. Source: Workload API §5.2.1, §6.2.2."""
        reason = heard.details or "the stream ended"
        events: list[IdentityEvent] = []
        if heard.code == _DENIED:
            if heard.topic != "x509-bundles" and (heard.topic != "jwt-bundles" or self._kind is SvidKind.JWT):
                events += self.life.end(SourceState.WITHDRAWN, now, reason=reason, grpc_code=heard.code)
            return events + self._forget(heard.topic)
        if heard.topic == "jwt":
            return self.life.lose("probe", now, reason=reason, grpc_code=heard.code)
        if heard.topic == ("jwt-bundles" if self._kind is SvidKind.JWT else "x509"):
            events += self.life.lose("stream", now, reason=reason, grpc_code="" if heard.code == "OK" else heard.code)
            if self._kind is SvidKind.JWT:
                follower.nudge()
        return events

    def _forget(self, topic: str) -> list[IdentityEvent]:
        """What the agent denies is not used any more. Source: Workload API §5.2.2, §6.2.2."""
        if topic in ("x509", "x509-bundles"):
            return self._set_bundles(x509={})
        if topic != "jwt-bundles":
            return []
        self._is_jwt_bundle_known = False
        return self._set_bundles(jwt={})

    # X.509 -----------------------------------------------------------------------------------------------------

    def _x509_context(self, update: X509Update, now: Instant) -> list[IdentityEvent]:
        current = self.life.current
        try:
            choice = choose(
                update.svids,
                pinned=self.life.pinned,
                hint=self._hint,
                kept_hint=current.hint if current is not None else "",
            )
            bundles, skipped = x509_update_bundles(update, choice.svid)
        except InvalidSvidError as exc:
            return self._refuse(exc.message, now)
        try:
            identity = None if choice.svid is None else self._admit(choice.svid, bundles, now)
        except InvalidSvidError as exc:
            # An authority that was removed is untrusted at once, also where our own SVID still rests on it; what is
            # new in an update that was refused is not trusted.
            return self._refuse(exc.message, now) + self._set_bundles(x509=common_bundles(self.x509, bundles))
        self._skipped["x509"] = skipped
        events = self._set_bundles(x509=bundles)
        if identity is not None:
            return self.life.adopt(identity, now) + events
        if choice.is_ambiguous:
            return self.life.choose_first(choice.candidates, now) + events
        served = ", ".join(f"`{name}`" for name, _ in choice.candidates[:8])
        wanted = f"`{self.life.pinned}`" if self.life.pinned is not None else f"an SVID with the hint `{self._hint}`"
        reason = f"{wanted} is not among what the agent serves: {served}"
        return self.life.touch("stream", now) + self.life.end(SourceState.REPLACED, now, reason=reason) + events

    def _admit(self, raw: RawX509Svid, bundles: Mapping[TrustDomain, X509Bundle], now: Instant) -> Identity:
        admitted = admit_x509_svid(
            spiffe_id=raw.spiffe_id, chain=raw.chain, key=raw.key, bundles=_Fixed(bundles), now=now.wall
        )
        svid = admitted.svid
        current = self.life.current
        if current is not None and current.thumbprint == svid.thumbprint:
            return current
        key = LeafKey(admitted.key, deadline=Deadline.at_wall(svid.not_after, now=now), clock=self._clock)
        self._keys.add(key)
        return Identity(
            svid.spiffe_id,
            SvidKind.X509,
            self.life.version + 1,
            svid.not_before,
            svid.not_after,
            admitted.chain,
            svid.thumbprint,
            clean_hint(raw.hint),
            key,
        )

    def _refuse(self, reason: str, now: Instant) -> list[IdentityEvent]:
        self.refused += 1
        self.last_refusal = reason
        return self.life.refuse(reason, now)

    # JWT -------------------------------------------------------------------------------------------------------

    def _jwt_identity(self, ask: JwtAsk, svids: tuple[RawJwtSvid, ...], now: Instant) -> list[IdentityEvent]:
        events = self.life.touch("probe", now)
        if self.life.pinned is not None and ask.subject != str(self.life.pinned):
            return events  # asked before the identity was pinned
        try:
            found = {one.spiffe_id for one in svids}
            if not ask.subject and self._hint is None and len(found) > 1:
                return self.life.choose_first(tuple((one.spiffe_id, one.hint) for one in svids), now) + events
            raw = pick_jwt_svid(svids, ask.subject, self._hint)
            svid = parse_and_verify(raw.token, audience=ask.audience, bundles=_Fixed({}, self.jwt), now=now.wall)
            if str(svid.spiffe_id) != raw.spiffe_id:
                raise refusal("the field `spiffe_id` is not the JWT-SVID's subject", "sub")
        except InvalidSvidError as exc:
            self._is_asking_again = True
            return events + self._refuse(exc.message, now)
        self._is_asking_again = False
        current = self.life.current
        if current is not None and current.thumbprint == svid.thumbprint:
            return events
        start = svid.issued_at if svid.issued_at is not None else now.wall
        identity = Identity(
            svid.spiffe_id,
            SvidKind.JWT,
            self.life.version + 1,
            start,
            svid.expires_at,
            (),
            svid.thumbprint,
            clean_hint(raw.hint),
        )
        return self.life.adopt(identity, now) + events

    # Bundles ---------------------------------------------------------------------------------------------------

    def _bundles(self, heard: Heard, follower: Follower, now: Instant) -> list[IdentityEvent]:
        if heard.topic == "x509-bundles":
            x509, self._skipped["x509"] = x509_bundles(heard.update.bundles)
            return self._set_bundles(x509=x509)
        jwt, self._skipped["jwt"] = jwt_bundles(heard.update.bundles)
        self._is_jwt_bundle_known = True
        events = self._set_bundles(jwt=jwt)
        if self._kind is SvidKind.JWT:
            events = self.life.touch("stream", now) + events
            follower.nudge()
        return events

    def _set_bundles(
        self,
        *,
        x509: Mapping[TrustDomain, X509Bundle] | None = None,
        jwt: Mapping[TrustDomain, JwtBundle] | None = None,
    ) -> list[IdentityEvent]:
        is_changed = False
        if x509 is not None:
            is_changed = _digests(x509) != _digests(self.x509)
            self.x509 = x509
        if jwt is not None:
            is_changed = is_changed or _digests(jwt) != _digests(self.jwt)
            self.jwt = jwt
        if not is_changed:
            return []
        reason = f"untrusted, did not parse: {', '.join(self.skipped[:8])}" if self.skipped else ""
        return [IdentityEvent(IdentityEventKind.BUNDLES, self.life.current, reason)]


class _Fixed:
    """The bundles of one update behind the port."""

    def __init__(
        self, x509: Mapping[TrustDomain, X509Bundle], jwt: Mapping[TrustDomain, JwtBundle] | None = None
    ) -> None:
        self._x509 = x509
        self._jwt = jwt if jwt is not None else {}

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        return self._x509.get(trust_domain)

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        return self._jwt.get(trust_domain)


def _digests(bundles: Mapping[TrustDomain, X509Bundle] | Mapping[TrustDomain, JwtBundle]) -> dict[str, str]:
    return {name.name: bundle.digest for name, bundle in bundles.items()}


def pick_jwt_svid(svids: tuple[RawJwtSvid, ...], subject: str, hint: str | None) -> RawJwtSvid:
    """Return the SVID that was asked for. Source: Workload API §6.2.1.

    Args:
        svids: As the agent sent them.
        subject: The SPIFFE ID asked for, or empty.
        hint: The hint chosen, or None.

    Raises:
        InvalidSvidError: It is not there.
    """
    ours = [one for one in svids if not subject or one.spiffe_id == subject]
    if hint is not None and (not subject or any(one.hint == hint for one in ours)):
        ours = [one for one in ours if one.hint == hint]
    if not ours:
        raise refusal("the agent's answer does not have the JWT-SVID that was asked for", "sub")
    return ours[0]


def fetch_jwt_svid(
    follower: Follower,
    bundles: BundleSource,
    clock: Clock,
    spiffe_id: SpiffeId,
    audience: str,
    hint: str | None,
    changed: threading.Condition,
    left: Callable[[], float],
) -> FetchedJwtSvid:
    """Fetch a JWT-SVID and check that it is what was asked for.

    Args:
        follower: Has the channel.
        bundles: The current bundles.
        clock: What tells the time.
        spiffe_id: The subject asked for.
        audience: The audience asked for.
        hint: The hint chosen, or None.
        changed: Notified when bundles change.
        left: Seconds left.

    Raises:
        IdentityUnavailableError: No answer in time.
        IdentityWithdrawnError: The agent denied it.
        InvalidSvidError: The answer does not hold.
    """
    from jitwi.identity.workload_api import CallFailedError

    api = follower.api(timeout=left())
    if api is None:
        raise IdentityUnavailableError("the Workload API client is not open", reasons=("unavailable",))
    try:
        svids = api.jwt_svids(audience, str(spiffe_id), timeout=max(0.001, left()))
    except CallFailedError as exc:
        if exc.grpc_code == _DENIED:
            raise IdentityWithdrawnError(
                f"the agent denies a JWT-SVID to `{spiffe_id}`: {exc.details}", reasons=("withdrawn",)
            ) from exc
        raise IdentityUnavailableError(
            f"no JWT-SVID was received: {exc.details or exc.grpc_code}",
            reasons=("unavailable",),
            grpc_code=exc.grpc_code,
        ) from exc
    raw = pick_jwt_svid(svids, str(spiffe_id), hint)
    before = bundles.jwt_bundle(spiffe_id.trust_domain)
    try:
        svid = parse_and_verify(raw.token, audience=audience, bundles=bundles, now=clock.now().wall)
    except InvalidSvidError as exc:
        if not {"unknown-kid", "untrusted-domain"} & set(exc.reasons):
            raise
        with changed:
            changed.wait_for(
                lambda: bundles.jwt_bundle(spiffe_id.trust_domain) is not before, min(_BUNDLE_WAIT, left())
            )
        svid = parse_and_verify(raw.token, audience=audience, bundles=bundles, now=clock.now().wall)
    if svid.spiffe_id != spiffe_id or raw.spiffe_id != str(spiffe_id):
        raise refusal("the agent gave the JWT-SVID of another identity", "sub")
    bundle = bundles.jwt_bundle(spiffe_id.trust_domain)
    return FetchedJwtSvid(raw.token, svid, clean_hint(raw.hint), bundle.digest if bundle is not None else "")
