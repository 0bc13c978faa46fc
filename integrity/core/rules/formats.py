"""Which fields of `events` go with its format, and with each other."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from integrity.core.rules.findings import FindingCode, Located, Report, listed
from integrity.core.rules.model import Types
from integrity.core.rules.vocabulary import FORMATS, FORMATS_OF_FIELD, TYPES_REQUIRED
from integrity.core.rules.walk import Fields

_OF_ROWS: Final = ("deleted_when", "truncate")
_OF_DOMAIN_EVENTS: Final = ("type_from", "payload", "new_key", "key_from")
_OF_DOMAIN_EVENTS_ALONE: Final = {"cloudevents": "version"}
"""Fields of formats whose other events know better."""


def check_format(report: Report, fields: Fields, kind: str, types: Types | None, several: Located | None) -> None:
    """Reports the fields that would do nothing, or the wrong thing, in events of this format. `several` is where the
    rule says that the events of one key may be in several topics."""
    are_domain_events = "types" in fields or kind in TYPES_REQUIRED
    could_be = kind in FORMATS_OF_FIELD["types"]
    for name, (key, _) in fields.items():
        known = FORMATS_OF_FIELD.get(name, FORMATS)
        if kind not in known:
            message = f"events of the format {kind} have no {name}"
            report.add(FindingCode.FORMAT_FIELD, message, key, f"It belongs to {_formats(known)}.")
        elif are_domain_events and name in _OF_ROWS:
            message = f"domain events have no {name}"
            report.add(FindingCode.FORMAT_FIELD, message, key, "Leave it out, or leave types out.")
        elif are_domain_events or not could_be:
            continue
        elif name in _OF_DOMAIN_EVENTS or _OF_DOMAIN_EVENTS_ALONE.get(kind) == name:
            message = f"events of the format {kind} without types have no {name}"
            report.add(FindingCode.FORMAT_FIELD, message, key, "Leave it out, or write types.")
    if types is not None and types.key_changed and several is not None and "version" not in fields:
        message = "types has key_changed, and nothing orders the keys of several topics"
        report.add(FindingCode.FORMAT_FIELD, message, several, "Write one topic, or version.")


def _formats(names: Collection[str]) -> str:
    return f"the format{'s' if len(names) > 1 else ''} {listed(names, 'and')}"
