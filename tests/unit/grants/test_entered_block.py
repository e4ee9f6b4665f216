# SPDX-License-Identifier: Apache-2.0
"""What a block keeps once it is entered: nothing of the declaration, and every rule about its use."""

import pytest

from jitwi.errors import StateError
from jitwi.grants import EndCause


def test_an_entered_block_is_no_decorator(jit, shop):
    """A block that is entered, or was, cannot be used for functions any more."""
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    with block:
        with pytest.raises(StateError):
            block(lambda: None)
    with pytest.raises(StateError):
        block(lambda: None)


def test_a_decorator_serves_again_and_again(jit, shop):
    """What a decorator declares outlives each of its calls."""
    seen = []

    @jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    def work(grant):
        grant.check("read", shop.order)
        seen.append(grant)

    work()
    work()
    assert len({grant.id for grant in seen}) == 2
    assert [grant.ending.cause for grant in seen] == [EndCause.BLOCK_ENDED] * 2


def test_an_entered_block_forgets_its_declaration(jit, shop):
    """The grant has what was allowed; ten thousand live blocks do not keep it a second time."""
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    with block as grant:
        assert block._declaration is None
        assert block._task is None
        assert grant.declaration.permissions[0].resource == shop.order


def test_a_grant_without_credentials_still_tells_its_ending(make_jit, shop):
    """The exit asks what is pending only where there are credentials; `on_ending` and `ending` are told anyway."""
    told = []
    jit, _ = make_jit(on_ending=lambda grant, ending: told.append((grant.id, ending.cause)))
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        pass
    assert told == [(grant.id, EndCause.BLOCK_ENDED)]
    assert grant.ending.credentials == ()
    assert not grant.ending.is_pending
