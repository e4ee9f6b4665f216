# SPDX-License-Identifier: Apache-2.0
"""What a live grant keeps of its record."""

from __future__ import annotations

import tracemalloc

from jitwi.audit.encode import Encoder
from jitwi.audit.events import GrantLeaked


def test_a_subject_keeps_its_own_bytes_only(make_subject):
    """The fragment that every live grant keeps is as large as its text, not as a buffer of the JSON library."""
    encoder, count = Encoder(), 100
    whos = [make_subject() for _ in range(count)]
    encoder.encode(GrantLeaked(make_subject(), "x"))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for who in whos:
        encoder.encode(GrantLeaked(who, "x"))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / count < len(whos[0].encoded) + 256
