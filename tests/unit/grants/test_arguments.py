# SPDX-License-Identifier: Apache-2.0
"""The arguments of `JIT`: wrong ones are refused where they are written, and none is silently without effect."""

from datetime import timedelta

import pytest

import jitwi
from jitwi.errors import ConfigurationError
from jitwi.policy import PolicyStore
from jitwi.testing import FixedIdentity

STORE = {"policies": "permit (principal, action, resource);", "schema": "entity O;"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"identity_timeout": 5},
        {"issuer_timeout": timedelta(seconds=-1)},
        {"end_timeout": None},
        {"max_staleness": "60"},
        {"max_refused_uses": 0},
        {"max_pending_endings": True},
        {"identity": "x509"},
        {"identity_audience": "somebody"},
    ],
    ids=str,
)
def test_an_argument_out_of_bounds_is_a_configuration_error(wrong):
    """No foreign exception, and not only at the first task."""
    with pytest.raises(ConfigurationError):
        jitwi.JIT("policies", **wrong)


@pytest.mark.parametrize("name", ["spiffe_id", "hint", "endpoint", "identity_audience"])
def test_a_choice_that_a_source_of_ones_own_would_ignore_is_refused(name):
    """Whoever pins a SPIFFE ID is told that nobody looks at it."""
    source = FixedIdentity("spiffe://example.org/a")
    with pytest.raises(ConfigurationError, match=name):
        jitwi.JIT("policies", identity=source, **{name: "spiffe://example.org/b"})


def test_a_provider_that_a_store_of_ones_own_would_ignore_is_refused():
    """Facts about resources come from the store's own provider."""
    store = PolicyStore.from_text(**STORE)
    with pytest.raises(ConfigurationError, match="entities"):
        jitwi.JIT(store, entities=lambda _: ())


def test_overrides_win_over_what_the_file_lacks_or_cannot_make(tmp_path, monkeypatch):
    """`from_env(policies=..., issuers=...)` neither misses the file's policies nor makes its issuers."""
    file = tmp_path / "jitwi.toml"
    file.write_text('[issuers.gone]\ntype = "not-installed"\n')
    monkeypatch.setenv("JITWI_CONFIG", str(file))
    with pytest.raises(ConfigurationError, match="policies"):
        jitwi.JIT.from_env(issuers={})
    with pytest.raises(ConfigurationError, match="not-installed"):
        jitwi.JIT.from_env(policies="policies")
    assert jitwi.JIT.from_env(policies="policies", issuers={}).live_grants == ()


def test_close_goes_on_when_one_part_cannot_be_closed(make_jit):
    """The first failure is raised, after everything else was stopped."""
    jit, _ = make_jit()
    running = jit.start()._running
    thread = running.runtime.watchdog._thread

    def fail():
        raise OSError

    running._undo.append(fail)
    with pytest.raises(OSError):  # noqa: PT011 - the one above
        jit.close()
    assert not thread.is_alive()
