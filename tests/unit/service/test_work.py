"""How records that were read become work."""

from __future__ import annotations

from integrity.core.batch import TopicPartition
from integrity.core.change import Op
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Record
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones
from integrity.service.work import Piece, Reader

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
