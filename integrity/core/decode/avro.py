"""Avro: a schema becomes a function from the bytes of a value to its exact Python value, or a `SchemaFault`.

The function is made once a schema, as Python source that holds numbers only, never a part of the schema: measured, it
is faster than a reader in C that asks a stream for every byte. It is strict where Avro's own readers are not: the value
ends where its bytes end, no length is negative, no key of a map is there twice, and what a few bytes may stand for is
bounded (a list of a billion nothings has six bytes).

Numbers and dates stay what they are in the bytes: what they mean is said by the Connect schema beside them, as it is
for JSON. Bytes are `bytes`. A double that is not finite is the text that Connect's JsonConverter writes for it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import isfinite
from typing import Any, NoReturn
from uuid import UUID

from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.record import Limits
from integrity.errors import Reason

_Function = Callable[[bytes, int, "_Budget"], tuple[object, int]]
SCHEMA_BYTES_MAX = 1024 * 1024
"""A longer schema is refused: Confluent's registry keeps it in a Kafka record of 1 MiB."""
_FIELDS_MAX = 10_000
"""More fields, in all records of a schema, are refused: to make its function would hold the process for seconds."""
_WEIGHT_MAX = 16 * 1024 * 1024
"""A schema with a record that takes more memory, in bytes, before any list or text in it, is refused."""
_BUDGET = 32 * 1024 * 1024
"""What lists, maps and recursion may make of one value, in bytes of memory."""
_NESTED_MAX = 100
"""How often a type may be inside itself in a value."""
_SKIPPED_MAX = 2_000
"""Beyond so many values what is passed over is read all the same, by functions that are there already."""
_ROW_MAX = 16
"""So many numbers in a row are passed over at once, by an expression that takes no time to make."""
_UNION_BYTE_MAX = 64
"""A union of so many types tells in one byte which one it is."""

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


class SchemaFault(Exception):
    """A schema is refused. The message holds no part of it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AvroFault(Exception):
    """Bytes are no value of their schema. The message holds no part of them."""

    def __init__(self, message: str, reason: Reason = Reason.SCHEMA_REGISTRY_PAYLOAD) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


@dataclass(slots=True, eq=False)
class Type:
    """A type of a schema. `properties` are its attributes, those of its field included."""

    kind: str
    properties: Mapping[str, object]
    name: str = ""
    fields: list[Field] = field(default_factory=list)
    """Of a record."""
    items: Type | None = None
    """Of an array or a map."""
    branches: list[Type] = field(default_factory=list)
    """Of a union."""
    symbols: tuple[str, ...] = ()
    size: int = 0

    @property
    def optional(self) -> Type | None:
        """What a union with null is otherwise, when that is one type; None for another type."""
        if self.kind != "union" or len(self.branches) != 2:
            return None
        first, second = self.branches
        return second if first.kind == "null" else first if second.kind == "null" else None


@dataclass(slots=True, eq=False)
class Field:
    """A field of a record."""

    name: str
    type: Type


class AvroSchema:
    """A schema, and what reads its values."""

    def __init__(
        self,
        text: str,
        references: Iterable[str] = (),
        limits: Limits | None = None,
        *,
        told: Mapping[str, Collection[str]] = {},
    ) -> None:
        """`references` are the schemas whose types it uses, those first that others need. `told` are the fields of a
        record that `tell` reads; of those that are records themselves, the fields in them. Raises SchemaFault."""
        parser = _Parser(limits or Limits())
        try:
            for reference in references:
                parser.parse(reference)
            self.type = parser.parse(text)
            weights = _Weights()
            if weights.of(self.type) > _WEIGHT_MAX:
                raise SchemaFault("its records are too large")
            maker = _Maker(weights)
            self._is_open = bool(weights.recursive) or weights.has_items
            self._function = maker.function(self.type)
            names = {each.name for each in self.type.fields}
            self._telling = maker.telling(self.type, told) if told and names.issuperset(told) else None
        except RecursionError:
            raise SchemaFault("its types are nested too deep") from None

    def read(self, data: bytes, at: int) -> object:
        """The value that begins at this place and ends with the bytes. Raises AvroFault."""
        return self._read(self._function, data, at)

    def tell(self, data: bytes, at: int) -> Mapping[str, object] | None:
        """Of the record that begins at this place the fields that are `told`; the others are passed over, and their
        text is not looked at. None where the schema has no such record. Raises AvroFault."""
        if self._telling is None:
            return None
        told = self._read(self._telling, data, at)
        assert isinstance(told, dict)
        return told

    def _read(self, function: _Function, data: bytes, at: int) -> object:
        try:
            value, end = function(data, at, _Budget() if self._is_open else _NOTHING)
        except (IndexError, struct.error):
            raise AvroFault("it ends too early") from None
        except UnicodeDecodeError:
            raise AvroFault("a text is not UTF-8", Reason.BAD_ENCODING) from None
        except RecursionError:
            raise AvroFault("nested too deep", Reason.TOO_DEEP) from None
        if end != len(data):
            raise AvroFault("it ends too early" if end > len(data) else "more bytes follow it")
        return value


class _Parser:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._named: dict[str, Type] = {}
        self._fields = 0

    def parse(self, text: str) -> Type:
        data = text.encode("utf-8", "surrogatepass")
        if len(data) > SCHEMA_BYTES_MAX:
            raise SchemaFault(f"it is larger than {SCHEMA_BYTES_MAX} bytes")
        try:
            # A primitive type may be a bare word to some registries.
            document: object = text if text in _PRIMITIVES else parse(data, self._limits)
        except JsonFault as fault:
            raise SchemaFault(f"it is no sound JSON: {fault.message}") from None
        return self._type(document, "")

    def _type(self, schema: object, namespace: str) -> Type:
        if type(schema) is str:
            return Type(schema, {}) if schema in _PRIMITIVES else self._known(schema, namespace)
        if type(schema) is list:
            return self._union(schema, namespace)
        if type(schema) is not dict or "type" not in schema:
            raise SchemaFault("a type is no name, list or object with a type")
        kind = schema["type"]
        match kind:
            case "record" | "error":
                return self._record(schema, namespace)
            case "enum":
                made, _ = self._name(Type("enum", schema), namespace)
                symbols = schema.get("symbols")
                if type(symbols) is not list or not all(type(symbol) is str for symbol in symbols):
                    raise SchemaFault("an enum has no list of symbols")
                made.symbols = tuple(symbols)
                return made
            case "fixed":
                made, _ = self._name(Type("fixed", schema), namespace)
                size = schema.get("size")
                if type(size) is not int or size < 0:
                    raise SchemaFault("the size of a fixed type is no whole number")
                made.size = size
                return made
            case "array" | "map":
                items = self._type(schema.get("items" if kind == "array" else "values"), namespace)
                return Type(kind, schema, items=items)
            case str() if kind in _PRIMITIVES:
                return Type(kind, schema)
            case str():
                return self._known(kind, namespace)
            case _:
                # {"type": {"type": …}}: what stands around adds its attributes.
                inner = self._type(kind, namespace)
                if inner.name or inner.kind == "union":
                    return inner
                return Type(inner.kind, {**schema, **inner.properties}, items=inner.items)

    def _union(self, schemas: Sequence[object], namespace: str) -> Type:
        branches = [self._type(schema, namespace) for schema in schemas]
        if not branches or any(branch.kind == "union" for branch in branches):
            raise SchemaFault("a union is empty, or right inside another one")
        return Type("union", {}, branches=branches)

    def _record(self, schema: Mapping[str, Any], namespace: str) -> Type:
        made, namespace = self._name(Type("record", schema), namespace)
        fields = schema.get("fields")
        if type(fields) is not list:
            raise SchemaFault("a record has no list of fields")
        self._fields += len(fields)
        if self._fields > _FIELDS_MAX:
            raise SchemaFault(f"it has more than {_FIELDS_MAX} fields")
        names: set[str] = set()
        for each in fields:
            if type(each) is not dict or type(each.get("name")) is not str or "type" not in each:
                raise SchemaFault("a field has no name or no type")
            name = each["name"]
            if name in names or not name or not name.isprintable():
                raise SchemaFault("a field has a name that is there twice or can't be read")
            names.add(name)
            made.fields.append(Field(name, self._type(each["type"], namespace)))
        return made

    def _name(self, made: Type, namespace: str) -> tuple[Type, str]:
        """Give a type its full name, and know it by that; the namespace of what is inside it."""
        name, own = made.properties.get("name"), made.properties.get("namespace")
        if type(name) is not str:
            raise SchemaFault("a record, enum or fixed type has no name")
        if "." in name:
            namespace = name.rpartition(".")[0]
        else:
            namespace = own if type(own) is str else namespace
            name = f"{namespace}.{name}" if namespace else name
        if not all(_NAME.fullmatch(part) for part in name.split(".")) or name in _PRIMITIVES:
            raise SchemaFault("a type has a name that Avro does not allow")
        if name in self._named:
            raise SchemaFault("two of its types have one name")
        made.name = name
        self._named[name] = made
        return made, namespace

    def _known(self, name: str, namespace: str) -> Type:
        found = self._named.get(f"{namespace}.{name}" if namespace and "." not in name else name)
        found = found or self._named.get(name)
        if found is None:
            raise SchemaFault("it uses a type that neither it nor its references define")
        return found


class _Weights:
    """What values of a type weigh at least, in bytes of memory; a list or map weighs its items when they are read."""

    def __init__(self) -> None:
        self._known: dict[Type, int] = {}
        self._open: set[Type] = set()
        self.recursive: set[Type] = set()
        self.has_items = False

    def of(self, type_: Type) -> int:
        if type_ in self._known:
            return self._known[type_]
        if type_ in self._open:
            self.recursive.add(type_)
            return 0
        self._open.add(type_)
        found = self._weigh(type_)
        self._open.discard(type_)
        self._known[type_] = found
        return found

    def _weigh(self, type_: Type) -> int:
        match type_.kind:
            case "record":
                return 256 + sum(len(each.name) + 16 + self.of(each.type) for each in type_.fields)
            case "union":
                return 16 + max(self.of(branch) for branch in type_.branches)
            case "array" | "map":
                assert type_.items is not None
                self.has_items = True
                self.of(type_.items)
                return 64
            case "enum":
                return 64 + max(map(len, type_.symbols), default=0)
            case _:
                return 64


# --- reading ------------------------------------------------------------------------------------------------------


class _Budget:
    """What one value may still take, shared by all functions that read it."""

    __slots__ = ("left", "nested")

    def __init__(self) -> None:
        self.left = _BUDGET
        self.nested = _NESTED_MAX

    def take(self, weight: int) -> None:
        self.left -= weight
        if self.left < 0:
            raise AvroFault("it stands for more than its size allows", Reason.TOO_LARGE)

    def enter(self, weight: int) -> None:
        self.take(weight)
        self.nested -= 1
        if self.nested < 0:
            raise AvroFault(f"a type is inside itself more than {_NESTED_MAX} times", Reason.TOO_DEEP)

    def leave(self) -> None:
        self.nested += 1


_NOTHING = _Budget()
"""For schemas in which nothing is repeated or inside itself."""


def _long(data: bytes, at: int, first: int) -> tuple[int, int]:
    """A number of more than one byte, whose first was read, and the place behind it. Unrolled: most are timestamps."""
    value = first & 127
    byte = data[at]
    if byte < 128:
        value |= byte << 7
        return (value >> 1) ^ -(value & 1), at + 1
    value |= (byte & 127) << 7
    byte = data[at + 1]
    if byte < 128:
        value |= byte << 14
        return (value >> 1) ^ -(value & 1), at + 2
    value |= (byte & 127) << 14
    byte = data[at + 2]
    if byte < 128:
        value |= byte << 21
        return (value >> 1) ^ -(value & 1), at + 3
    value |= (byte & 127) << 21
    byte = data[at + 3]
    if byte < 128:
        value |= byte << 28
        return (value >> 1) ^ -(value & 1), at + 4
    value |= (byte & 127) << 28
    byte = data[at + 4]
    if byte < 128:
        value |= byte << 35
        return (value >> 1) ^ -(value & 1), at + 5
    value |= (byte & 127) << 35
    byte = data[at + 5]
    if byte < 128:
        value |= byte << 42
        return (value >> 1) ^ -(value & 1), at + 6
    value |= (byte & 127) << 42
    byte = data[at + 6]
    if byte < 128:
        value |= byte << 49
        return (value >> 1) ^ -(value & 1), at + 7
    value |= (byte & 127) << 49
    byte = data[at + 7]
    if byte < 128:
        value |= byte << 56
        return (value >> 1) ^ -(value & 1), at + 8
    value |= (byte & 127) << 56
    byte = data[at + 8]
    if byte > 1:
        raise AvroFault("a number does not fit 64 bits")
    value |= byte << 63
    return (value >> 1) ^ -(value & 1), at + 9


def _int(data: bytes, at: int, first: int) -> tuple[int, int]:
    value, at = _long(data, at, first)
    if not -0x8000_0000 <= value <= 0x7FFF_FFFF:
        raise AvroFault("a number does not fit 32 bits")
    return value, at


def _length(data: bytes, at: int, first: int) -> tuple[int, int]:
    """The end of a text or bytes whose length has several bytes, or is negative, and its begin."""
    if first < 128:
        raise AvroFault("a length is negative")
    length, at = _long(data, at, first)
    if length < 0:
        raise AvroFault("a length is negative")
    return at + length, at


def _block(data: bytes, at: int, budget: _Budget, weight: int) -> tuple[int, int]:
    """How many items follow, 0 at the end, and the place of the first."""
    first = data[at]
    at += 1
    count, at = ((first >> 1) ^ -(first & 1), at) if first < 128 else _long(data, at, first)
    if count < 0:
        count = -count
        first = data[at]
        at += 1
        if first >= 128:  # the size of the block, which nobody needs
            _, at = _long(data, at, first)
    budget.take(count * weight)
    return count, at


_FLOAT, _DOUBLE = struct.Struct("<f").unpack_from, struct.Struct("<d").unpack_from
_SHORTEST = tuple(f"%.{digits}g" for digits in range(6, 10))


def double_at(data: bytes, at: int) -> float | str:
    """The double at a place, little endian; one that is not finite as the text that Connect writes for it."""
    [value] = _DOUBLE(data, at)
    return float(value) if isfinite(value) else _not_finite(value)


def float_at(data: bytes, at: int) -> float | str:
    """The double that is written like it: 0.1 is not 0.10000000149011612."""
    [value] = _FLOAT(data, at)
    if not isfinite(value):
        return _not_finite(value)
    text = next(text for shape in _SHORTEST if _as_float(text := shape % value) == value)
    return float(text)


def _as_float(text: str) -> float | None:
    try:
        return float(struct.unpack("<f", struct.pack("<f", float(text)))[0])
    except OverflowError:  # rounded up, beyond the largest
        return None


def _not_finite(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _uuid(raw: bytes) -> str:
    if len(raw) != 16:
        raise AvroFault("it ends too early")
    return str(UUID(bytes=raw))


def _bad(message: str) -> NoReturn:
    raise AvroFault(message)


_MARKS = bytes(1 if byte >= 128 else 0 for byte in range(256))
"""Zero where a number ends."""


_STEPS = tuple((byte >> 1) + 1 if not byte & 129 else 0 for byte in range(256))
"""How many bytes a text takes whose length is told by its first byte alone; zero where it is not. Looked up, since
measured it takes half the time of reckoning."""

_NUMBER = rb"[\x80-\xff]*+[\x00-\x7f]"


def _number_pattern(type_: Type) -> bytes | None:
    """What matches a whole number, or one that may be null; None for any other type."""
    inner = type_.optional
    if inner is None:
        return _NUMBER if type_.kind in ("int", "long") else None
    if inner.kind not in ("int", "long"):
        return None
    there, null = (b"\\x02", b"\\x00") if type_.branches[1] is inner else (b"\\x00", b"\\x02")
    return b"(?:%b%b|%b)" % (there, _NUMBER, null)


_HELPERS: Mapping[str, object] = {
    "marks": _MARKS,
    "step": _STEPS,
    "long": _long,
    "int_": _int,
    "length": _length,
    "block": _block,
    "float_": float_at,
    "double": double_at,
    "uuid": _uuid,
    "bad": _bad,
}


class _Maker:
    """Writes the functions: one for each record, array and map, which others call, so that nothing nests in the source.

    d: the bytes, i: where it reads, q: the budget, b: a byte, e: an end."""

    def __init__(self, weights: _Weights) -> None:
        self._weights = weights
        self._space: dict[str, Any] = {"__builtins__": {"range": range}, **_HELPERS}
        self._names: dict[Type, str] = {}
        self._waiting: list[Type] = []
        self._lines: list[str] = []
        self._values = 0
        self._skipped = 0

    def function(self, schema: Type) -> _Function:
        """The function of a whole schema."""
        name = self._called(schema)
        while self._waiting:
            type_ = self._waiting.pop()
            self._lines = [f"def {self._names[type_]}(d, i, q):"]
            match type_.kind:
                case "record":
                    value = self._record(type_)
                case "array" | "map":
                    value = self._items(type_)
                case _:
                    value = self._value(type_, 1)
            self._put(1, f"return {value}, i")
            # Each on its own: the longest time that the process is held is that of one record.
            exec(compile("\n".join(self._lines), "<avro>", "exec"), self._space)
        made: _Function = self._space[name]
        return made

    def telling(self, schema: Type, told: Mapping[str, Collection[str]]) -> _Function:
        """The function that reads only the fields of a record that are `told`, and of records right inside it those
        that are told there."""
        self._lines = ["def telling(d, i, q):", " z = d.translate(marks).find"]
        parts: list[str] = []
        skipped: list[Type] = []
        for each in schema.fields:
            if each.name not in told:
                skipped.append(each.type)
            elif each.type.kind == "record":
                inner: list[str] = []
                for below in each.type.fields:
                    if below.name not in told[each.name]:
                        skipped.append(below.type)
                    else:
                        self._skip_all(skipped, 1)
                        skipped.clear()
                        inner.append(f"{self._constant(below.name)}: {self._value(below.type, 1)}")
                parts.append(f"{self._constant(each.name)}: {{{', '.join(inner)}}}")
            else:
                self._skip_all(skipped, 1)
                skipped.clear()
                parts.append(f"{self._constant(each.name)}: {self._value(each.type, 1)}")
        self._skip_all(skipped, 1)
        self._put(1, f"return {{{', '.join(parts)}}}, i")
        exec(compile("\n".join(self._lines), "<avro>", "exec"), self._space)
        made: _Function = self._space["telling"]
        return made

    def _skip_all(self, types: Sequence[Type], depth: int) -> None:
        """Write what passes over values that follow each other: numbers in a row at once. Where they do not look like
        it, one after the other is, to tell what is wrong."""
        for are_numbers, group in groupby(types, lambda type_: _number_pattern(type_) is not None):
            row = list(group)
            inner = depth
            if are_numbers and 1 < len(row) <= _ROW_MAX:
                numbers = re.compile(b"".join(filter(None, map(_number_pattern, row))), re.DOTALL).match
                self._put(depth, f"m = {self._constant(numbers)}(d, i)")
                self._put(depth, "if m: i = m.end()")
                self._put(depth, "else:")
                inner = depth + 1
            for type_ in row:
                self._skip(type_, inner)

    def _skip(self, type_: Type, depth: int) -> None:
        """Write what passes over a value; z: finds where a number ends."""
        self._skipped += 1
        match type_.kind:
            case "null":
                pass
            case "int" | "long":
                self._put(depth, "i = z(0, i) + 1")
                self._put(depth, "if not i: bad('it ends too early')")
            case "float" | "double" | "boolean":
                self._put(depth, f"i += { {'float': 4, 'double': 8, 'boolean': 1}[type_.kind] }")
            case "fixed":
                self._put(depth, f"i += {type_.size}")
            case "string" | "bytes":
                self._put(depth, "b = d[i]; n = step[b]")
                self._put(depth, "if n: i += n")
                self._put(depth, "else: i, _ = length(d, i + 1, b)")
            case "union":
                inner = type_.optional
                if inner is None or inner.kind == "null":
                    self._value(type_, depth)
                    return
                index = next(i for i, branch in enumerate(type_.branches) if branch is inner)
                self._put(depth, "b = d[i]; i += 1")
                self._put(depth, f"if b == {2 * index}:")
                self._put(depth + 1, "pass")  # a record of nothing has no line
                self._skip(inner, depth + 1)
                self._put(depth, f"elif b != {2 - 2 * index}: bad('a union has no such type')")
            case "record" if type_ not in self._weights.recursive and self._skipped < _SKIPPED_MAX:
                self._skip_all([each.type for each in type_.fields], depth)
            case _:
                # Read all the same: a list, a map, an enum, what may be inside itself.
                self._value(type_, depth)

    def _called(self, type_: Type) -> str:
        """The name of the function of a type, which will be written."""
        if type_ not in self._names:
            self._names[type_] = f"f{len(self._names)}"
            self._waiting.append(type_)
        return self._names[type_]

    def _put(self, depth: int, line: str) -> None:
        self._lines.append(" " * depth + line)

    def _new(self) -> str:
        self._values += 1
        return f"v{self._values}"

    def _constant(self, value: object) -> str:
        name = f"c{len(self._space)}"
        self._space[name] = value
        return name

    def _record(self, type_: Type) -> str:
        recursive = type_ in self._weights.recursive
        if recursive:
            self._put(1, f"q.enter({self._weights.of(type_)})")
        parts = [f"{self._constant(each.name)}: {self._value(each.type, 1)}" for each in type_.fields]
        made = self._new()
        self._put(1, f"{made} = {{{', '.join(parts)}}}")
        if recursive:
            self._put(1, "q.leave()")
        return made

    def _items(self, type_: Type) -> str:
        assert type_.items is not None
        is_map = type_.kind == "map"
        made = self._new()
        weight = self._weights.of(type_.items) + (128 if is_map else 0)
        self._put(1, f"{made} = {'{}' if is_map else '[]'}")
        self._put(1, "while True:")
        self._put(2, f"n, i = block(d, i, q, {weight})")
        self._put(2, "if not n: break")
        self._put(2, "for _ in range(n):")
        if is_map:
            key = self._value(Type("string", {}), 3)
            self._put(3, f"if {key} in {made}: bad('a map has a key twice')")
            self._put(3, f"{made}[{key}] = {self._value(type_.items, 3)}")
        else:
            self._put(3, f"{made}.append({self._value(type_.items, 3)})")
        return made

    def _value(self, type_: Type, depth: int) -> str:
        """Write what reads a value; returns the name of it."""
        value = self._new()

        def put(line: str) -> None:
            self._put(depth, line)

        match type_.kind:
            case "null":
                put(f"{value} = None")
            case "boolean":
                put("b = d[i]; i += 1")
                put("if b > 1: bad('a boolean is neither 0 nor 1')")
                put(f"{value} = b == 1")
            case "int" | "long":
                put("b = d[i]; i += 1")
                put(f"if b < 128: {value} = (b >> 1) ^ -(b & 1)")
                put(f"else: {value}, i = {'int_' if type_.kind == 'int' else 'long'}(d, i, b)")
            case "float" | "double":
                put(f"{value} = {'float_' if type_.kind == 'float' else 'double'}(d, i)")
                put(f"i += {4 if type_.kind == 'float' else 8}")
            case "string" | "bytes":
                put("b = d[i]; i += 1")
                put("if b & 129: e, i = length(d, i, b)")
                put("else: e = i + (b >> 1)")
                put(f"{value} = d[i:e].decode()" if type_.kind == "string" else f"{value} = d[i:e]")
                put("i = e")
            case "fixed":
                is_uuid = type_.properties.get("logicalType") == "uuid" and type_.size == 16
                raw = f"d[i:i + {type_.size}]"
                put(f"{value} = {f'uuid({raw})' if is_uuid else raw}; i += {type_.size}")
            case "enum":
                put("b = d[i]; i += 1")
                put("if b < 128: b = (b >> 1) ^ -(b & 1)")
                put("else: b, i = long(d, i, b)")
                put(f"if not 0 <= b < {len(type_.symbols)}: bad('an enum has no such symbol')")
                put(f"{value} = {self._constant(type_.symbols)}[b]")
            case "record" | "array" | "map":
                put(f"{value}, i = {self._called(type_)}(d, i, q)")
            case "union":
                self._union(type_, value, depth)
            case _:
                raise AssertionError(type_.kind)
        return value

    def _union(self, type_: Type, value: str, depth: int) -> None:
        self._put(depth, "b = d[i]; i += 1")
        if len(type_.branches) > _UNION_BYTE_MAX:
            self._put(depth, "if b >= 128: b, i = long(d, i, b); b = b * 2 if b >= 0 else 1")
        # What comes more often than null stands first.
        order = sorted(range(len(type_.branches)), key=lambda index: type_.branches[index].kind == "null")
        for number, index in enumerate(order):
            branch = type_.branches[index]
            self._put(depth, f"{'elif' if number else 'if'} b == {2 * index}:")
            found = self._value(branch, depth + 1)
            if type_.optional is None and branch.kind in ("bytes", "fixed"):
                # Among other types nothing else would tell it from text.
                found = f"{{{self._constant(branch.name or branch.kind)}: {found}}}"
            self._put(depth + 1, f"{value} = {found}")
        self._put(depth, "else: bad('a union has no such type')")


# --- what the values mean -----------------------------------------------------------------------------------------

_CONNECT_TYPES: Mapping[str, str] = {
    "boolean": "boolean",
    "int": "int32",
    "long": "int64",
    "float": "float",
    "double": "double",
    "bytes": "bytes",
    "fixed": "bytes",
    "string": "string",
    "enum": "string",
    "array": "array",
    "map": "map",
    "record": "struct",
    "union": "struct",
    "null": "null",
}
_LOGICAL_NAMES: Mapping[str, str] = {
    "decimal": "org.apache.kafka.connect.data.Decimal",
    "date": "org.apache.kafka.connect.data.Date",
    "time-millis": "org.apache.kafka.connect.data.Time",
    "time-micros": "io.debezium.time.MicroTime",
    "timestamp-millis": "org.apache.kafka.connect.data.Timestamp",
    "timestamp-micros": "io.debezium.time.MicroTimestamp",
    "timestamp-nanos": "io.debezium.time.NanoTimestamp",
}
"""What others than Connect call what Connect has a name for. A local timestamp is no point in time: it has none."""
_STRUCTS_MAX = 3
"""How deep records are described: an envelope, its row, the row's fields."""


def connect_schema(schema: Type) -> dict[str, object]:
    """What Connect's JsonConverter would write beside a value of this schema, as far as anybody reads it."""
    return _described(schema, _STRUCTS_MAX)


def _described(type_: Type, structs: int) -> dict[str, object]:
    inner = type_.optional
    if inner is not None:
        return {**_described(inner, structs), "optional": True}
    properties = type_.properties
    logical = properties.get("logicalType")
    name = properties.get("connect.name")
    if type(name) is not str:
        name = type_.name if type_.kind == "record" else _LOGICAL_NAMES.get(logical) if type(logical) is str else None
    kind = _CONNECT_TYPES[type_.kind]
    own = properties.get("connect.type")
    is_uuid = logical == "uuid" and type_.kind == "fixed"
    made: dict[str, object] = {"type": "string" if is_uuid else own if type(own) is str else kind, "optional": False}
    if name:
        made["name"] = name
    parameters = properties.get("connect.parameters")
    scale = parameters.get("scale") if type(parameters) is dict else None
    if type(scale) is not str and logical == "decimal":
        whole = properties.get("scale", 0)
        scale = str(whole) if type(whole) is int else None
    if type(scale) is str:
        made["parameters"] = {"scale": scale}
    if type_.kind == "record" and structs:
        made["fields"] = [{**_described(each.type, structs - 1), "field": each.name} for each in type_.fields]
    return made
