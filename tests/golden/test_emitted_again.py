"""A connector that starts again emits old records anew, at higher offsets: an old deletion after a re-creation."""

from __future__ import annotations

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode.halves import pair
from integrity.core.decode.record import Record
from integrity.core.fold import settle
from integrity.core.outcome import Outcome
from tests.golden.histories import BIGINT
from tests.golden.records import decoder, load
from tests.golden.test_constructed_envelopes import DB2, ORACLE, OTHER, SQLSERVER, record

LATER_SQLSERVER = SQLSERVER | {"commit_lsn": "00000027:00000758:0006"}
LATER_DB2 = DB2 | {"commit_lsn": "00000000:00000000:0000000000bd1a2d"}


def captured(file: str, topic: str, deletion: int, creation: int) -> tuple[Record, Record]:
    by_offset = {each.offset: each for each in load(file) if each.topic == topic}
    return by_offset[deletion], by_offset[creation]


# The row 12 is deleted, and inserted again by a statement of its own.
CASES = {
    "postgresql": captured("pg_env", "pg_env.public.customers", 18, 20),
    "mariadb": captured("my_env", "my_env.shop.customers", 19, 21),
    "oracle, constructed": (record("d", ORACLE), record("c", ORACLE | {"scn": "2122190"})),
    "db2, constructed": (record("d", DB2), record("c", LATER_DB2)),
    "sql server, constructed": (record("d", SQLSERVER), record("c", LATER_SQLSERVER)),
    "by its offset alone": (record("d", OTHER), record("c", OTHER)),
}


@pytest.mark.parametrize("case", CASES)
def test_old_deletion_that_is_emitted_again_is_stale_where_the_source_tells_its_place(case: str) -> None:
    deletion, creation = CASES[case]
    records = [deletion, creation, deletion]
    placed = [each._replace(offset=offset) for offset, each in enumerate(records)]
    changes = pair(placed, decoder(**BIGINT), is_over=True, is_apart=False).said
    settled = settle([change for change in changes if isinstance(change, ParentChange)], {}, keep_alive=True)
    assert [change.op for change in changes if isinstance(change, ParentChange)] == [Op.DELETED, Op.ALIVE, Op.DELETED]
    again = Outcome.APPLIED if case == "by its offset alone" else Outcome.STALE
    assert settled.outcomes == [Outcome.APPLIED, None, again]
