# SPDX-License-Identifier: Apache-2.0
"""JwtSvid: an honest plan for a bearer token, and a handle that checks on the only side that does."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta

import pytest

from jitwi.credentials import LeaseRef, ProbeResult, Services, Strength, Wider
from jitwi.errors import (
    AccessDeniedError,
    ConfigurationError,
    IdentityWithdrawnError,
    IssuanceError,
    OutOfScopeError,
    StateError,
)
from jitwi.identity import JwtSvid as Svid
from jitwi.issuers import JwtSvid
from jitwi.secret import Secret
from jitwi.spiffe_id import SpiffeId

AUDIENCE = "https://legacy.example.org"
TOKEN = "ey.canary.token"


class Agent:
    """A source that gives one JWT-SVID, or what a test wants."""

    def __init__(self, desk, *, ttl: float = 300.0, audience: str = AUDIENCE, who: str | None = None) -> None:
        self.desk, self.ttl, self.audience, self.who = desk, ttl, audience, who
        self.calls: list[tuple] = []
        self.error: Exception | None = None

    def jwt_svid(self, audience: str, *, fresh: bool = False, timeout: float = 2.0) -> Svid:
        """Give it."""
        self.calls.append((audience, timeout))
        if self.error is not None:
            raise self.error
        who = SpiffeId.parse(self.who) if self.who else self.desk.source.current.spiffe_id
        self.token = Secret(TOKEN, kind="jwt-svid")
        now = self.desk.clock.wall
        return Svid(who, self.audience, now, now + self.ttl, self.token)


def issuer_of(desk, **options):
    """A started issuer and its agent."""
    agent = Agent(desk, **{k: options.pop(k) for k in ("ttl", "who") if k in options})
    agent.audience = options.pop("answers", AUDIENCE)
    issuer = JwtSvid(AUDIENCE, **options)
    issuer.start(Services(agent, desk.clock))
    return issuer, agent


def test_plan_is_honest(desk) -> None:
    """Bearer, EXPIRES_ONLY, wider in everything that the audience does not see, with a reason for each."""
    issuer, agent = issuer_of(desk)
    plan = issuer.plan(desk.order())
    assert plan.kind == "jwt-svid-bearer"
    assert plan.is_bearer
    assert not plan.is_revocable
    assert not plan.is_exact
    assert plan.strength is Strength.EXPIRES_ONLY
    assert plan.wider == frozenset(Wider)
    assert plan.expires_at == desk.NOW + 300
    assert all(any(why.startswith(w.value) for why in plan.why) for w in plan.wider)
    assert agent.calls == []


def test_plan_within_the_task(desk) -> None:
    """A token that cannot outlive the task is not wider in time."""
    issuer, _ = issuer_of(desk, max_ttl=timedelta(seconds=60))
    assert Wider.TIME not in issuer.plan(desk.order()).wider


def test_uses_pass_the_gate(desk) -> None:
    """Each use is checked before the token is shown, and pinned to its origin."""
    issuer, agent = issuer_of(desk)
    bearer = desk.obtain(issuer)
    assert agent.calls == [(AUDIENCE, 2.0)]
    headers = bearer.headers("GET", f"{AUDIENCE}/a", "read", desk.ORDER)
    assert headers == {"Authorization": f"Bearer {TOKEN}"}
    assert bearer.reveal("read", desk.ORDER, {"x": 1}) == TOKEN
    assert desk.gate.checks == [("read", desk.ORDER, None), ("read", desk.ORDER, {"x": 1})]
    with pytest.raises(OutOfScopeError):
        bearer.headers("GET", "https://evil.example.org/a", "read", desk.ORDER)
    desk.gate.refusal = AccessDeniedError("no")
    with pytest.raises(AccessDeniedError):
        bearer.reveal("read", desk.ORDER)


def test_end(desk) -> None:
    """The end drops our copy and nobody else's; until its expiry the token is alive, and probe says so."""
    issuer, agent = issuer_of(desk)
    bearer = desk.obtain(issuer)
    lease = LeaseRef("jitwi-1", "legacy", "jwt-svid-bearer", {}, desk.NOW + 300)
    bearer.destroy()
    bearer.destroy()
    issuer.end(lease)
    with pytest.raises(StateError):
        bearer.reveal("read", desk.ORDER)
    assert not agent.token.is_destroyed
    assert issuer.probe(lease) is ProbeResult.ALLOWED
    desk.clock.advance(300)
    assert issuer.probe(lease) is ProbeResult.REFUSED
    assert JwtSvid(AUDIENCE).probe(lease) is ProbeResult.UNREACHABLE
    assert issuer.outstanding() == ()


@pytest.mark.parametrize(
    "options", [{"ttl": 301.0}, {"answers": "https://other.example.org"}, {"who": "spiffe://example.org/ns/prod/other"}]
)
def test_not_what_was_planned(desk, options: dict) -> None:
    """A longer life, another audience or another identity than planned is refused on arrival."""
    issuer, _ = issuer_of(desk, **options)
    with pytest.raises(IssuanceError):
        desk.obtain(issuer)


def test_agent_says_no(desk) -> None:
    """An identity that is gone is said as such."""
    issuer, agent = issuer_of(desk)
    agent.error = IdentityWithdrawnError("gone")
    with pytest.raises(IdentityWithdrawnError):
        desk.obtain(issuer)
    with pytest.raises(StateError):
        desk.obtain(JwtSvid(AUDIENCE))


def test_secrecy(desk) -> None:
    """Rule 10: no rendering, copy or pickle of the handle has the token."""
    issuer, _ = issuer_of(desk)
    bearer = desk.obtain(issuer)
    for thing in (bearer, issuer, bearer.auth("read", desk.ORDER)):
        assert "canary" not in f"{thing!r} {thing}"
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(StateError):
            attempt(bearer)


def test_configuration() -> None:
    """One audience, an origin, no bare text as `serves`, a positive life."""
    for bad in (
        {"audience": "legacy"},
        {"audience": AUDIENCE, "serves": "read"},
        {"audience": AUDIENCE, "max_ttl": timedelta(0)},
        {"audience": "http://legacy.example.org"},
    ):
        with pytest.raises(ConfigurationError):
            JwtSvid(**bad)
    issuer = JwtSvid(AUDIENCE, serves=["read"])
    assert (issuer.kind, issuer.is_local, issuer.serves, issuer.audience) == (
        "jwt-svid-bearer", False, frozenset({"read"}), AUDIENCE,
    )  # fmt: skip
