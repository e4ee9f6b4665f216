# SPDX-License-Identifier: Apache-2.0
"""Our ids for credentials: they say when the lease must be over.

Holds how an id is made and read. The backend carries the id, so its own listing is enough to tell which leases are
overdue, with the journal lost, and without ever taking a lease that some other journal still answers for.

Format: `jitwi-`, 8 characters for the whole second since the epoch at which it must be over (rounded up; the first of
them is `0` until the year 3058), 18 random ones (90 bits); the alphabet is Crockford's base 32 in lower case. An id is
not a secret.

Example:
    >>> from jitwi.journal.lease_id import ends_at_of, new_lease_id
    >>> ends_at_of(new_lease_id(ends_at=1_800_000_000.25))
    1800000001.0
"""

from __future__ import annotations

import math
import re
import secrets

from jitwi.errors import JournalError

__all__ = ["LEASE_ID_PREFIX", "ends_at_of", "is_lease_id", "new_lease_id"]

LEASE_ID_PREFIX = "jitwi-"

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_TIME_CHARACTERS, _RANDOM_CHARACTERS, _BITS = 8, 18, 5
_LEASE_ID = re.compile(rf"{LEASE_ID_PREFIX}0[{_ALPHABET}]{{{_TIME_CHARACTERS + _RANDOM_CHARACTERS - 1}}}", re.ASCII)


def _encode(number: int, characters: int) -> str:
    return "".join(_ALPHABET[(number >> (_BITS * place)) & 31] for place in reversed(range(characters)))


def new_lease_id(*, ends_at: float) -> str:
    """Return a new id.

    Args:
        ends_at: When the lease must be over, seconds since the epoch.

    Raises:
        JournalError: `ends_at` is not a time that fits.
    """
    if not math.isfinite(ends_at) or not 0 <= ends_at < 2 ** (_BITS * (_TIME_CHARACTERS - 1)) - 1:
        raise JournalError(f"`{ends_at!r}` is not a time for a lease to end", reasons=("lease-id",))
    random = secrets.randbits(_BITS * _RANDOM_CHARACTERS)
    return LEASE_ID_PREFIX + _encode(math.ceil(ends_at), _TIME_CHARACTERS) + _encode(random, _RANDOM_CHARACTERS)


def is_lease_id(text: object) -> bool:
    """Whether this is an id of ours, to the last character."""
    return isinstance(text, str) and _LEASE_ID.fullmatch(text) is not None


def ends_at_of(lease_id: str) -> float | None:
    """Return when the lease must be over, seconds since the epoch, or None if it is not an id of ours."""
    if not is_lease_id(lease_id):
        return None
    number = 0
    for character in lease_id[len(LEASE_ID_PREFIX) :][:_TIME_CHARACTERS]:
        number = (number << _BITS) | _VALUES[character]
    return float(number)
