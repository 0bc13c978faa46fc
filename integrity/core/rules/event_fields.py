"""The fields of `events` that depend on its format: `version`, `key_format`, `key_from`, `pair_by`, `prefix`, and what
`deleted_when` may ask for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from integrity.core.condition import NAMES as CONDITION_NAMES
from integrity.core.condition import Condition
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules import names
from integrity.core.rules.document import Node
from integrity.core.rules.findings import FindingCode, Report, listed, shown
from integrity.core.rules.model import DEFAULT_PREFIX, KeyFormat, KeyFrom, PairBy, TargetKind, Tombstones
from integrity.core.rules.vocabulary import FORMATS_OF_FIELD, KEY_FORMATS
from integrity.core.rules.walk import Fields, choice_of, text_of

_NOT_TOLD: Final[Mapping[str, Collection[str]]] = {
    "debezium-flat": ("before", "source"),
    "json": ("before", "source", "op"),
}
"""What a condition can't ask for, by format."""


def read_prefix(report: Report, fields: Fields) -> str:
    """What the names of added fields begin with."""
    text = text_of(report, "prefix", fields["prefix"][1]) if "prefix" in fields else None
    if text is None:
        return DEFAULT_PREFIX
    if fault := names.prefix_fault(text.value):
        hint = "Write what add.fields.prefix and add.headers.prefix say at the transform."
        report.add(FindingCode.UNKNOWN_VALUE, f"the prefix {shown(text.value)} {fault}", text, hint)
        return DEFAULT_PREFIX
    return text.value


def read_version(report: Report, fields: Fields, form: str | None, prefix: str) -> tuple[str, ...] | None:
    """The path of the field that places a change; None where the format itself knows. `prefix` is that of fields which
    flattening adds."""
    if "version" not in fields:
        return None
    _, node = fields["version"]
    text = text_of(report, "version", node)
    if text is None or form is None:
        return None
    if fault := names.column_fault(TargetKind.TOPIC, text.value):
        report.add(FindingCode.BAD_COLUMN, f"the field {shown(text.value)} of version {fault}", text)
        return None
    if form == "debezium-flat" and ("." in text.value or not text.value.startswith(prefix)):
        message = f"version must be a field that add.fields adds, not {shown(text.value)}: it begins with {prefix}"
        hint = "Of the columns of a deleted row only those of the key are sure to be real."
        report.add(FindingCode.UNKNOWN_VALUE, message, text, hint)
        return None
    return tuple(text.value.split("."))


def read_key_format(report: Report, fields: Fields, key: KeySpec | None) -> KeyFormat:
    """How record keys are written; JSON where the rule does not say."""
    if "key_format" not in fields:
        return KeyFormat.JSON
    _, node = fields["key_format"]
    word = choice_of(report, "key_format", node, KEY_FORMATS)
    if word is None or key is None:
        return KeyFormat.JSON
    chosen = KeyFormat(word)
    if chosen is KeyFormat.JSON:
        return chosen
    if len(key.fields) > 1:
        message = f"a key of {len(key.fields)} fields is no bare {chosen}"
        report.add(FindingCode.UNKNOWN_VALUE, message, node, "Leave key_format out: such a key is a JSON object.")
    elif chosen is KeyFormat.LONG and key.types[0] is not KeyType.INT64:
        message = f"a long is an int64, not {key.types[0]}"
        report.add(FindingCode.UNKNOWN_VALUE, message, node, "Write key: {id: int64}, or leave key_format out.")
    elif chosen is KeyFormat.STRING and key.types[0] is KeyType.BYTES:
        report.add(FindingCode.UNKNOWN_VALUE, "bytes have no text", node, "Write keys with the JsonConverter.")
    else:
        return chosen
    return KeyFormat.JSON


def check_key_from(report: Report, fields: Fields, form: str | None, key_from: str | None, *, several: bool) -> None:
    """Reports what does not go with where the key is. `several`: events of one key may be in several topics."""
    if key_from is None or key_from == KeyFrom.RECORD or form not in FORMATS_OF_FIELD["key_from"]:
        return
    at, node = fields["key_from"]
    if (key_from == KeyFrom.BEFORE) != (form == "debezium"):
        message = f"events of the format {form} have no {key_from} that the key could be read from"
        hint = "Write before with debezium, payload with domain events, or leave key_from out."
        report.add(FindingCode.FORMAT_FIELD, message, node, hint)
        return
    if "key_format" in fields:
        message = f"key_format says how record keys are written, and the key is in {key_from}"
        report.add(FindingCode.FORMAT_FIELD, message, fields["key_format"][0], "Leave key_format out.")
    if key_from != KeyFrom.BEFORE:
        return
    if "deleted_when" in fields:
        message = "deleted_when does not go with key_from: before"
        report.add(FindingCode.FORMAT_FIELD, message, fields["deleted_when"][0], "Leave one of them out.")
    if several:
        message = "key_from: before needs one topic: nothing orders the events of a key over several"
        report.add(FindingCode.FORMAT_FIELD, message, at, "Write one topic.")
    tombstones = fields.get("tombstones")
    if tombstones is None or getattr(tombstones[1], "value", None) != Tombstones.IGNORE:
        message = "key_from: before needs tombstones: ignore: a null record has no row that its key could be read from"
        report.add(FindingCode.FORMAT_FIELD, message, at, "Write tombstones: ignore.")


def read_pair_by(report: Report, fields: Fields, *, several: bool) -> PairBy | None:
    """What pairs a deletion and a creation. `several`: the two may be in several topics."""
    if "pair_by" not in fields:
        return None
    at, node = fields["pair_by"]
    word = choice_of(report, "pair_by", node, [*PairBy])
    if several:
        message = "pair_by needs one topic: of several, nothing tells what comes right after a deletion"
        report.add(FindingCode.FORMAT_FIELD, message, at, "Write one topic, or a pattern with a group tenant.")
    if "key_from" in fields and getattr(fields["key_from"][1], "value", None) == KeyFrom.BEFORE:
        message = "pair_by does not go with key_from: before"
        report.add(FindingCode.FORMAT_FIELD, message, at, "Leave one of them out.")
    return None if word is None else PairBy(word)


def check_condition(report: Report, node: Node, condition: str, form: str | None) -> None:
    """Reports what a condition asks for and the events of that format do not tell."""
    asked = sorted(Condition(condition).names & set(_NOT_TOLD.get(form or "", ())))
    if asked:
        message = f"the condition names {', '.join(asked)}, which events of format {form} do not tell"
        told = [name for name in CONDITION_NAMES if name not in _NOT_TOLD[form or ""]]
        report.add(FindingCode.BAD_CONDITION, message, node, f"Ask for {listed(told)}.")
