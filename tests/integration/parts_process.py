"""A process that enforces one deletion with many rows, in parts, until it is killed: URL, ROWS a part."""

from __future__ import annotations

import asyncio
import sys

from integrity.core.outcome import Unfinished
from integrity.core.rules.model import Cascade
from integrity.ports import Deadline
from tests.contract.world import Events, rule
from tests.integration.pg_shop import store_of


def deletion() -> Events:
    events = Events()
    events.deleted((1,), 10)
    return events


async def main(url: str, rows_max: int) -> None:
    batch = deletion().batch()
    async with store_of(url, rule(Cascade()), rows_max=rows_max) as store:
        while isinstance(await store.apply(batch, Deadline.after(60)), Unfinished):
            pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
