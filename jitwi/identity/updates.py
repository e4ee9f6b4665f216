# SPDX-License-Identifier: Apache-2.0
"""From raw updates of the Workload API to bundles and a choice; the rules of which SVID and which bundle.

Holds functions without state. Does not hold the life cycle or any I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs
from cryptography.hazmat.primitives.serialization import Encoding

from jitwi.errors import InvalidSpiffeIdError, InvalidSvidError
from jitwi.identity.bundle import parse_jwks, parse_x509_bundle, x509_bundle
from jitwi.identity.strict import refusal
from jitwi.spiffe_id import SpiffeId, TrustDomain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jitwi.identity.identity import JwtBundle, X509Bundle
    from jitwi.identity.workload_api import RawX509Svid, X509Update

__all__ = ["Choice", "choose", "clean_hint", "common_bundles", "jwt_bundles", "x509_bundles", "x509_update_bundles"]

MAX_SVIDS = 256
MAX_HINT_BYTES = 1024
"""Source: Workload API §8."""

_Bundle = TypeVar("_Bundle")


@attrs.frozen(repr=False)
class Choice:
    """Outcome of choosing.

    Args:
        svid: The one, or None.
        candidates: What is served, as `(SPIFFE ID, hint)` in the agent's order.
        is_ambiguous: True if several identities are served and none was chosen.
    """

    svid: RawX509Svid | None
    candidates: tuple[tuple[str, str], ...]
    is_ambiguous: bool = False


def choose(svids: Sequence[RawX509Svid], *, pinned: SpiffeId | None, hint: str | None, kept_hint: str = "") -> Choice:
    """Choose one SVID: the pinned ID, else the hint, else the only identity there is.

    Args:
        svids: As the agent sent them.
        pinned: The SPIFFE ID chosen or pinned.
        hint: The hint chosen, or None. The same hint twice means the first.
        kept_hint: Hint of the SVID in use: of two with the pinned ID, the one with this hint is taken.

    Raises:
        InvalidSvidError: There is none, or more than can be meant. Source: Workload API §4.5, §5.2.1, §8.
    """
    if not svids:
        raise refusal("the update has no SVID", "no-svid")
    if len(svids) > MAX_SVIDS:
        raise refusal(f"the update has more than {MAX_SVIDS} SVIDs", "too-many-svids")
    candidates = tuple((_shown(one.spiffe_id), _shown(one.hint)) for one in svids)
    if pinned is not None:
        matching = [one for one in svids if one.spiffe_id == str(pinned)]
        wanted = hint or kept_hint
        matching.sort(key=lambda one: one.hint != wanted)
        return Choice(matching[0] if matching else None, candidates)
    if hint is not None:
        hinted = [one for one in svids if one.hint == hint and len(one.hint.encode()) <= MAX_HINT_BYTES]
        return Choice(hinted[0] if hinted else None, candidates)
    if len({one.spiffe_id for one in svids}) > 1:
        return Choice(None, candidates, is_ambiguous=True)
    return Choice(svids[0], candidates)


def clean_hint(hint: str) -> str:
    """Return a hint fit for the record, or an empty text for one that is too long or not printable."""
    return hint if hint.isprintable() and len(hint.encode()) <= MAX_HINT_BYTES else ""


def _shown(text: str) -> str:
    return text if text.isascii() and text.isprintable() and len(text) <= MAX_HINT_BYTES else ascii(text)[:80]


def trust_domain_of(key: str) -> TrustDomain:
    """Parse the key of a bundle map: the ID of a trust domain, or its bare name.

    Raises:
        InvalidSpiffeIdError: It is neither.
    """
    return TrustDomain.parse(key)


def _parse(
    bundles: Mapping[str, bytes], parse: Callable[[TrustDomain, bytes], _Bundle]
) -> tuple[dict[TrustDomain, _Bundle], tuple[str, ...]]:
    found: dict[TrustDomain, _Bundle] = {}
    skipped: list[str] = []
    for name, data in bundles.items():
        try:
            trust_domain = trust_domain_of(name)
            found[trust_domain] = parse(trust_domain, data)
        except (InvalidSvidError, InvalidSpiffeIdError):
            skipped.append(_shown(name))
    return found, tuple(sorted(skipped))


def x509_bundles(bundles: Mapping[str, bytes]) -> tuple[dict[TrustDomain, X509Bundle], tuple[str, ...]]:
    """Parse X.509 bundles; one that does not parse is skipped and named: its domain is untrusted."""
    return _parse(bundles, parse_x509_bundle)


def jwt_bundles(bundles: Mapping[str, bytes]) -> tuple[dict[TrustDomain, JwtBundle], tuple[str, ...]]:
    """Parse JWT bundles; one that does not parse is skipped and named: its domain is untrusted."""
    return _parse(bundles, parse_jwks)


def common_bundles(
    ours: Mapping[TrustDomain, X509Bundle], theirs: Mapping[TrustDomain, X509Bundle]
) -> dict[TrustDomain, X509Bundle]:
    """Return `ours` with the authorities that are in `theirs` too; a domain that has none left is untrusted."""
    found: dict[TrustDomain, X509Bundle] = {}
    for trust_domain, bundle in ours.items():
        if trust_domain not in theirs:
            continue
        kept = [one for one in bundle.authorities if one in theirs[trust_domain].authorities]
        if len(kept) == len(bundle.authorities):
            found[trust_domain] = bundle
        elif kept:
            found[trust_domain] = x509_bundle(trust_domain, [one.public_bytes(Encoding.DER) for one in kept])
    return found


def x509_update_bundles(
    update: X509Update, chosen: RawX509Svid | None
) -> tuple[dict[TrustDomain, X509Bundle], tuple[str, ...]]:
    """Parse the bundles of an X.509 context: the chosen SVID's, other SVIDs', the federated ones.

    An SVID's own bundle comes before a federated one of the same name, the chosen SVID's before all.

    Raises:
        InvalidSvidError: The chosen SVID's bundle is missing or does not parse. Source: Workload API §4.5.
    """
    found, skipped = x509_bundles(update.federated)
    missing = list(skipped)
    own: set[TrustDomain] = set()
    for one in sorted(update.svids, key=lambda svid: svid is not chosen):
        try:
            trust_domain = SpiffeId.parse(one.spiffe_id).trust_domain
            if trust_domain in own:
                continue
            found.pop(trust_domain, None)
            found[trust_domain] = parse_x509_bundle(trust_domain, one.bundle)
            own.add(trust_domain)
        except (InvalidSvidError, InvalidSpiffeIdError) as exc:
            if one is chosen:
                raise refusal(f"the update does not hold: {exc.message}", *exc.reasons, "bundle") from exc
            missing.append(_shown(one.spiffe_id))
    return found, tuple(sorted(missing))
