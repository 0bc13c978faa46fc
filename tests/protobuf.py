"""Records as Connect's ProtobufConverter writes them, made from what the JsonConverter wrote; by Google's own writer.

The mapping is that of Confluent's ProtobufData as its source and documentation tell it: no such converter runs here.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from integrity.core.decode.protobuf import ProtobufSchema
from integrity.registry.protoc import compiled


class Nullables(Enum):
    """What the converter makes of a field that may be null: its settings optional.for.nullables and
    wrapper.for.nullables, or neither."""

    OPTIONAL = "optional"
    WRAPPER = "wrapper"
    PLAIN = "plain"


_F = FieldDescriptorProto
_SCALARS = {
    "int8": (_F.TYPE_INT32, "Int32Value"), "int16": (_F.TYPE_INT32, "Int32Value"),
    "int32": (_F.TYPE_INT32, "Int32Value"), "int64": (_F.TYPE_INT64, "Int64Value"),
    "float": (_F.TYPE_FLOAT, "FloatValue"), "double": (_F.TYPE_DOUBLE, "DoubleValue"),
    "boolean": (_F.TYPE_BOOL, "BoolValue"), "string": (_F.TYPE_STRING, "StringValue"),
    "bytes": (_F.TYPE_BYTES, "BytesValue"),
}  # fmt: skip
_CONNECT = "org.apache.kafka.connect.data."
_LOGICAL = {
    f"{_CONNECT}Decimal": ".confluent.type.Decimal",
    f"{_CONNECT}Date": ".google.type.Date",
    f"{_CONNECT}Time": ".google.type.TimeOfDay",
    f"{_CONNECT}Timestamp": ".google.protobuf.Timestamp",
}
_IMPORTS = (
    "confluent/meta.proto", "confluent/type/decimal.proto", "google/protobuf/timestamp.proto",
    "google/protobuf/wrappers.proto", "google/type/date.proto", "google/type/timeofday.proto",
)  # fmt: skip


@cache
def imported() -> tuple[FileDescriptorProto, ...]:
    """The files that a converter's schemas import."""
    lines = "".join(f'import "{name}";\n' for name in _IMPORTS)
    return tuple(FileDescriptorSet.FromString(compiled(f'syntax = "proto3";\n{lines}', {})).file[:-1])


def pool_of(descriptors: bytes) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for each in FileDescriptorSet.FromString(descriptors).file:
        pool.Add(each)
    return pool


def message_of(descriptors: bytes, name: str) -> Any:
    """The class of Google's own messages of a type."""
    return message_factory.GetMessageClass(pool_of(descriptors).FindMessageTypeByName(name))


@cache
def _options() -> tuple[Any, Any]:
    pool = pool_of(FileDescriptorSet(file=imported()).SerializeToString())
    extension = pool.FindExtensionByName("confluent.field_meta")
    return message_factory.GetMessageClass(extension.containing_type), extension


def _with_meta(field: FieldDescriptorProto, **params: str) -> None:
    made, extension = _options()
    options = made()
    for name, value in params.items():
        options.Extensions[extension].params[name.replace("_", ".")] = value
    field.options.MergeFrom(descriptor_pb2.FieldOptions.FromString(options.SerializeToString()))


def _name(text: str) -> str:
    return re.sub("[^A-Za-z0-9_]", "_", text)


def descriptors_of(connect: Mapping[str, Any], nullables: Nullables) -> tuple[bytes, str]:
    """The descriptors that the converter makes of a Connect schema, and the name of its message."""
    package, _, name = ".".join(map(_name, connect.get("name", "ConnectDefault1").split("."))).rpartition(".")
    file = FileDescriptorProto(name="made.proto", package=package, syntax="proto3", dependency=_IMPORTS)
    full = f"{package}.{name}" if package else name
    _message(file.message_type.add(name=name), f".{full}", connect, nullables)
    return FileDescriptorSet(file=[*imported(), file]).SerializeToString(), full


def _message(made: DescriptorProto, path: str, connect: Mapping[str, Any], nullables: Nullables) -> None:
    names: dict[str, str] = {}
    for number, each in enumerate(connect["fields"], 1):
        _put(made, path, each["field"], number, each, nullables, names)
    # Google's library wants these behind all others.
    for field in made.field:
        if field.proto3_optional:
            field.oneof_index = len(made.oneof_decl)
            made.oneof_decl.add(name=f"_{field.name}")


def _put(
    made: DescriptorProto,
    path: str,
    name: str,
    number: int,
    connect: Mapping[str, Any],
    nullables: Nullables,
    names: dict[str, str],
) -> None:
    field = made.field.add(name=name, number=number, label=_F.LABEL_OPTIONAL)
    optional = connect.get("optional", False)
    if connect["type"] == "array":
        field.label = _F.LABEL_REPEATED
        connect = connect["items"]
        if connect["type"] in ("array", "map"):
            raise ValueError("the converter nests no lists")
    kind, logical = connect["type"], connect.get("name")
    is_optional = optional and nullables is Nullables.OPTIONAL and field.label != _F.LABEL_REPEATED
    if logical in _LOGICAL:
        field.type, field.type_name = _F.TYPE_MESSAGE, _LOGICAL[logical]
        if logical == f"{_CONNECT}Decimal":
            _with_meta(field, scale=connect["parameters"]["scale"])
    elif kind == "struct":
        short = _name((logical or f"ConnectDefault{number + 1}").rpartition(".")[2])
        short += "Message" if short == name else ""
        field.type, field.type_name = _F.TYPE_MESSAGE, f"{path}.{short}"
        text = json.dumps([{**each, "field": each["field"]} for each in connect["fields"]])
        if names.setdefault(short, text) != text:
            raise ValueError("two structs of one name")
        if not any(each.name == short for each in made.nested_type):
            _message(made.nested_type.add(name=short), field.type_name, connect, nullables)
    elif kind == "map":
        field.label = _F.LABEL_REPEATED
        entry = made.nested_type.add(name=f"{''.join(part.title() for part in name.split('_'))}Entry")
        entry.options.map_entry = True
        field.type, field.type_name = _F.TYPE_MESSAGE, f"{path}.{entry.name}"
        inside: dict[str, str] = {}
        for at, part in enumerate(("keys", "values"), 1):
            each = {**connect[part], "optional": False}
            _put(entry, field.type_name, ("key", "value")[at - 1], at, each, Nullables.PLAIN, inside)
        return
    else:
        field.type, wrapper = _SCALARS[kind]
        if kind in ("int8", "int16"):
            _with_meta(field, connect_type=kind)
        if optional and nullables is Nullables.WRAPPER and field.label != _F.LABEL_REPEATED:
            field.type, field.type_name = _F.TYPE_MESSAGE, f".google.protobuf.{wrapper}"
    field.proto3_optional = is_optional


def _fill(message: Any, connect: Mapping[str, Any], value: Mapping[str, Any]) -> Any:
    for each in connect["fields"]:
        name, item = each["field"], value.get(each["field"])
        if item is None:
            continue
        if each["type"] == "array":
            for part in item:
                if part is None:
                    raise ValueError("the converter has no nulls in lists")
                _append(getattr(message, name), each["items"], part)
        elif each["type"] == "map":
            for key, part in item.items():
                getattr(message, name)[key] = _scalar(each["values"], part)
        elif each["type"] == "struct":
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), each, item)
        elif each.get("name") in _LOGICAL:
            getattr(message, name).SetInParent()
            _fill_logical(getattr(message, name), each, item)
        elif message.DESCRIPTOR.fields_by_name[name].message_type is not None:
            getattr(message, name).SetInParent()
            getattr(message, name).value = _scalar(each, item)
        else:
            setattr(message, name, _scalar(each, item))
    return message


def _append(items: Any, connect: Mapping[str, Any], part: Any) -> None:
    if connect["type"] == "struct":
        _fill(items.add(), connect, part)
    elif connect.get("name") in _LOGICAL:
        _fill_logical(items.add(), connect, part)
    else:
        items.append(_scalar(connect, part))


def _scalar(connect: Mapping[str, Any], value: Any) -> Any:
    return b64decode(value) if connect["type"] == "bytes" else value


def _fill_logical(message: Any, connect: Mapping[str, Any], value: Any) -> None:
    match connect["name"].rpartition(".")[2]:
        case "Decimal":
            message.value, message.scale = b64decode(value), int(connect["parameters"]["scale"])
        case "Date":
            day = date(1970, 1, 1) + timedelta(days=value)
            message.year, message.month, message.day = day.year, day.month, day.day
        case "Time":
            clock = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value)
            message.hours, message.minutes, message.seconds = clock.hour, clock.minute, clock.second
            message.nanos = clock.microsecond * 1000
        case _:
            message.seconds, rest = divmod(value, 1000)
            message.nanos = rest * 1_000_000


class Written:
    """A Connect schema as the converter's Protobuf, and its values."""

    def __init__(self, connect: Mapping[str, Any], nullables: Nullables) -> None:
        """ValueError where the converter makes none of it."""
        self._connect = connect
        if connect["type"] != "struct":
            raise ValueError("no message")
        self.descriptors, name = descriptors_of(connect, nullables)
        try:
            self._message = message_of(self.descriptors, name)
        except TypeError:
            raise ValueError("Protobuf takes no such name") from None
        self.schema = ProtobufSchema(self.descriptors)

    def value(self, value: Mapping[str, Any]) -> bytes:
        """The value with its message indexes."""
        return b"\0" + _fill(self._message(), self._connect, value).SerializeToString()


_TOLD = frozenset((*_LOGICAL, "io.debezium.data.VariableScaleDecimal"))


def left(connect: Any) -> Any:
    """What Protobuf leaves of a Connect schema: of the names of types only those that are types there too."""
    if isinstance(connect, list):
        return [left(each) for each in connect]
    if not isinstance(connect, dict):
        return connect
    kept = {name: left(part) for name, part in connect.items() if name not in ("default", "version", "optional")}
    if connect.get("type") != "struct" and connect.get("name") not in _TOLD:
        kept.pop("name", None)
        kept.pop("parameters", None)
    return kept
