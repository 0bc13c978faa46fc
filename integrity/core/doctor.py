"""What only a look at the live world can tell of rules, beside what stores say of themselves: judged here, from values.

Every finding has the place of its rule and says how to mend it. An error is what loses events or leaves them undone;
what costs something in a case that may come is a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Final, NamedTuple

from integrity.core.change import Op, ParentChange
from integrity.core.condition import Condition
from integrity.core.decode.cloudevents import change_event
from integrity.core.decode.connectors import POSTGRESQL, SQLSERVER, connector_in
from integrity.core.decode.debezium import NEW_KEY, OLD_KEY
from integrity.core.decode.debezium_documents import MONGODB
from integrity.core.decode.halves import pair
from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.positions import PLACES
from integrity.core.decode.qlik import message_of
from integrity.core.decode.record import Decoded, Decoder, Half, Ignored, Limits, Record, Undecodable
from integrity.core.duration import duration_text
from integrity.core.fold import Replace
from integrity.core.keys import Key, KeyType
from integrity.core.policy import policy_of
from integrity.core.rules.model import Dependent, KeyFrom, Parent, Place, RuleSet, Tombstones
from integrity.errors import Finding

CLOCK_MS_MAX: Final = 2_000
"""A clock further away from ours is told: `as_of` compares times of two machines."""
FUTURE_MS_MAX: Final = 60_000
RETENTION_MS_MIN: Final = 7 * 24 * 60 * 60 * 1000
"""How long a deletion should be there: a store may be away for some days. Kafka keeps records that long by default, but
not null records of compacted topics (24 h)."""
_COLLATING: Final = frozenset({"mysql", "mariadb", "sqlserver"})
"""Sources whose text compares without regard to case, or to trailing spaces, unless told otherwise."""
_UNSIGNED: Final = frozenset({"mysql", "mariadb"})

_MADE_UP: Final = frozenset({0, "", b"\0", date(1970, 1, 1), datetime(1970, 1, 1, tzinfo=UTC)})
"""What Debezium writes in a column that may not be null and is not in PostgreSQL's log. A boolean is left out: half of
all keys have it."""

_LIMITS: Final = Limits()


class TopicLook(NamedTuple):
    """A topic as the broker has it, and its last records."""

    name: str
    partitions: int
    config: Mapping[str, str]
    last: Sequence[Record]


# --- topics -------------------------------------------------------------------------------------------------------


def of_topics(parent: Parent, looks: Mapping[str, TopicLook], decoder: Decoder, now_ms: int) -> list[Finding]:
    """What the topics of a parent's own events tell; one that is not in `looks` does not exist."""
    events = parent.events
    if events is None:
        return []
    findings: list[Finding] = []
    if not events.topics:
        message, hint = f"no topic fulfils the pattern {events.pattern!r}", "look at it again, or start the connector"
        findings.append(_at(parent.place, "missing_topic", message, hint))
    for topic in events.topics:
        look = looks.get(topic)
        if look is None:
            message = f"topic {topic!r} does not exist"
            findings.append(_at(parent.place, "missing_topic", message, "create it, or start the connector"))
        else:
            findings += [*_kept(parent, look), *_of_domain(parent, look), *_told(parent, look, decoder, now_ms)]
    counts = {topic: looks[topic].partitions for topic in events.topics if topic in looks}
    if events.several_topics and len(set(counts.values())) > 1:
        listed = ", ".join(f"{topic}: {count}" for topic, count in counts.items())
        message = f"the topics of {parent.entity} have different numbers of partitions ({listed})"
        hint = "events of one key in two topics are in order by their versions alone; give them the same number"
        findings.append(_at(parent.place, "partitions_differ", message, hint, "warning"))
    return findings


def _kept(parent: Parent, look: TopicLook) -> Iterator[Finding]:
    """How long records stay."""
    assert parent.events is not None
    policies = look.config.get("cleanup.policy", "delete").split(",")
    if "compact" in policies:
        if parent.events.tombstones is Tombstones.IGNORE:
            message = f"topic {look.name!r} is compacted: of a deletion its null record may be all that is left"
            yield _at(parent.place, "deletions_compacted", message, "write tombstones: delete, which is the default")
        yield from _gone_after(parent, look, "delete.retention.ms")
    if "delete" in policies:
        yield from _gone_after(parent, look, "retention.ms")
        size = _number(look, "retention.bytes")
        if size is not None and size >= 0:
            message = (
                f"topic {look.name!r} keeps {size} bytes of each partition, however young its records are: deletions"
                " before that are gone"
            )
            hint = f"{_FORGOTTEN}: kafka-configs.sh --alter --topic {look.name} --add-config retention.bytes=-1"
            yield _at(parent.place, "retention_short", message, hint, "warning")


_FORGOTTEN: Final = "a new rule, or a store that was away for longer, misses them: run integrity scan. To keep them"


def _gone_after(parent: Parent, look: TopicLook, setting: str) -> Iterator[Finding]:
    """Deletions that this setting lets the topic forget before a store that is away may have read them."""
    kept_ms = _number(look, setting)
    if kept_ms is None or not 0 <= kept_ms < RETENTION_MS_MIN:
        return
    message = f"deletions older than {duration_text(kept_ms)} are gone from topic {look.name!r} ({setting})"
    hint = f"{_FORGOTTEN}: kafka-configs.sh --alter --topic {look.name} --add-config {setting}={RETENTION_MS_MIN}"
    yield _at(parent.place, "retention_short", message, hint, "warning")


def _number(look: TopicLook, setting: str) -> int | None:
    text = look.config.get(setting)
    return None if text is None else int(text)


def _of_domain(parent: Parent, look: TopicLook) -> Iterator[Finding]:
    """What domain events can't tell, and a topic of them must not be; also where keys are in the rows."""
    assert parent.events is not None
    types = parent.events.types
    from_rows = parent.events.key_from is KeyFrom.BEFORE
    key_changes = types is not None and bool(types.key_changed) and parent.events.version is None
    if (from_rows or key_changes) and look.partitions > 1:
        message = f"topic {look.name!r} has {look.partitions} partitions, and nothing orders key changes over them"
        version = "" if from_rows else ", or name the field of their version: events.version"
        hint = f"give the events a topic of one partition{version}"
        yield _at(parent.place, "key_changes_unordered", message, hint)
    if types is None:
        return
    if "compact" in look.config.get("cleanup.policy", "delete").split(","):
        message = f"topic {look.name!r} is compacted: of a key's domain events only the last one stays"
        hint = f"kafka-configs.sh --alter --topic {look.name} --add-config cleanup.policy=delete"
        yield _at(parent.place, "events_compacted", message, hint)
    if parent.events.version is None:
        message = f"the events of topic {look.name!r} are placed by their Kafka offset"
        hint = "name a field of the payload that grows (version): the offset knows no event that is emitted again"
        yield _at(parent.place, "kafka_position_only", message, hint, "warning")


class Event(NamedTuple):
    """What is of interest of an envelope. `table` is as SQL names it, `transaction` as the source does, if at all."""

    op: object
    connector: object
    table: str
    has_before: bool
    transaction: object = None


def _told(parent: Parent, look: TopicLook, decoder: Decoder, now_ms: int) -> Iterator[Finding]:
    """What the last records say of their source, and whether they can be read."""
    assert parent.events is not None
    if not look.last:
        message = f"topic {look.name!r} holds no record: what its events look like could not be seen"
        yield _at(parent.place, "no_events", message, "run doctor again when there are some", "warning")
        return
    yield from _of_halves(parent, look, decoder)
    told = _said(look.last, decoder)
    refused = Counter(said for said in told if isinstance(said, Undecodable))
    changes = [said for said in told if isinstance(said, ParentChange)]
    if refused:
        [(first, _)] = refused.most_common(1)
        count = refused.total()
        message = f"{count} of the last {len(look.last)} records of topic {look.name!r} would become dead letters"
        hint = f"{first.reason.value}: {first.message} docs/errors.md says what to do."
        yield _at(parent.place, "undecodable_events", message, hint)
    newest_ms = max(record.timestamp_ms for record in look.last)
    if newest_ms > now_ms + FUTURE_MS_MAX:
        message = f"records of topic {look.name!r} are {(newest_ms - now_ms) // 1000} s in the future"
        yield _at(parent.place, "clock_ahead", message, "set the clocks of brokers and producers by NTP", "warning")
    if parent.events.format == "mongodb":
        yield from _of_documents(parent, look.name, told)
        hint = (
            "MongoDB's connector writes none after change events: let the topic forget by time (cleanup.policy=delete)"
        )
        yield from _kept_for_ever(parent, look, changes, hint)
        return
    if parent.events.format in ("debezium-flat", "json"):
        if parent.events.types is None:
            yield from _of_rows(parent, look.name, changes)
            yield from _of_lost_marks(parent, look.name, changes)
        if parent.events.format == "debezium-flat":
            hint = "set delete.tombstone.handling.mode=rewrite-with-tombstone"
            yield from _kept_for_ever(parent, look, changes, hint)
        return
    if parent.events.types is not None:
        return
    yield from _of_null_records(parent, look, changes)
    yield from _of_lost_marks(parent, look.name, changes)
    if parent.events.format == "qlik":
        yield from _of_messages(parent, look)
        return
    events = [event for record in look.last if (event := event_of(record)) is not None]
    yield from _of_source(parent, look.name, events)
    connectors = {each.connector for each in events}
    yield from _of_keys(parent, look.name, connectors, [change.key for change in changes])
    if connectors == {POSTGRESQL} and parent.events.key_from is KeyFrom.RECORD:
        yield from _of_identity(parent, look.name, changes, events[-1].table)


def _of_null_records(parent: Parent, look: TopicLook, changes: Sequence[ParentChange]) -> Iterator[Finding]:
    """Whether null records follow deletions where they are needed, and deletions are told at all."""
    ops = {change.op for change in changes}
    yield from _kept_for_ever(parent, look, changes, "let the source write them (Debezium: tombstones.on.delete=true)")
    if Op.ARRIVED in ops and not ops & {Op.DELETED, Op.MOVED, Op.GONE}:
        message = f"key changes arrive in topic {look.name!r}, and no deletion is among its last records"
        hint = "see that skipped.operations at the connector leaves out no d; integrity scan finds what was missed"
        yield _at(parent.place, "deletions_dropped", message, hint, "warning")


def _kept_for_ever(parent: Parent, look: TopicLook, changes: Sequence[ParentChange], hint: str) -> Iterator[Finding]:
    """Whether compaction never ends a key, since no null record of Kafka's does."""
    is_compacted = "compact" in look.config.get("cleanup.policy", "delete").split(",")
    has_ended = any(change.op in (Op.DELETED, Op.GONE) for change in changes)
    if is_compacted and has_ended and all(record.value is not None for record in look.last):
        message = f"topic {look.name!r} is compacted, and no null record follows its deletions: every deleted key stays"
        yield _at(parent.place, "no_tombstones", message, hint, "warning")


def _of_messages(parent: Parent, look: TopicLook) -> Iterator[Finding]:
    """What the messages of Qlik Replicate do not tell."""
    told = [message_of(record, _LIMITS) for record in look.last]
    if any(each is not None and each.operation == "UPDATE" and not each.has_before for each in told):
        message = (
            f"updates in topic {look.name!r} come without the row before: a change of the key looks like any other"
        )
        hint = "let the task write beforeData; until then integrity scan finds what a key change leaves behind"
        yield _at(parent.place, "key_changes_untold", message, hint, "warning")


def _said(records: Sequence[Record], decoder: Decoder) -> list[Decoded]:
    """What the records say, as a lane reads them: in their order in each partition."""
    of: dict[int, list[Record]] = {}
    for record in records:
        of.setdefault(record.partition, []).append(record)
    found: list[Decoded] = []
    for each in of.values():
        said = pair(each, decoder, is_over=True, is_apart=False).said
        # The deletion that a first null record repeats was not looked at.
        found += said[1:] if each[0].value is None and isinstance(said[0], Undecodable) else said
    return found


def _of_halves(parent: Parent, look: TopicLook, decoder: Decoder) -> Iterator[Finding]:
    """What key changes without a mark ask for."""
    assert parent.events is not None
    if look.partitions > 1 and any(isinstance(decoder(record), Half) for record in look.last):
        message = f"topic {look.name!r} has {look.partitions} partitions, and its source does not mark key changes"
        hint = "give it one partition: what follows a deletion tells whether it is one; till then it is a dead letter"
        yield _at(parent.place, "key_changes_unordered", message, hint)
    of_sqlserver = [event for record in look.last if (event := event_of(record)) and event.connector == SQLSERVER]
    # Flattening may leave null records out, and halves are of SQL Server there.
    is_flat = parent.events.format == "debezium-flat"
    of_flat = is_flat and any(isinstance(decoder(record), Half) for record in look.last)
    asked = [each for each in look.last if each.value is None] if is_flat else look.last
    is_silent = parent.events.tombstones is Tombstones.IGNORE or all(connector_in(each.headers) for each in asked)
    if (of_sqlserver or of_flat) and not is_silent:
        message = (
            f"null records in topic {look.name!r} do not tell that they are of SQL Server: alone, one is a deletion"
        )
        hint = (
            "it may be half of a key change: write tombstones: ignore, or let Debezium 3.5 or later write its headers"
        )
        yield _at(parent.place, "null_records_unmarked", message, hint, "warning")
    if parent.events.format == "debezium" and parent.events.pair_by is None and _has_moved(look.last):
        message = f"in topic {look.name!r} a deletion and a creation of one transaction follow each other, unmarked"
        hint = (
            "if it is a row that moves between the partitions of a table: pair_by: transaction and a topic of one "
            "partition; as it is, what depends on such a row is treated as if it were deleted"
        )
        yield _at(parent.place, "moves_unpaired", message, hint, "warning")


def _has_moved(records: Sequence[Record]) -> bool:
    """Whether PostgreSQL deletes a row and creates one of another key right after it, by the same transaction."""
    gone: dict[int, tuple[bytes | None, object]] = {}
    for record in records:
        event = event_of(record)
        if event is None or event.connector != POSTGRESQL:
            continue
        before = gone.pop(record.partition, None)
        is_marked = any(name in (NEW_KEY, OLD_KEY) for name, _ in record.headers)
        if is_marked or event.transaction is None:
            continue
        if event.op == "d":
            gone[record.partition] = record.key, event.transaction
        elif event.op == "c" and before is not None and before[1] == event.transaction and before[0] != record.key:
            return True
    return False


def _of_keys(parent: Parent, topic: str, connectors: Collection[object], keys: Sequence[Key]) -> Iterator[Finding]:
    """What the keys of a source may mean besides what is read."""
    collating = _COLLATING.intersection(connectors)
    if collating and KeyType.STRING in parent.key.types:
        message = f"keys of topic {topic!r} are text, and {min(collating)} may call two of them equal that differ in"
        hint = "dependents are found letter for letter: a binary collation of the key column, or a key of another type"
        yield _at(parent.place, "keys_collated", f"{message} case, accents or trailing spaces", hint, "warning")
    unsigned = _UNSIGNED.intersection(connectors)
    if unsigned and any(type(part) is int and part < 0 for key in keys for part in key):
        message = f"keys of topic {topic!r} are below 0: a bigint unsigned of {min(unsigned)} beyond 2^63-1 is sent so"
        hint = "if it is one: bigint.unsigned.handling.mode=precise, schemas.enable=true and the key type numeric"
        yield _at(parent.place, "keys_negative", message, hint, "warning")


def _of_identity(parent: Parent, topic: str, changes: Sequence[ParentChange], table: str) -> Iterator[Finding]:
    """Whether keys of deletions are made up. That one looks so proves nothing, that it died twice without a life
    between does."""
    gone = {(each.key, each.version) for each in changes if each.op in (Op.DELETED, Op.MOVED)}
    deaths = Counter(key for key, _ in gone if any(part in _MADE_UP and part is not False for part in key))
    if not deaths:
        return
    lived = {each.key for each in changes if each.op in (Op.ALIVE, Op.ARRIVED)}
    is_proven = any(count > 1 and key not in lived for key, count in deaths.items())
    message = (
        f"the keys of {deaths.total()} deletions or key changes in topic {topic!r} have a part that is 0 or empty, as"
        " Debezium makes up what the replica identity does not have"
    )
    hint = (
        f"If no row had such a key: ALTER TABLE {table} REPLICA IDENTITY DEFAULT; (its primary key), or FULL, if the"
        " key is not the primary key. With events.source, run and doctor look at the table itself."
    )
    yield _at(parent.place, "key_made_up", message, hint, "error" if is_proven else "warning")


def _of_lost_marks(parent: Parent, topic: str, changes: Sequence[ParentChange]) -> Iterator[Finding]:
    """Whether a key is deleted and another created by one and the same change of the source: no two others have one
    place in its log."""
    placed = [each for each in changes if each.version is not None and not _by_offset(each)]
    gone = {each.version: each.key for each in placed if each.op is Op.DELETED}
    if any(each.op is Op.ALIVE and gone.get(each.version, each.key) != each.key for each in placed):
        message = f"key changes in topic {topic!r} have lost their headers {NEW_KEY} and {OLD_KEY}"
        hint = "they are taken for deletions: let no transform, mirror or proxy drop headers"
        yield _at(parent.place, "key_changes_unmarked", message, hint)


def _by_offset(change: ParentChange) -> bool:
    """Whether a change is placed by its Kafka offset, or just behind it."""
    offset = change.origin.offset
    return change.version is not None and change.version.position in ((offset,), (offset, 1))


def _of_rows(parent: Parent, topic: str, changes: Sequence[ParentChange]) -> Iterator[Finding]:
    """What rows and null records without an envelope tell of their source."""
    assert parent.events is not None
    is_flat = parent.events.format == "debezium-flat"
    seen = {change.op for change in changes}
    has_moved = any(change.to is not None for change in changes)
    if is_flat and Op.ARRIVED in seen and not has_moved and not seen & {Op.DELETED, Op.GONE}:
        message = f"key changes arrive in topic {topic!r}, but no deletion does: the connector drops them"
        hint = "set delete.tombstone.handling.mode=rewrite-with-tombstone; integrity scan finds what was missed"
        yield _at(parent.place, "deletions_dropped", message, hint)
    if any(map(_by_offset, changes)):
        message = f"the events of topic {topic!r} are placed by their Kafka offset"
        how = "name a field that grows: version"
        if is_flat:
            how = (
                "let add.fields and add.headers tell op and lsn, and the rule their prefix, where it is another than __"
            )
        hint = f"that does not protect against a source that emits an old event again; {how} (docs/rules.md)"
        yield _at(parent.place, "kafka_position_only", message, hint, "warning")
    elif is_flat and Op.GONE in seen and not seen & {Op.DELETED, Op.MOVED}:
        message = f"deletions in topic {topic!r} are null records that tell no position"
        hint = "an old one that is emitted again counts as new; let add.headers tell it, as add.fields does for rows"
        yield _at(parent.place, "deletions_unplaced", message, hint, "warning")


def _of_source(parent: Parent, topic: str, events: Sequence[Event]) -> Iterator[Finding]:
    assert parent.events is not None
    others = sorted({each.connector for each in events if isinstance(each.connector, str)} - PLACES.keys() - {MONGODB})
    if others:
        message = f"the events of topic {topic!r} ({', '.join(others)}) are placed by their Kafka offset"
        hint = "that protects against redelivery, not against a source that emits an old event again"
        yield _at(parent.place, "kafka_position_only", message, hint, "warning")
    if any(each.op == "t" for each in events):
        deletes = parent.truncates
        does = "deletes the parents that are known to live" if deletes else "changes nothing"
        message = f"a truncate is among the last records of topic {topic!r}: it {does}"
        rest = "on other parents" if deletes else "on the rows"
        hint = f"what depended {rest} is still there: integrity scan finds it, integrity scan --repair mends it"
        yield _at(parent.place, "truncate_seen", message, hint, "warning")
    condition = parent.events.deleted_when
    bare = [each for each in events if each.op == "u" and not each.has_before and each.connector == "postgresql"]
    if condition is not None and "before" in Condition(condition).names and bare:
        message = f"deleted_when asks for the row before, which updates in topic {topic!r} do not have"
        hint = f"ALTER TABLE {bare[-1].table} REPLICA IDENTITY FULL;"
        yield _at(parent.place, "before_missing", message, hint)


def _of_documents(parent: Parent, topic: str, told: Sequence[Decoded]) -> Iterator[Finding]:
    """What the records of MongoDB's own connector tell."""
    if any(
        isinstance(said, ParentChange) and said.version is not None and len(said.version.position) == 1 for said in told
    ):
        message = f"topic {topic!r} has documents alone, which are placed by their Kafka offset"
        hint = (
            "change events (publish.full.document.only=false) have a place of the source; without it deletions need"
            " publish.full.document.only.tombstone.on.delete=true, or none is told"
        )
        yield _at(parent.place, "kafka_position_only", message, hint, "warning")
    if any(isinstance(said, Ignored) and said.op == "t" for said in told):
        message = (
            f"a collection that was dropped or renamed is among the last records of topic {topic!r}: it changes nothing"
        )
        hint = (
            "what depended on its documents is still there: integrity scan finds it, integrity scan --repair mends it"
        )
        yield _at(parent.place, "truncate_seen", message, hint, "warning")


def event_of(record: Record) -> Event | None:
    """None for what is no envelope, also inside of a CloudEvent."""
    found = _envelope_in(record)
    if found is None and (wrapped := change_event(record, _LIMITS)) is not None:
        found = _envelope_in(wrapped)
    if found is None:
        return None
    source = found["source"]
    assert isinstance(source, dict)
    table = ".".join(str(part) for part in (source.get("schema"), source.get("table")) if part)
    return Event(found.get("op"), source.get("connector"), table, found.get("before") is not None, source.get("txId"))


def _envelope_in(record: Record) -> Mapping[str, object] | None:
    try:
        found = None if record.value is None else parse(record.value, _LIMITS)
    except JsonFault:
        return None
    if isinstance(found, dict) and isinstance(found.get("payload"), dict) and "op" not in found:
        found = found["payload"]
    return found if isinstance(found, dict) and isinstance(found.get("source"), dict) else None


# --- defaults -----------------------------------------------------------------------------------------------------


class Default(NamedTuple):
    """A key that a rule leads references to."""

    dependent: Dependent
    key: Key
    entity: str


def defaults(rules: RuleSet) -> list[Default]:
    """The whole keys of `set_default`, of parents that can be looked up: their table is named, or they are the rows of
    dependents."""
    found: dict[tuple[str, Key], Default] = {}
    for parent in rules.parents:
        is_seen = rules.named(parent.entity) or (parent.events is not None and parent.events.source is not None)
        for dependent in parent.dependents if is_seen else ():
            policy = policy_of(dependent, parent.key)
            for step in (policy.on_delete, policy.on_update):
                if isinstance(step, Replace) and len(step.parts) == len(parent.key.fields) and step.refers:
                    parts = dict(step.parts)
                    key = tuple(value for i in range(len(parts)) if (value := parts[i]) is not None)
                    found.setdefault((dependent.id, key), Default(dependent, key, parent.entity))
    return list(found.values())


def of_default(default: Default, present: Collection[Key], where: str) -> list[Finding]:
    """A default that no row has; `present` are the keys that were found, `where` they were looked for in words."""
    if default.key in present:
        return []
    dependent = default.dependent
    message = f"{dependent.id}: no {default.entity} in {where} has the default key"
    hint = f"Insert that {default.entity}, or name the key of one that is there: rows led to it would refer to nothing."
    return [_at(dependent.place, "default_unreachable", message, hint)]


# --- clocks -------------------------------------------------------------------------------------------------------


def of_clock(store: str, away_ms: int) -> list[Finding]:
    """A database whose clock is `away_ms` before (or, negative, behind) ours."""
    if abs(away_ms) <= CLOCK_MS_MAX:
        return []
    where = "ahead of" if away_ms > 0 else "behind"
    message = f"the clock of store {store} is {abs(away_ms) / 1000:.1f} s {where} this machine's"
    return [
        Finding("clock_skew", message, "Set both by NTP: as_of and ages of sweeps compare times.", severity="warning")
    ]


def _at(place: Place, code: str, message: str, hint: str, severity: str = "error") -> Finding:
    return Finding(code, message, hint, place.file, place.line, place.column, severity)
