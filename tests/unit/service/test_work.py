"""How records that were read become work."""

from __future__ import annotations

import pytest

from integrity.core.batch import TopicPartition
from integrity.core.change import Op
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Record, Undecodable, Unread
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones
from integrity.core.rules.vocabulary import FORMATS
from integrity.errors import Reason
from integrity.service.work import Piece, Reader
from tests.golden.messages import rule

P0 = TopicPartition("t", 0)
EVENTS = Events(("t",), "debezium", KeySpec((("id", KeyType.INT64),)), Tombstones.DELETE)
UNPLACED = b'{"before":null,"after":null,"source":{"connector":"postgresql","lsn":null},"op":"d"}'
SQLSERVER = b'{"before":null,"after":null,"source":{"connector":"sqlserver"},"op":"d"}'


def record(offset: int, value: bytes | None, key: int = 1) -> Record:
    return Record("t", 0, offset, 5, b'{"id":%d}' % key, value, ())


def read(*polls: list[Record]) -> Piece:
    reader = Reader({"t": ("customer", decoder_for(Parent("customer", EVENTS, (), Place("c.yaml", 1, 1))))})
    piece = Piece()
    for records in polls:
        reader.read(P0, records, piece)
    return piece


def test_null_record_right_after_a_refused_deletion_does_nothing() -> None:
    """Else it would do what nobody could read: of SQL Server, half a key change as a deletion."""
    for value in (UNPLACED, SQLSERVER, b"{"):
        for polls in ([[record(0, value), record(1, None)]], [[record(0, value)], [record(1, None)]]):
            piece = read(*polls)
            assert (len(piece.refused), piece.changes) == (1, [])


def test_null_record_of_another_key_or_further_on_is_an_event_of_its_own() -> None:
    other = read([record(0, UNPLACED), record(1, None, key=2)])
    later = read([record(0, UNPLACED), record(1, None), record(2, None)])
    assert [[change.op for change in piece.changes] for piece in (other, later)] == [[Op.GONE], [Op.GONE]]


@pytest.mark.parametrize("form", FORMATS)
def test_record_that_stands_for_a_batch_that_was_not_read_is_one_dead_letter(form: str) -> None:
    types = ["types: {deleted: [Deleted]}"] if form == "outbox" else []
    decode = decoder_for(rule(f"format: {form}", "key: {id: int64}", *types))
    stand_in = Record("t", 0, 9, 5, None, Unread.of(2, 9, 100), ())
    assert isinstance(decode(stand_in), Undecodable), "also where nobody knows what it is"
    piece = Piece()
    Reader({"t": ("customer", decode)}).read(P0, [stand_in], piece)
    [refused] = piece.refused
    assert refused.why.reason is Reason.TOO_LARGE
    assert "the batch of offsets 2 to 9 unpacks to more than 100 bytes" in refused.why.message
