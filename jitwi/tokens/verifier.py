# SPDX-License-Identifier: Apache-2.0
"""Verifying task tokens again and again, without verifying the same bytes twice.

Holds `TaskTokenVerifier` with its two bounded memories: of chains and of whole tokens. What is remembered is bound to
the bundle that it was verified against, so that a removed authority counts at once, and to the earliest end of
anything that it rested on. Only what was verified is remembered; a refusal never is.
"""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from jitwi.errors import ConfigurationError
from jitwi.tokens import names
from jitwi.tokens.task_token import (
    ParsedTaskToken,
    VerifiedTaskToken,
    parse_task_token,
    verify_chain,
    verify_claims,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from jitwi.identity import BundleSource, X509Bundle
    from jitwi.identity.x509_svid import VerifiedX509Svid
    from jitwi.spiffe_id import TrustDomain

__all__ = ["TaskTokenVerifier"]

_T = TypeVar("_T")
_DEFAULT_MAX_TTL = timedelta(hours=1)
_DEFAULT_CACHE_SIZE = 1024
_MAX_CHAINS = 1024


@attrs.define(slots=True, eq=False)
class _Remembered(Generic[_T]):
    value: _T
    trust_domain: TrustDomain
    bundle_digest: str
    valid_from: float
    valid_until: float


class _Memory(Generic[_T]):
    """A bounded map from bytes to what was verified; the oldest leaves first."""

    __slots__ = ("_entries", "_locks", "_size")

    def __init__(self, size: int) -> None:
        self._entries: dict[Hashable, _Remembered[_T]] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._size = size

    def get(self, key: Hashable, bundles: BundleSource, now: float) -> _Remembered[_T] | None:
        """Return what is remembered, if it holds now and under the bundle of now."""
        entry = self._entries.get(key)
        if entry is None or not entry.valid_from <= now < entry.valid_until:
            return None
        bundle = bundles.x509_bundle(entry.trust_domain)
        return entry if bundle is not None and bundle.digest == entry.bundle_digest else None

    def put(self, key: Hashable, entry: _Remembered[_T]) -> _Remembered[_T]:
        """Remember; forget the oldest beyond the size."""
        # A lock per process: the parent's may have been held by a thread that is not in the forked child.
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            self._entries.pop(key, None)
            self._entries[key] = entry
            while len(self._entries) > self._size:
                del self._entries[next(iter(self._entries))]
        return entry

    def __len__(self) -> int:
        return len(self._entries)


class TaskTokenVerifier:
    """Verify task tokens for one audience against the current bundles. Thread-safe; no I/O of its own.

    Args:
        audience: Who we are; compared exactly.
        bundles: The current bundles, each of its own trust domain.
        max_ttl: The longest life of a token that is accepted, whatever its task says.
        cache_size: How many verified tokens are remembered, at most; 0 = none.

    Raises:
        ConfigurationError: An empty audience, or a bound that is not positive.
    """

    __slots__ = ("_bundles", "_chains", "_tokens", "audience", "max_ttl")

    def __init__(
        self,
        audience: str,
        bundles: BundleSource,
        *,
        max_ttl: timedelta = _DEFAULT_MAX_TTL,
        cache_size: int = _DEFAULT_CACHE_SIZE,
    ) -> None:
        if not isinstance(audience, str) or not audience:
            raise ConfigurationError("a verifier needs one audience, as text", reasons=("audience",))
        if max_ttl <= timedelta(0) or cache_size < 0:
            raise ConfigurationError("`max_ttl` must be positive and `cache_size` not negative", reasons=("bounds",))
        self.audience = audience
        self.max_ttl = max_ttl
        self._bundles = bundles
        self._tokens: _Memory[VerifiedTaskToken] = _Memory(cache_size)
        self._chains: _Memory[VerifiedX509Svid] = _Memory(min(cache_size, _MAX_CHAINS))

    def verify(self, text: str, *, now: float) -> VerifiedTaskToken:
        """Verify a token; see `docs/wire-profile.md` for the numbered steps.

        Args:
            text: What stood behind `Authorization: DPoP`.
            now: Seconds since the epoch.

        Returns:
            What it says. Its holder is authenticated by `verify_proof`, not by this.

        Raises:
            TokenError: The class says which step.
        """
        # Kept by its own text, which is worth nothing without the task key: a SHA-256 would cost more than the rest.
        if isinstance(text, str) and len(text) <= names.MAX_TOKEN_CHARS:
            known = self._tokens.get(text, self._bundles, now)
            if known is not None:
                return known.value
        parsed = parse_task_token(text)
        chain = self._chain(parsed, now=now)
        token = verify_claims(parsed, chain.value, audience=self.audience, now=now, max_ttl=self.max_ttl)
        since = max(max(token.issued_at, token.not_before) - names.NOT_BEFORE_LEEWAY_SECONDS, chain.valid_from)
        until = min(token.expires_at, chain.valid_until)
        self._tokens.put(text, _Remembered(token, chain.trust_domain, chain.bundle_digest, since, until))
        return token

    def _chain(self, parsed: ParsedTaskToken, *, now: float) -> _Remembered[VerifiedX509Svid]:
        known = self._chains.get(parsed.chain, self._bundles, now)
        if known is not None and known.trust_domain == parsed.issuer.trust_domain:
            return known
        bundle = self._bundles.x509_bundle(parsed.issuer.trust_domain)
        leaf = verify_chain(parsed, bundle, now=now)
        digest = bundle.digest if bundle is not None else ""
        until = min([leaf.not_after, *_authority_ends(bundle, now=now)])
        return self._chains.put(
            parsed.chain, _Remembered(leaf, leaf.spiffe_id.trust_domain, digest, leaf.not_before, until)
        )

    def __repr__(self) -> str:
        """For whom, and how much is remembered."""
        return f"<TaskTokenVerifier {self.audience}, {len(self._tokens)} tokens>"


def _authority_ends(bundle: X509Bundle | None, *, now: float) -> list[float]:
    """When an authority ends on which a chain may rest; `not_after` of the chain covers the rest of it."""
    ends = [c.not_valid_after_utc.timestamp() for c in bundle.authorities] if bundle is not None else []
    return [end for end in ends if end > now]
