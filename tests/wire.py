"""Records as Connect's converters for a schema registry write them, made from what the JsonConverter wrote."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import fastavro

from integrity.core.decode.record import Record
from integrity.core.decode.wire import SchemaRef, WireSchema, wire_schema
from tests.protobuf import Nullables, Written

_PRIMITIVES = {
    "int8": "int", "int16": "int", "int32": "int", "int64": "long", "float": "float", "double": "double",
    "boolean": "boolean", "string": "string", "bytes": "bytes",
}  # fmt: skip
_JSON_TYPES = {"int8": "integer", "int16": "integer", "int32": "integer", "int64": "integer", "float": "number",
               "double": "number", "boolean": "boolean", "string": "string", "bytes": "string"}  # fmt: skip


def avro_schema(connect: Mapping[str, Any], known: set[str] | None = None, path: str = "Top") -> Any:
    """The Avro schema that the AvroConverter makes of a Connect schema."""
    known = set() if known is None else known
    kind, name = connect["type"], connect.get("name")
    made: Any
    if kind == "struct":
        full = ".".join(part.replace("-", "_") for part in (name or f"ConnectDefault.{path}").split("."))
        if full in known:
            made = full
        else:
            known.add(full)
            namespace, _, short = full.rpartition(".")
            fields = [
                {"name": each["field"], "type": avro_schema(each, known, f"{path}_{each['field']}")}
                | ({"default": None} if each.get("optional") else {})
                for each in connect["fields"]
            ]
            made = {"type": "record", "name": short, "namespace": namespace, "fields": fields}
            made |= {"connect.name": name} if name else {}
    elif kind == "array":
        made = {"type": "array", "items": avro_schema(connect["items"], known, f"{path}_item")}
    elif kind == "map":
        made = {"type": "map", "values": avro_schema(connect["values"], known, f"{path}_value")}
    else:
        made = {"type": _PRIMITIVES[kind]}
        made |= {"connect.type": kind} if kind in ("int8", "int16") else {}
        if name:
            made |= {"connect.name": name}
        if parameters := connect.get("parameters"):
            made |= {"connect.parameters": parameters}
        if name == "org.apache.kafka.connect.data.Decimal":
            made |= {"logicalType": "decimal", "scale": int(parameters["scale"]), "precision": 64}
        if len(made) == 1:
            made = made["type"]
    return ["null", made] if connect.get("optional") else made


def json_schema(connect: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema that the JsonSchemaConverter makes of a Connect schema."""
    kind = connect["type"]
    made: dict[str, Any]
    if kind == "struct":
        fields = connect["fields"]
        properties = {each["field"]: json_schema(each) | {"connect.index": i} for i, each in enumerate(fields)}
        made = {"type": "object", "properties": properties}
    elif kind == "array":
        made = {"type": "array", "items": json_schema(connect["items"])}
    elif kind == "map":
        made = {"type": "object", "connect.type": "map", "additionalProperties": json_schema(connect["values"])}
    else:
        made = {"type": _JSON_TYPES[kind]}
        if kind not in ("string", "boolean"):
            made["connect.type"] = {"float": "float32", "double": "float64"}.get(kind, kind)
    for source, target in (("name", "title"), ("parameters", "connect.parameters"), ("version", "connect.version")):
        if source in connect:
            made[target] = connect[source]
    return {"oneOf": [{"type": "null"}, made]} if connect.get("optional") else made


def _value(connect: Mapping[str, Any], value: Any) -> Any:
    """What the writer of Avro takes for a value of the JsonConverter."""
    if value is None:
        return None
    match connect["type"]:
        case "struct":
            return {each["field"]: _value(each, value.get(each["field"])) for each in connect["fields"]}
        case "array":
            return [_value(connect["items"], each) for each in value]
        case "map":
            return {name: _value(connect["values"], each) for name, each in value.items()}
        case "bytes":
            return b64decode(value)
        case _:
            return value


def written(schema: Any, value: Any) -> bytes:
    """The value in Avro's binary form, by another writer than what is tested; logical types are left alone."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(_bare(schema)), value)
    return out.getvalue()


def _bare(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if isinstance(schema, dict):
        return {key: _bare(each) for key, each in schema.items() if key not in ("logicalType", "precision", "scale")}
    return schema


class Converter:
    """Makes records of those with JSON and its schema, and knows the schemas as a registry does."""

    def __init__(self, kind: str = "AVRO", nullables: Nullables = Nullables.OPTIONAL) -> None:
        self.kind = kind
        self._nullables = nullables
        self._protobuf: dict[str, tuple[int, Written] | None] = {}
        self.texts: dict[str, int] = {}
        self.schemas: dict[SchemaRef, WireSchema] = {}
        self._made: dict[str, Any] = {}

    def id_of(self, text: str) -> int:
        if text not in self.texts:
            self.texts[text] = len(self.texts) + 1
            self.schemas[self.texts[text]] = wire_schema(self.kind, text, ())
        return self.texts[text]

    def part(self, data: bytes | None) -> bytes | None:
        """A key or value; what is not JSON with its schema stays as it is."""
        document = json.loads(data) if data is not None and data.startswith(b"{") else None
        if not isinstance(document, dict) or document.keys() != {"schema", "payload"} or not document["schema"]:
            return data
        connect, payload = document["schema"], document["payload"]
        text = json.dumps(connect)
        if self.kind == "PROTOBUF":
            return self._in_protobuf(text, connect, payload) or data
        if text not in self._made:
            self._made[text] = avro_schema(connect) if self.kind == "AVRO" else json_schema(connect)
        if self.kind == "JSON":
            body = json.dumps(payload, separators=(",", ":")).encode()
        else:
            body = written(self._made[text], _value(connect, payload))
        return b"\0" + self.id_of(json.dumps(self._made[text])).to_bytes(4, "big") + body

    def _in_protobuf(self, text: str, connect: Mapping[str, Any], payload: Any) -> bytes | None:
        """None: the converter can't write it."""
        if text not in self._protobuf:
            try:
                written = Written(connect, self._nullables)
            except ValueError:
                self._protobuf[text] = None
            else:
                id_ = len(self.schemas) + 1
                self.schemas[id_], self._protobuf[text] = written.schema, (id_, written)
        found = self._protobuf[text]
        if found is None or payload is None:
            return None
        try:
            return b"\0" + found[0].to_bytes(4, "big") + found[1].value(payload)
        except ValueError:
            return None

    def record(self, record: Record) -> Record:
        return record._replace(key=self.part(record.key), value=self.part(record.value))
