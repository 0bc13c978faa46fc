"""What people get wrong in `events`: where it stands, what it is, and what mends it."""

from __future__ import annotations

import pytest

from integrity.core.rules.parse import parse_rules
from integrity.errors import RulesError

FILE = """\
version: 1
parent: customer
events:
  %s
dependents:
  - {store: orders_db, table: orders, references: {customer_id: id}, on_delete: cascade}
"""
DEBEZIUM = "topic: a\n  format: debezium\n  key: {id: int64}\n  "
FLAT, JSON, OUTBOX = (DEBEZIUM.replace("debezium", form) for form in ("debezium-flat", "json", "outbox"))
TYPED = OUTBOX + "types: {deleted: [D]}\n  "


@pytest.mark.parametrize(
    ("events", "place", "mend"),
    [
        ("topic: a\n  format: debezum\n  key: {id: int64}", (5, 11), "Did you mean debezium?"),
        ("topic: a\n  format: avro\n  key: {id: int64}", (5, 11), "Name what the records say."),
        ("topic: a\n  format: [debezium]\n  key: {id: int64}", (5, 11), "Write one text."),
        ("topic: a\n  format:\n  key: {id: int64}", (5, 10), "Write one text."),
        ("topic: a\n  key: {id: int64}", (4, 3), "Write format: debezium."),
        ("topic: a\n  format: debezium", (4, 3), "Write key: {id: int64}"),
        ("topic: a\n  format: debezium\n  key: id", (6, 8), "Write key: {id: int64}."),
        ("topic: a\n  format: debezium\n  key: {id: bigint}", (6, 13), "Did you mean int64?"),
        ("topic: a\n  format: debezium\n  key: {id: 5}", (6, 13), "Quote it if it is text."),
        ("topic: [a, b]\n  format: debezium\n  key: {id: int64}", (4, 10), "Write topics: [...] for several."),
        ("topic: a\n  topics: [b]\n  format: debezium\n  key: {id: int64}", (5, 3), "Leave the others out."),
        ("pattern: 'a('\n  format: debezium\n  key: {id: int64}", (4, 12), "It is one of Python's"),
        ("pattern: '(?P<tenent>x)'\n  format: debezium\n  key: {id: int64}", (4, 12), "Write (?:...) for it."),
        (DEBEZIUM + "tombstones: delet", (7, 15), "Did you mean delete?"),
        (DEBEZIUM + "truncate: yes", (7, 13), 'Write "yes" if it is text.'),
        (DEBEZIUM + "key_from: payload", (7, 13), "payload with domain events"),
        (DEBEZIUM + "key_from: before", (7, 3), "Write tombstones: ignore."),
        (FLAT + "key_from: before\n  tombstones: ignore", (7, 3), "It belongs to the formats debezium, outbox"),
        (FLAT + "pair_by: transaction", (7, 3), "It belongs to the format debezium."),
        (DEBEZIUM + "types: {deleted: [D]}", (7, 3), "It belongs to the formats outbox, cloudevents and json."),
        (OUTBOX, (4, 3), "Write types: {deleted: [CustomerDeleted]}"),
        (OUTBOX + "types: {delete: [D]}", (7, 11), "Did you mean deleted?"),
        (OUTBOX + "types: {deleted: D}", (7, 20), "Write [CustomerDeleted]."),
        (OUTBOX + "types: {deleted: [D], upserted: [D]}", (7, 36), "Let it stand in one of the lists, once."),
        (TYPED + "type_from: eventType", (8, 14), "Write type_from: {header: eventType}."),
        (DEBEZIUM + 'deleted_when: "after.gone =! null"', (7, 17), 'Write "after.deleted_at != null", for example.'),
        (DEBEZIUM + 'deleted_when: "aftr.gone != null"', (7, 17), 'Write "after.deleted_at != null", for example.'),
        (FLAT + 'deleted_when: "source.lsn > 5"', (7, 17), "Ask for after, op or headers."),
        (DEBEZIUM + 'epoch: "1"', (7, 10), "epoch: 1."),
        (DEBEZIUM + "epoch: -1", (7, 10), "Raise it by one, from 0 on"),
        (FLAT + "version: lsn", (7, 12), "Of the columns of a deleted row"),
        (FLAT + "prefix: ''", (7, 11), "Write a text."),
        (FLAT + "prefix: ' m'", (7, 11), "Write what add.fields.prefix and add.headers.prefix say"),
        (DEBEZIUM + "source: {store: a}", (7, 11), "Write one of table (PostgreSQL), collection (MongoDB)."),
        (JSON + "key_format: text", (7, 15), "key_format must be json, string or long"),
        (DEBEZIUM + "tenant: client_id", (7, 11), "Write tenant: {header: client_id}."),
        (DEBEZIUM + "tenant: {key: client_id}", (7, 11), "Write it in key, too: {client_id: string, ...}."),
        (DEBEZIUM + "tenant: {head: X}", (7, 12), "Did you mean header?"),
    ],
)
def test_mistake_is_told_where_it_stands_and_with_what_mends_it(events: str, place: tuple[int, int], mend: str) -> None:
    with pytest.raises(RulesError) as failure:
        parse_rules({"customer.yaml": FILE % events})
    [finding] = failure.value.findings
    assert (finding.line, finding.column) == place
    assert mend in f"{finding.message} {finding.hint}"
