"""The words of a rule file: the fields this version takes, with what they mean, and those that come later.

The parser, the JSON Schema and the tests of docs/rules.md all read these tables, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping

from integrity.core.keys import KeyType

VERSION = 1

PARENT_FIELDS: Mapping[str, str] = {
    "version": "The version of the rule file format. Always 1.",
    "parent": "The name of the parent entity: lower-case letters, digits and _, unique over all rule files.",
    "events": "Where the parent's change events come from and how its key is read from them. Left out where the "
    "parent is what dependents of other files are made of: entity says so there.",
    "dependents": "The references to this parent, one entry for each table, collection or topic that holds its key.",
    "copies": "Tables, collections or topics that hold a copy of the parent's rows, one entry each.",
    "late_children": "Dependents that are written after their parent was deleted, and when they are looked for.",
}
PARENT_LATER = ("entity", "key")
LATE_CHILDREN_FIELDS: Mapping[str, str] = {
    "sweeps": "How long after a deletion or key change its key is looked at again, such as [1m, 10m, 1h]; []: never.",
}

EVENTS_FIELDS: Mapping[str, str] = {
    "topic": "The Kafka topic of the parent's events. Write one of topic, topics, pattern.",
    "topics": "Several Kafka topics of the parent's events. Write one of topic, topics, pattern.",
    "pattern": "A regular expression that the whole name of a topic fulfils: every such topic has events of the "
    "parent, also one that is made later. The group (?P<tenant>...) gives the tenant. Write one of topic, topics, "
    "pattern.",
    "format": "The format of the events.",
    "key": "The parent's key fields, in order, each with its type: {id: int64}. Found by name in the record key.",
    "tombstones": "What a null record without a deletion before it says: delete (the default) or ignore.",
    "truncate": "What a truncate of the parent's table does: ignore (the default) only reports it, delete_all deletes "
    "all parents that are known to live.",
    "deleted_when": "A CEL condition over before, after, source, op and headers: a create or update that fulfils it "
    "is a deletion.",
    "epoch": "Raise it by one when the source begins to count its versions anew. The default is 0.",
    "source": "The parent's own table or collection, where `integrity scan` looks up which parents there are.",
    "types": "Domain events: which types say that the parent was deleted, that its key changed, that it lives.",
    "type_from": "Where a domain event's type is: {header: eventType} or {field: type}.",
    "payload": "The field of the value that holds the payload. Left out, the value is the payload.",
    "new_key": "Of a type in key_changed: key field -> field of the payload that has its new value.",
    "key_from": "Where the key is: in the record key (record, the default), the payload or row, or rows (before).",
    "key_format": "How record keys are written: json (the default), string (bare text) or long (eight bytes).",
    "tenant": "What tells whose an event is, where the name of its topic does not.",
    "version": "The field of the value (of the payload, with types) whose whole number places a change in its order.",
    "pair_by": "What tells that a deletion and the creation right after it are one key change, where the source does "
    "not mark it: transaction, for rows of PostgreSQL that move between the partitions of a table.",
    "prefix": "What the names of added fields and headers begin with in a flattened topic (add.fields.prefix and "
    "add.headers.prefix). The default is __.",
}
TYPES_FIELDS: Mapping[str, str] = {
    "deleted": "The types that say: the parent was deleted.",
    "key_changed": "The types that say: the parent's key changed. new_key says where the new key is.",
    "upserted": "The types that say: the parent was created or changed, and lives. Copies take its row from them.",
}
TYPE_FROM_FIELDS: Mapping[str, str] = {
    "header": "The record header that holds the type, as text.",
    "field": "The field of the value that holds the type.",
}
TENANT_FIELDS: Mapping[str, str] = {
    "header": "The record header that holds the tenant, as text.",
    "field": "The field of the row, or of the payload, that holds it. Null records have none.",
    "key": "The field of the parent's key that is the tenant.",
}
KEY_FROM: Mapping[str, str] = {
    "record": "The record key.",
    "payload": "Of domain events and qlik: the fields of the payload, or row, that have the names of the key fields.",
    "before": "Of debezium: the fields of the rows before and after, where the record key is another one.",
}
SOURCE_FIELDS: Mapping[str, str] = {
    "store": "The store that the parents are in, a name of the settings (INTEGRITY_STORES__<NAME>__URL).",
    "table": "The PostgreSQL table of the parents; its columns are named as the key fields. Write table or collection.",
    "collection": "The MongoDB collection of the parents; its fields are named as the key fields.",
}
EVENTS_LATER: tuple[str, ...] = ()

DEPENDENT_FIELDS: Mapping[str, str] = {
    "name": "The name of this reference, unique in the file. The default is the table, collection or topic name.",
    "store": "The store the dependents are in, a name of the settings (INTEGRITY_STORES__<NAME>__URL).",
    "table": "The PostgreSQL table of the dependents: name or schema.name. Write one of table, collection, topic.",
    "collection": "The MongoDB collection of the dependents. Write one of table, collection, topic.",
    "topic": "The compacted Kafka topic of the dependents. Write one of table, collection, topic.",
    "references": "Dependent column or field -> parent key field. Every key field is named exactly once.",
    "array": "true: the field is a list of keys (collections only). An action changes the list, the document stays.",
    "match": "Composite references, as in SQL. simple (the default): with a null part it is none. full: all parts are "
    "null or none is; no action makes a mixed one.",
    "where": "Only rows with these values: column -> value, list of values, or null (is null).",
    "as_of": "The column that says when a row came to be. An event leaves rows alone that are younger than itself.",
    "on_delete": "What happens to the dependents when their parent is deleted.",
    "on_update": "What happens to the dependents when their parent's key changes. The default is cascade: they follow.",
    "max_rows": "At most so many rows for one event; above it the event is held: nothing changes until it is approved.",
    "undo": "Keep what rows were before an event changed them, that long: 30d. integrity undo puts them back.",
    "entity": "What the rows are: the file with this name as parent goes on with what depends on them.",
    "key": "The columns that name one of these rows, in order, each with its type: {id: int64}. Goes with entity.",
}
DEPENDENT_LATER: tuple[str, ...] = ()

COPY_FIELDS: Mapping[str, str] = {
    "name": "The name of this copy, unique in the file. The default is the table, collection or topic name.",
    "store": "The store the copy is in, a name of the settings (INTEGRITY_STORES__<NAME>__URL).",
    "table": "The PostgreSQL table of the copy: name or schema.name. Write one of table, collection, topic.",
    "collection": "The MongoDB collection of the copy. Write one of table, collection, topic.",
    "topic": "The compacted Kafka topic of the copy. Write one of table, collection, topic.",
    "columns": "Column or field of the copy -> field of the parent's row. Every field of events.key is copied once.",
    "on_delete": "What happens to the row of the copy when its parent is deleted. The default is delete.",
}
COPY_ACTIONS: Mapping[str, str] = {
    "delete": "Delete the row. On a topic: a null record.",
    "tombstone": "Mark the row as deleted. The first column of set is the marker. On a topic: a null record.",
}

ACTIONS: Mapping[str, str] = {
    "cascade": "On delete: delete the dependents. On update: their reference follows the key.",
    "nullify": "Set the reference to null; columns: only these of its columns, the others keep their value.",
    "set_default": "Set columns of the reference to these values; columns that are not named keep their value.",
    "tombstone": "Mark the dependents as deleted. The first column of set is the marker. On a topic: a null record.",
    "restrict": "Leave the dependents as they are, and report a violation when there are any.",
    "ignore": "Leave the dependents as they are.",
}
ON_DELETE = ("cascade", "nullify", "set_default", "tombstone", "restrict", "ignore")
ON_UPDATE = ("cascade", "nullify", "set_default", "restrict", "ignore")
NULLIFY_FIELDS: Mapping[str, str] = {"columns": "The columns of the reference that become null."}
TOMBSTONE_FIELDS: Mapping[str, str] = {
    "set": "Column -> value. The first is the marker: a row whose marker is not null is out of the rule's reach. "
    "$event.time, $event.id and $now stand for the time and id of the event and the current time.",
}

FORMATS: Mapping[str, str] = {
    "debezium": "Debezium's change event envelope as JSON, with or without schemas.",
    "mongodb": "Records of MongoDB's Kafka source connector: change events, or documents alone and null records.",
    "debezium-flat": "Rows as Debezium's ExtractNewRecordState leaves them, in every delete mode, as JSON.",
    "outbox": "Domain events that Debezium's EventRouter or MongoEventRouter takes from an outbox table; see types.",
    "cloudevents": "CloudEvents in Kafka, binary and structured, as JSON: domain events, or Debezium's change events.",
    "json": "A compacted topic used as a table: JSON objects, and null records for what is gone. With types: domain "
    "events as JSON objects.",
    "qlik": "Qlik Replicate's data messages as JSON.",
    "integrity": "Derived events of this program, written by another installation.",
}
FORMATS_OF_FIELD: Mapping[str, tuple[str, ...]] = {
    "tombstones": ("debezium", "mongodb", "debezium-flat", "outbox", "cloudevents", "json", "qlik"),
    "truncate": ("debezium",),
    "deleted_when": ("debezium", "mongodb", "debezium-flat", "cloudevents", "json"),
    "types": ("outbox", "cloudevents", "json"),
    "type_from": ("outbox", "json"),
    "payload": ("outbox", "json"),
    "new_key": ("outbox", "cloudevents", "json"),
    "key_from": ("debezium", "outbox", "cloudevents", "json", "qlik"),
    "key_format": ("debezium", "debezium-flat", "outbox", "cloudevents", "json", "qlik"),
    "version": ("debezium-flat", "outbox", "cloudevents", "json"),
    "pair_by": ("debezium",),
    "prefix": ("debezium-flat",),
}
"""The fields of `events` that not every format takes, and those that do."""
TYPES_REQUIRED = ("outbox",)
"""The formats that say nothing without `types`."""
COPIED_FORMATS = ("debezium", "mongodb", "debezium-flat", "outbox", "cloudevents", "json", "qlik")
"""The formats whose events hold the parent's row."""
KEY_FORMATS: Mapping[str, str] = {
    "json": "JSON: an object of the key's fields, or the one field's value; with or without its schema.",
    "string": "The text of the one key field, as a StringSerializer or StringConverter writes it.",
    "long": "Eight bytes, big endian, as a LongSerializer or LongConverter writes them.",
}
EPOCH_MAX = 1_000_000

KEY_TYPES: Mapping[str, str] = {
    KeyType.INT32: "A whole number of 32 bits.",
    KeyType.INT64: "A whole number of 64 bits.",
    KeyType.NUMERIC: "A decimal number, exact.",
    KeyType.STRING: "Text.",
    KeyType.UUID: "A UUID.",
    KeyType.BOOL: "true or false.",
    KeyType.DATE: "A date without a time.",
    KeyType.TIMESTAMP: "A moment, with its time zone.",
    KeyType.BYTES: "Bytes.",
    KeyType.OBJECTID: "A MongoDB ObjectId.",
}
# What people write from their database's habit; difflib cannot know these.
KEY_TYPE_HABITS: Mapping[str, str] = {
    "int": "int32 or int64",
    "integer": "int32",
    "smallint": "int32",
    "int2": "int32",
    "int4": "int32",
    "serial": "int32",
    "int8": "int64",
    "bigint": "int64",
    "bigserial": "int64",
    "long": "int64",
    "decimal": "numeric",
    "float": "numeric",
    "number": "numeric",
    "text": "string",
    "varchar": "string",
    "str": "string",
    "char": "string",
    "boolean": "bool",
    "datetime": "timestamp",
    "timestamptz": "timestamp",
    "bytea": "bytes",
    "oid": "objectid",
}
