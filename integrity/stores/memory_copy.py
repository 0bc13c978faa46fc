"""The model that every other store's copies are compared with: rows are dicts by key, a transaction is a copy of them.

A value is what the source wrote, a key part what the key gate made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from integrity.core.batch import Batch, TopicPartition, shares, standing
from integrity.core.copies import Known, marks_of, plan
from integrity.core.fold import Marked
from integrity.core.keys import Key, key_hash
from integrity.core.outcome import Applied, ApplyResult, Diverged, Rejected
from integrity.core.rules.model import Tombstone
from integrity.core.truncate import KnownKeys
from integrity.errors import Finding
from integrity.ports import Deadline
from integrity.stores.memory import Row, mark_values
from integrity.stores.rule import CopyRule


class MemoryCopy:
    """A Store that holds one copy."""

    exclusive = False

    def __init__(self, name: str, rule: CopyRule) -> None:
        self.name = name
        self._rule = rule
        self.rows: dict[Key, Row] = {}
        self.known: dict[Key, Known] = {}
        self._progress: dict[TopicPartition, int] = {}
        self._notes: dict[str, bytes] = {}

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        return ()

    def ddl(self) -> str:
        return ""

    async def migrate(self, deadline: Deadline) -> None:
        return None

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        return {p: self._progress[p] for p in partitions if p in self._progress}

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        return list(self._notes.values())

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        found = sorted((key_hash(entity, key), key, known.head) for key, known in self.known.items())
        page = [each for each in found if each[0] > after][:keys_max]
        return KnownKeys([each[1:] for each in page], page[-1][0] if len(page) == keys_max else None)

    async def known_of(self, key: Key, deadline: Deadline) -> Known | None:
        return self.known.get(key)

    async def close(self) -> None:
        return None

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        counts = standing(batch, self._progress)
        if isinstance(counts, str):
            return Diverged(counts)
        rule, copy = self._rule, self._rule.copy
        effects = []
        for share in shares(batch, counts, [rule.entity]):
            found = plan(copy, share.changes, self.known, done=share.done, left_out=share.exceptions)
            if isinstance(found, Rejected):
                return found
            for group in found.removed:
                self.rows.pop(group.key, None)
            for put in found.puts:
                sent = {column: put.cells[field].value for column, field in copy.values.items() if field in put.cells}
                key = dict(zip(copy.rows.columns, put.key, strict=True))
                self.rows[put.key] = {**self.rows.get(put.key, {}), **key, **sent, **dict.fromkeys(marks_of(copy))}
            for group in found.marked:
                action, end = copy.rows.on_delete, group.end
                assert isinstance(action, Tombstone)
                assert isinstance(end, Marked)
                row = self.rows.get(group.key)
                if row is not None and row[action.marker] is None:
                    self.rows[group.key] = row | mark_values(action, end.fate, batch.at_ms)
            self.known |= found.known
            effects += [effect._replace(change=share.indexes[effect.change]) for effect in found.effects]
        for note in batch.notes:
            if note.data is None:
                self._notes.pop(note.id, None)
            elif not note.fresh or note.id not in self._notes:
                self._notes[note.id] = note.data
        for partition, span in batch.spans.items():
            self._progress[partition] = max(span.next, counts.get(partition, 0))
        return Applied(effects)
