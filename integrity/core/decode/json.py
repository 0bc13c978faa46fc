"""Strict JSON, in one place: the exact value of what is read, or a `JsonFault` with its reason.

Refused: other encodings than UTF-8, a byte order mark, NaN and Infinity, a field named twice, nesting and sizes beyond
the limits. Whole numbers are exact ints, numbers with a point exact Decimals. What a record carries but nobody reads
(the row before and after) is checked for syntax, encoding and depth only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import compress
from typing import NoReturn

import msgspec
from msgspec import Raw, Struct

from integrity.core.decode.record import Limits
from integrity.core.keys import Exponential
from integrity.errors import Reason


class JsonFault(Exception):
    """A text is refused. Caught by the decoder, which makes a dead letter of it.

    `message` holds no part of the text.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


_ABSENT = Raw()


class Envelope(Struct, gc=False):
    """The fields of a Debezium envelope, or of the schema wrapper around it: JSON text of sound syntax, unread.

    A field that the text does not have is empty, and false.
    """

    schema: Raw = _ABSENT
    payload: Raw = _ABSENT
    before: Raw = _ABSENT
    after: Raw = _ABSENT
    source: Raw = _ABSENT
    transaction: Raw = _ABSENT
    op: Raw = _ABSENT
    ts_ms: Raw = _ABSENT
    ts_us: Raw = _ABSENT
    ts_ns: Raw = _ABSENT


# What a field costs beside its value when there is no white space: its name, two quotes, a colon, a comma. Braces
# around the whole and one comma less make one more.
_COSTS = tuple(len(name) + 4 for name in Envelope.__struct_fields__)
_BARE_COST = sum(_COSTS[2:]) + 1
_as_tuple = msgspec.structs.astuple


def _number(text: str) -> Decimal | Exponential:
    return Exponential(text) if "e" in text or "E" in text else Decimal(text)


_decode = msgspec.json.Decoder(float_hook=_number).decode
_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_object = msgspec.json.Decoder(dict[str, object]).decode


def parse(data: bytes, limits: Limits, *, control_characters: bool = False) -> object:
    """The whole value of a small text: a record key, a header.

    `control_characters` takes raw TAB, LF and the like inside strings, which JSON forbids and Connect's
    SimpleHeaderConverter writes.
    """
    if len(data) > limits.record_bytes_max or not data.isascii():
        check_text(data, limits)
    try:
        value = _decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        fault = _fault(data, exc)
        if not control_characters or fault.reason is not Reason.BAD_JSON:
            raise fault from None
        value = _parse_slowly(data)
    # Every field has a colon: a text with as many colons as its value has fields names none of them twice.
    colons = data.count(b":")
    if type(value) is dict and colons == len(value) and b"[" not in data:
        return value
    check_depth(data, limits)
    if colons != (fields := _fields(value)) and _colons_outside_strings(data) != fields:
        _check_unique(data, _refuse_repeated)
    return value


def parse_envelope(data: bytes) -> Envelope:
    """The parts of an object; no two of its fields have one name. `data` has passed `check_text`."""
    try:
        envelope = _decode_envelope(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise _fault(data, exc) from None
    # The parts and their names fill the text: there is no room for a second field of one name.
    parts = _as_tuple(envelope)
    room = len(data) - sum(map(len, parts))
    if (room != _BARE_COST or not all(parts[2:])) and room != 1 + sum(compress(_COSTS, parts)):
        _check_top_level(data)
    return envelope


def wrapping_of(data: bytes, envelope: Envelope) -> bytes | None:
    """What stands before the payload when a text is a schema and a payload as the JsonConverter writes them, else None.

    A text that begins so, and ends with a brace, is that schema around whatever is between."""
    opening = b'{"schema":%b,"payload":' % bytes(envelope.schema)
    return opening if data == b"%b%b}" % (opening, bytes(envelope.payload)) else None


def parse_object(data: bytes, limits: Limits) -> dict[str, object]:
    """The fields of an object inside a text that has passed `parse_envelope`; no two have one name."""
    try:
        found = _decode_object(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise _fault(data, exc) from None
    colons = data.count(b":")
    if colons != len(found):
        check_depth(data, limits)
        if colons != (fields := _fields(found)) and _colons_outside_strings(data) != fields:
            _check_unique(data, _refuse_repeated)
    return found


def check_text(data: bytes, limits: Limits) -> None:
    """Refuses a text that is too large or no UTF-8, before any of it is parsed."""
    if len(data) > limits.record_bytes_max:
        raise JsonFault(Reason.TOO_LARGE, f"larger than {limits.record_bytes_max} bytes")
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as exc:
            raise _fault(data, exc) from None


def _is_utf16(data: bytes) -> bool:
    """Two ASCII characters as UTF-16, either byte order. The four bytes after a registry's zero byte are a number."""
    zeros = [byte == 0 for byte in data[:4]]
    return zeros in ([False, True, False, True], [True, False, True, False])


_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)


def check_depth(data: bytes, limits: Limits) -> None:
    """Refuses nesting beyond the limit in a text of sound syntax."""
    # Every level has two brackets: nearly every text is cleared by their number alone.
    if len(data.translate(None, _NO_BRACKETS)) <= 2 * limits.depth_max:
        return
    depth = 0
    for byte in _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS):
        if byte in b"[{":
            depth += 1
            if depth > limits.depth_max:
                raise JsonFault(Reason.TOO_DEEP, f"nested deeper than {limits.depth_max}")
        else:
            depth -= 1


def _fields(value: object) -> int:
    """How many fields all objects in a value have. Not deeper than `depth_max`, hence recursion."""
    if type(value) is dict:
        return len(value) + sum([_fields(part) for part in value.values() if type(part) in (dict, list)])
    if type(value) is list:
        return sum([_fields(part) for part in value if type(part) in (dict, list)])
    return 0


def _colons_outside_strings(data: bytes) -> int:
    """How many fields a text of sound syntax names, also those that it names twice."""
    return _STRINGS.sub(b"", data).count(b":")


Pairs = list[tuple[str, object]]


def _refuse_repeated(pairs: Pairs) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonFault(Reason.DUPLICATE_FIELD, "a field is there twice")
    return found


def _check_unique(data: bytes, hook: Callable[[Pairs], object]) -> None:
    """Hands the fields of every object of a text to `hook`, inner objects first. Slow, and only asked in doubt."""
    try:
        json.loads(data.decode(), strict=False, object_pairs_hook=hook, parse_int=str, parse_float=str)
    except RecursionError:
        raise JsonFault(Reason.TOO_DEEP, "nested too deep") from None
    except ValueError:
        raise JsonFault(Reason.BAD_JSON, "not JSON") from None


def _check_top_level(data: bytes) -> None:
    last: list[Pairs] = [[]]

    def keep(pairs: Pairs) -> None:
        last[0] = pairs

    _check_unique(data, keep)
    _refuse_repeated(last[0])


def _parse_slowly(data: bytes) -> object:
    try:
        value: object = json.loads(
            data.decode(),
            strict=False,
            object_pairs_hook=_refuse_repeated,
            parse_int=_whole,
            parse_float=_number,
            parse_constant=_not_finite,
        )
    except RecursionError:
        raise JsonFault(Reason.TOO_DEEP, "nested too deep") from None
    except ValueError:
        raise JsonFault(Reason.BAD_JSON, "not JSON") from None
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise JsonFault(Reason.BAD_NUMBER, "a number has too many digits") from None


def _not_finite(_: str) -> NoReturn:
    raise JsonFault(Reason.BAD_NUMBER, "NaN or Infinity")


def _fault(data: bytes, exc: msgspec.DecodeError | RecursionError | UnicodeDecodeError) -> JsonFault:
    """Why a text was refused. What the fast parser says is too coarse, so the bytes and the slow one are asked."""
    if isinstance(exc, RecursionError):
        return JsonFault(Reason.TOO_DEEP, "nested too deep")
    if _is_utf16(data):
        return JsonFault(Reason.BAD_ENCODING, "UTF-16, not UTF-8")
    if data[:1] == b"\0":
        return JsonFault(
            Reason.SCHEMA_REGISTRY_PAYLOAD,
            "not JSON: it starts with a zero byte, as schema registry serializers write; set"
            " INTEGRITY_SCHEMA_REGISTRY__URL, or use the JsonConverter",
        )
    if data.startswith(b"\xef\xbb\xbf"):
        return JsonFault(Reason.BAD_ENCODING, "it starts with a byte order mark")
    if isinstance(exc, UnicodeDecodeError):
        return JsonFault(Reason.BAD_ENCODING, "not UTF-8")
    if isinstance(exc, msgspec.ValidationError):
        # A number that fits nothing, or a whole text that is no object.
        if "out of range" in str(exc):
            return JsonFault(Reason.BAD_NUMBER, "a number is too large")
        try:
            _decode(data)
        except (msgspec.DecodeError, RecursionError) as deeper:
            return _fault(data, deeper)
        return JsonFault(Reason.BAD_ENVELOPE, "not a JSON object")
    try:
        json.loads(data, parse_int=str, parse_float=str, parse_constant=_not_finite)
    except JsonFault as fault:
        return fault
    except RecursionError:
        return JsonFault(Reason.TOO_DEEP, "nested too deep")
    except ValueError:
        return JsonFault(Reason.BAD_JSON, "not JSON, or cut short" if data else "empty")
    # What is JSON to the one and not to the other.
    return JsonFault(Reason.BAD_ENCODING, "half of a surrogate pair, or not UTF-8")
