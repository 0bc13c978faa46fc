"""Where a parent's key is read from: the record key, a header, or an object, each JSON with or without its schema.

A record key may also be a bare scalar that is no JSON, where the rule says so (`key_format`): text cannot be told from
JSON text by looking at it, nor eight bytes from another serializer's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import assert_never

import msgspec

from integrity.core.decode.json import JsonFault, parse, parse_envelope, wrapping_of
from integrity.core.decode.record import Limits, Record, Refused
from integrity.core.decode.schema import HINTS_MAX, NO_HINTS, WHOLE, Hints, hints_of
from integrity.core.keys import GATES, Bounds, FieldHint, Gate, Key, KeyRefused, KeySpec, KeyType, Scalar
from integrity.core.rules.model import KeyFormat
from integrity.errors import Reason

_PLAIN_NAME = re.compile("[A-Za-z0-9_]+", re.ASCII)
_HEX = re.compile("(?:[0-9a-f]{4})+|(?:[0-9A-F]{4})+")
"""Text that is hexadecimal and base64 alike, of other bytes."""
_BITS = "io.debezium.data.Bits"
_whole = msgspec.json.Decoder(int).decode
_WHOLE = re.compile("0|-?[1-9][0-9]{0,18}")
_STRUCT = "Struct{"
"""How the StringConverter begins a key of several fields, or of one that was not extracted: nothing in it is quoted."""
_LONG_BYTES = 8


class KeyReader:
    """Reads the keys of one parent. Fields are found by name and pass the gate of their type; others are left alone."""

    __slots__ = ("_bounds", "_fields", "_format", "_hints", "_kind", "_limits", "_plain_key", "_wrapping")

    def __init__(self, spec: KeySpec, limits: Limits, form: KeyFormat = KeyFormat.JSON) -> None:
        self._format = form
        self._fields = tuple((name, _gate_of(kind)) for name, kind in spec.fields)
        # Most keys are one whole number, and that text can be told at sight: nothing in it is left to parse or doubt.
        [(name, kind), *others] = spec.fields
        self._kind = kind
        is_plain = form is KeyFormat.JSON and not others and kind is KeyType.INT64 and _PLAIN_NAME.fullmatch(name)
        self._plain_key = (
            re.compile(rb'\{"%b":(-?[1-9][0-9]{0,17}|0)\}' % name.encode()).fullmatch if is_plain else None
        )
        self._limits = limits
        self._bounds = Bounds(limits.key_text_max, limits.digits_max)
        # A topic's key schema is the same text in every record.
        self._hints: dict[bytes, Hints] = {}
        self._wrapping: tuple[bytes, Hints] = (b"{}", NO_HINTS)
        """What stood before the last payload, and the hints in it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The key's fields, in order."""
        return tuple(name for name, _ in self._fields)

    def of(self, record: Record) -> tuple[Key, Hints | None]:
        """The key in the record key, and what the schema around it says. Refused when there is none."""
        text = record.key
        if text is None:
            raise Refused(
                Reason.NULL_KEY,
                "The record has no key: does the table have a primary key, or message.key.columns?",
                "key",
            )
        plain_key = self._plain_key
        if plain_key is not None:
            if (plain := plain_key(text)) is not None:
                return (_whole(plain[1]),), None
            wrapping, hints = self._wrapping
            if text.startswith(wrapping) and text.endswith(b"}"):
                plain = plain_key(text[len(wrapping) : -1])
                if plain is not None:
                    return (_whole(plain[1]),), hints
        try:
            match self._format:
                case KeyFormat.JSON:
                    key, found = self.in_text(text, None, None, control_characters=False)
                    if found is not None and self._plain_key is not None and not text.startswith(self._wrapping[0]):
                        wrapping_now = wrapping_of(text, parse_envelope(text))
                        self._wrapping = self._wrapping if wrapping_now is None else (wrapping_now, found)
                    return key, found
                case KeyFormat.STRING:
                    return (self._bare_text(text),), None
                case KeyFormat.LONG:
                    return (self._bare_long(text),), None
                case _:
                    assert_never(self._format)
        except (JsonFault, KeyRefused) as fault:
            message = fault.message
            if self._format is KeyFormat.JSON and fault.reason in (Reason.BAD_JSON, Reason.SCHEMA_REGISTRY_PAYLOAD):
                message = f"{message}; for bare text, or a long, the rule says so in key_format"
            raise Refused(fault.reason, f"The record key is refused: {message}.", "key") from None

    def _bare_text(self, raw: bytes) -> Scalar:
        """The one part of a key that is its text, as a StringSerializer or StringConverter writes it."""
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise KeyRefused(Reason.BAD_ENCODING, "not UTF-8") from None
        if text.startswith(_STRUCT):
            # Text columns are not quoted in it: a value may look like the end of one field and the start of another.
            raise KeyRefused(Reason.TYPE_MISMATCH, "a whole struct as text; extract its field (ExtractField$Key)")
        value: object = text
        hint: FieldHint | None = None
        match self._kind:
            case KeyType.INT32 | KeyType.INT64 | KeyType.DATE | KeyType.TIMESTAMP:
                value = int(text) if _WHOLE.fullmatch(text) else text
            case KeyType.BOOL:
                value = {"true": True, "false": False}.get(text, text)
            case KeyType.NUMERIC:
                hint = FieldHint("string")
            case KeyType.STRING | KeyType.UUID | KeyType.OBJECTID:
                pass
            case KeyType.BYTES:
                raise KeyRefused(Reason.TYPE_MISMATCH, "text for bytes")
            case _:
                assert_never(self._kind)
        return self._fields[0][1](value, hint, self._bounds)

    def _bare_long(self, raw: bytes) -> Scalar:
        """The one part of a key that is eight bytes, big endian, as a LongSerializer or LongConverter writes it."""
        if len(raw) != _LONG_BYTES:
            raise KeyRefused(Reason.TYPE_MISMATCH, f"{len(raw)} bytes are no long, which has {_LONG_BYTES}")
        return int.from_bytes(raw, "big", signed=True)

    def in_header(self, name: str, header: bytes | None, old: Key, hints: Hints | None) -> Key:
        """The key in the header of that name; a field that it lacks keeps its old value.

        It is text as SimpleHeaderConverter prints it, with raw TAB and LF in strings, or JSON.
        """
        try:
            if header is None:
                raise KeyRefused(Reason.NULL_KEY, "null")
            return self.in_text(header, old, hints, control_characters=True)[0]
        except (JsonFault, KeyRefused) as fault:
            raise Refused(fault.reason, f"The header {name} is refused: {fault.message}.", "header") from None

    def in_text(
        self, text: bytes, old: Key | None, hints: Hints | None, *, control_characters: bool
    ) -> tuple[Key, Hints | None]:
        """The key in a text, and what the schema around it says; a field that is not there keeps its `old` value."""
        document = parse(text, self._limits, control_characters=control_characters)
        if type(document) is dict and len(document) == 2 and document.keys() == {"schema", "payload"}:
            schema = document["schema"]
            if schema is None or type(schema) is dict:
                document = document["payload"]
                hints = self._hints_of(text, schema)
        if type(document) is dict:
            return self.in_object(document, old, hints), hints
        if len(self._fields) > 1:
            raise KeyRefused(Reason.MISSING_KEY, "it is no object, and the rule's key has several fields")
        _, gate = self._fields[0]
        hint = None if hints is None else hints.get(WHOLE)
        return (gate(document, hint, self._bounds),), hints

    def in_object(self, document: Mapping[str, object], old: Key | None, hints: Hints | None) -> Key:
        """The key among the fields of an object. KeyRefused when it has none of them, or lacks one without `old`."""
        parts: list[Scalar] = []
        kept = 0
        name = ""
        try:
            for name, gate in self._fields:
                if name in document:
                    parts.append(gate(document[name], None if hints is None else hints.get(name), self._bounds))
                elif old is not None:
                    parts.append(old[len(parts)])
                    kept += 1
                else:
                    raise KeyRefused(Reason.MISSING_KEY, "the field is not there")
        except KeyRefused as refused:
            raise KeyRefused(refused.reason, f"{name}: {refused.message}") from None
        if kept == len(parts):
            raise KeyRefused(Reason.MISSING_KEY, "it has none of the key's fields")
        return tuple(parts)

    def _hints_of(self, text: bytes, schema: object) -> Hints:
        # As the JsonConverter writes it: what stands before the last "payload" holds the whole schema.
        known, found, _ = text.rpartition(b'"payload":')
        if not found or not known.startswith(b'{"schema":'):
            return hints_of(schema)
        hints = self._hints.get(known)
        if hints is None:
            if len(self._hints) >= HINTS_MAX:
                self._hints.clear()
            hints = self._hints[known] = hints_of(schema)
        return hints


def _gate_of(kind: KeyType) -> Gate:
    return _bytes if kind is KeyType.BYTES else GATES[kind]


def _bytes(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    """The gate of bytes, for what a source has written: it may have been told to write hexadecimal text."""
    if hint is None and type(value) is str and _HEX.fullmatch(value):
        message = "the text may be base64 or hexadecimal (binary.handling.mode=hex), and has no schema that tells"
        raise KeyRefused(Reason.TYPE_MISMATCH, message)
    if hint is not None and hint.name == _BITS:
        raise KeyRefused(Reason.TYPE_MISMATCH, "a bit string, whose bytes snapshots and changes write in two orders")
    return GATES[KeyType.BYTES](value, hint, bounds)
