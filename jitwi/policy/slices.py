# SPDX-License-Identifier: Apache-2.0
"""Handles of the policies that one request can concern, kept while their snapshot lives.

Holds two bounded caches: request to slice, and candidates to slice. Does not decide which policies are candidates
(`slice.py`) and does not ask the engine a question (`engine.py`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from jitwi.policy import engine
from jitwi.policy.slice import request_keys

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from jitwi.policy.loaded import Loaded
    from jitwi.policy.slice import ScopeIndex, Uid
    from jitwi.task import Entity

__all__ = ["PolicySlice", "PolicySlices"]

MAX_TRIPLES = 4_096
"""Requests remembered in one generation; two generations are kept."""
MAX_SLICED = 16_384
"""Policies in the handles of one generation, 3 to 4 KB each; one more is counted for each handle."""
MAX_SLICE = 4_096
"""Policies of one slice; a request with more candidates evaluates the whole set."""
_ENGINE_ID = re.compile(r"`policy([0-9]+)`")


class Holder(Protocol):
    """Entities of one request, as the engine holds them."""

    @property
    def digest(self) -> str:
        """Digest of the records that they were built from."""
        ...

    @property
    def principal(self) -> Mapping[str, str]:
        """The principal's type and id."""
        ...

    def ancestors(self, uid: Uid) -> Collection[Uid]:
        """Return what `uid` is in."""
        ...


class PolicySlice:
    """Some policies of a set, or all, and what their ids are outside of the engine.

    Args:
        handle: Handle; the engine's ids are `policy0`, `policy1`, ...
        ids: Ids of these policies in the same order.
        candidates: Their positions in the whole set; empty for the whole set itself.
    """

    __slots__ = ("candidates", "handle", "ids")

    def __init__(self, handle: engine.PoliciesHandle, ids: tuple[str, ...], candidates: tuple[int, ...] = ()) -> None:
        self.handle = handle
        self.ids = ids
        self.candidates = candidates

    def named(self, determining: Collection[str], annotated: Mapping[str, str]) -> tuple[str, ...]:
        """Return the ids of policies that the engine named.

        Args:
            determining: The engine's ids.
            annotated: The engine's id -> `@id`.
        """
        return tuple(sorted([annotated.get(each) or self._id(each) for each in determining]))

    def told(self, error: str) -> str:
        """Return an error of the engine with the id of its policy."""
        return _ENGINE_ID.sub(lambda found: f"`{self._id(found[0][1:-1])}`", error, count=1)

    def _id(self, name: str) -> str:
        number = name.removeprefix("policy")
        return self.ids[int(number)] if number.isdecimal() and int(number) < len(self.ids) else name


class _Generation:
    """What was asked for since the last turn."""

    __slots__ = ("slices", "triples", "weight")

    def __init__(self) -> None:
        self.triples: dict[tuple[str, ...], PolicySlice] = {}
        self.slices: dict[tuple[int, ...], PolicySlice] = {}
        self.weight = 0


class PolicySlices:
    """Slices of one set, made when they are first needed.

    Args:
        loaded: The set.
        index: Its index.
        whole: All of its policies.
    """

    # Two generations and no lock: a lock would outlive a fork, and losing an entry costs one rebuild.
    __slots__ = ("_index", "_newer", "_older", "_texts", "_unsliced", "_whole")

    def __init__(self, loaded: Loaded, index: ScopeIndex, whole: PolicySlice) -> None:
        self._index = index
        self._texts = loaded.texts
        self._unsliced = loaded.unsliced
        self._whole = whole
        self._newer = _Generation()
        self._older = _Generation()

    def choose(self, entities: Holder, action: Entity, resource: Entity) -> PolicySlice:
        """Return policies that hold all whose scope is true of a request.

        Args:
            entities: The handle that the request will be evaluated with, and its principal.
            action: The action's uid.
            resource: The resource's uid.
        """
        # The digest stands for all ancestors: the same resource may have others under another handle.
        key = (entities.digest, entities.principal["id"], action.type, action.id, resource.type, resource.id)
        found = self._newer.triples.get(key)
        if found is None:
            found = self._older.triples.get(key) or self._find(entities, action, resource)
            self._keep(key, found)
        return found

    def _find(self, entities: Holder, action: Entity, resource: Entity) -> PolicySlice:
        principal = entities.principal
        uids = ((principal["type"], principal["id"]), (action.type, action.id), (resource.type, resource.id))
        try:
            candidates = self._index.candidates(*(request_keys(uid, entities.ancestors(uid)) for uid in uids))
            if len(candidates) > min(MAX_SLICE, len(self._texts) // 2) or not self._unsliced.isdisjoint(candidates):
                return self._whole
            return self._newer.slices.get(candidates) or self._older.slices.get(candidates) or self._make(candidates)
        except engine.EngineError:
            return self._whole

    def _make(self, candidates: tuple[int, ...]) -> PolicySlice:
        handle = engine.parse_slice([self._texts[each] for each in candidates])
        return PolicySlice(handle, tuple(self._whole.ids[each] for each in candidates), candidates)

    def _keep(self, key: tuple[str, ...], found: PolicySlice) -> None:
        newer = self._newer
        if len(newer.triples) >= MAX_TRIPLES or newer.weight >= MAX_SLICED:
            self._older, self._newer = newer, _Generation()
            newer = self._newer
        if found is not self._whole and found.candidates not in newer.slices:
            newer.slices[found.candidates] = found
            newer.weight += 1 + len(found.candidates)
        newer.triples[key] = found
