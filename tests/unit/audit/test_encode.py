# SPDX-License-Identifier: Apache-2.0
"""A record is one ASCII line whatever is in it, and reads back as what it was."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import logging
import types

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.audit import LoggingSink, Subject, encode, events, input_digest, read
from jitwi.audit.chain import GENESIS, MAX_LINE, link, parse_line
from jitwi.audit.encode import MAX_BODY, MAX_INPUT, Encoder
from jitwi.cli.audit import audit
from jitwi.errors import ConfigurationError
from jitwi.secret import Secret
from jitwi.task import Entity
from jitwi.testing.audit import RecordingSink

AT = b"2026-01-01T00:00:00.000000Z"
UNSAFE = [
    *(
        "\x00",
        "\x01",
        "\x07",
        "\x08",
        "\t",
        "\n",
        "\x0b",
        "\x0c",
        "\r",
        "\x1b",
        "\x1b[2J",
        "\x1b]0;x\x07",
        "\x7f",
        "\x80",
    ),
    *("\x85", "\x9b31m", "\xa0", "\xad", "\u061c", "\u200b", "\u200d", "\u200e", "\u200f", "\u2028", "\u2029"),
    *("\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069", "\ufeff", "\ufff9"),
    *("\ufffe", "\uffff", "\U000e0001", "\U000e0041", "\U0001f600", "\ud800", "\udfff", "\udc80", "\ud83d", "e\u0301"),
]
FORGING = [
    '"',
    '","hash":"' + "0" * 64 + '"}',
    "\\",
    '\\"',
    '\n{"seq":1,"prev":"x"}',
    '"}\n{"seq":0,"prev":"' + "0" * 64 + '","at":"x","kind":"use.allowed"}\n',
    "\\u0022,\\u0022",
    "',DROP TABLE--",
    "%s%n%d{}{0}",
    "[bold red]x[/]",
    "__entity",
    '{"__extn":{"fn":"ip","arg":"x"}}',
    "</script>",
    "$(reboot)`reboot`",
    "",
]
PAYLOADS = [*UNSAFE, *FORGING]


def members(body):
    """Read an encoded event strictly."""
    return json.loads(b"{" + body + b"}")


def plain(value):
    """Return an event as JSON would read it back."""
    return json.loads(json.dumps(attrs.asdict(value, filter=lambda field, _: field.name != "encoded")))


def test_every_kind_of_event_is_in_the_table(events_of_every_kind):
    """The events of these tests are all the events there are."""
    assert {type(event) for event in events_of_every_kind} == set(events.Event.__subclasses__())
    assert len({kind.kind for kind in events.Event.__subclasses__()}) == len(events.Event.__subclasses__())


def test_every_kind_round_trips(events_of_every_kind):
    """Each field of each event is in the record under its own name."""
    for event in events_of_every_kind:
        assert members(Encoder().encode(event)) == {"kind": event.kind, **plain(event)}


def test_hot_path_names_the_fields_of_a_decision(make_decision):
    """The decision's fields that are spelt out in the encoder are those of the class."""
    made = make_decision()
    names = [field.name for field in attrs.fields(type(made))]
    assert encode._fields_of(made) == {name: getattr(made, name) for name in names}


def test_subject_is_encoded_once(make_subject):
    """The subject's fragment is made at the first event and kept."""
    who = make_subject()
    encoder = Encoder()
    first = encoder.encode(events.GrantLeaked(who, "x"))
    assert who.encoded is not None
    assert who.encoded in first
    who.task = "changed later"
    assert who.encoded in encoder.encode(events.GrantLeaked(who, "y"))


def test_there_are_sixty_payloads():
    """Bar 35 asks for sixty."""
    assert len(PAYLOADS) >= 60


@pytest.fixture
def hostile(make_decision):
    """A maker of one event with a payload in every place that a caller or a backend can reach."""

    def make(payload):
        who = Subject("txn-1", "grant-1", payload, payload, payload, payload, payload, payload, payload)
        made = make_decision(
            resource=payload, errors=(payload,), policy_ids=(payload,), context=payload, input={payload: [payload]}
        )
        return events.UseDenied(who, payload, payload, payload, payload, made)

    return make


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_payload_stays_in_its_field(hostile, payload):
    """A payload reads back as itself, in its field, on one line of visible ASCII (bar 35)."""
    body = Encoder().encode(hostile(payload))
    line, _ = link(0, GENESIS, AT, body)
    text = line[:-1].decode("ascii")
    assert text.isprintable()
    record = parse_line(line).record
    assert record["detail"] == record["decision"]["context"] == record["subject"]["task"] == payload
    assert record["decision"]["input"] == {payload: [payload]}
    assert list(record)[:5] == ["seq", "prev", "at", "kind", "subject"]
    assert record["kind"] == "use.denied"


def test_payloads_in_every_sink(folder, open_log, hostile, caplog):
    """One event is one line in the file, the log, memory and on the console; nothing is added or lost (bar 35)."""
    memory = RecordingSink()
    logger = logging.getLogger("test.audit.payloads")
    log = open_log(sinks=[memory, LoggingSink(logger)])
    with caplog.at_level(logging.INFO, logger=logger.name):
        for number, payload in enumerate(PAYLOADS):
            log.record(hostile(payload), durable=number % 7 == 0)
        log.flush()
    log.close()
    in_file = [record for record in read(folder) if not record["kind"].startswith("chain.")]
    in_log = [json.loads(record.getMessage()) for record in caplog.records if record.name == logger.name]
    assert [record["detail"] for record in in_file] == PAYLOADS
    assert [record for record in in_log if not record["kind"].startswith("chain.")] == in_file
    assert [record for record in memory.records if not record["kind"].startswith("chain.")] == in_file
    assert all(record.getMessage().isprintable() for record in caplog.records if record.name == logger.name)
    shown = CliRunner().invoke(audit, ["show", str(folder)])
    assert shown.exit_code == 0
    assert all(line.isprintable() for line in shown.output.split("\n"))
    assert shown.output.count("use.denied") == len(PAYLOADS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(), max_size=8), json_values, max_size=5), st.text(st.characters()))
@settings(max_examples=200, deadline=None)
def test_any_json_input_round_trips(value, text):
    """Whatever JSON the caller gives as input, and whatever text a field has, reads back the same."""
    made = events.DecisionRecord("use", text, text, text, True, "allow", input=value)
    body = Encoder().encode(events.UseAllowed(None, text, 1, made))
    line, digest = link(7, GENESIS, AT, body)
    parsed = parse_line(line)
    assert parsed.digest == digest.decode()
    assert parsed.record["decision"]["input"] == value
    assert parsed.record["lease_id"] == text


class _Colour(enum.Enum):
    RED = "red"


class _Loud:
    def __repr__(self):
        return "canary"

    __str__ = __repr__


@dataclasses.dataclass
class _Data:
    password: str = "canary"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (1.5, 1.5),
        (2**64, 2**64),
        (-(2**200), -(2**200)),
        (2**20000, "<int of 20001 bits>"),
        (_Colour.RED, "red"),
        (_Loud(), "<_Loud>"),
        (_Data(), "<_Data>"),
        (Secret("canary"), "<Secret>"),
        (b"canary", "<bytes>"),
        (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "<datetime>"),
        ({1, 2}, [1, 2]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        ({1: "x", "1": "y"}, [[1, "x"], ["1", "y"]]),
        (Entity("Shop::Order", "42"), 'Shop::Order::"42"'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_does_not_know(make_decision, value, expected):
    """A value of another type is written without loss where JSON can, else by its type's name, never by its repr."""
    body = Encoder().encode(events.UseAllowed(None, "x", 1, make_decision(input={"v": value})))
    assert b"canary" not in body
    assert parse_line(link(0, GENESIS, AT, body)[0]).record["decision"]["input"] == {"v": expected}


def test_deep_input_is_bounded(make_decision):
    """An input of any depth is recorded without exhausting the stack."""
    value: dict[str, object] = {}
    for _ in range(5000):
        value = {"a": value}
    body = Encoder().encode(
        events.UseDenied(None, "x", "policy-evaluation", "bad-input", "", make_decision(input=value))
    )
    assert b"<too deep>" in body


@pytest.mark.parametrize("size", [MAX_INPUT, MAX_BODY, 4 * 1024 * 1024])
def test_large_values_are_cut(make_subject, make_decision, size):
    """No event makes a line longer than a reader accepts; what is left says how much it was."""
    large = "\u2028" * size
    who = make_subject(task=large)
    event = events.UseDenied(who, large, large, large, large, make_decision(input={large: large}, context=large))
    line, _ = link(10**17, GENESIS, AT, Encoder().encode(event))
    assert len(line) < MAX_LINE
    record = parse_line(line).record
    assert record["oversize"] > size
    assert record["kind"] == "use.denied"
    assert record["subject"]["txn"] == "txn-1"


def test_large_input_is_a_digest(make_decision):
    """An input over its bound is recorded as size and SHA-256, the rest of the decision in full."""
    body = Encoder().encode(events.UseAllowed(None, "x", 1, make_decision(input={"a": "b" * MAX_INPUT})))
    record = members(body)
    assert record["decision"]["input"]["omitted"] == MAX_INPUT + len('{"a":""}')
    assert record["decision"]["reason"] == "allow"


def test_input_as_keyed_digest(make_decision):
    """With `digest`, the input's text is not in the record, and the same input gives the same digest under one key."""
    key = b"k" * 32
    encoder = Encoder("digest", Secret(key, kind="digest key"))
    one = encoder.encode(events.UseAllowed(None, "x", 1, make_decision(input={"name": "canary", "b": 1})))
    two = Encoder("digest", key).encode(
        events.UseAllowed(None, "x", 1, make_decision(input={"b": 1, "name": "canary"}))
    )
    assert one == two
    assert b"canary" not in one
    assert members(one)["decision"]["input"] == {"hmac-sha256": input_digest(key, {"b": 1, "name": "canary"})}


@pytest.mark.parametrize(("mode", "key"), [("digest", None), ("digest", b"short"), ("none", None)])
def test_settings_that_are_refused(mode, key):
    """A digest without a good key, and an unknown mode, are configuration errors."""
    with pytest.raises(ConfigurationError):
        Encoder(mode, key)
