"""Python's collector of cycles, made rare.

A batch makes tens of thousands of values that die together, none in a cycle. Looking through them over and over took a
third of an event's time (`make bench`). So what is loaded at the start is set aside, and cycles, such as those of
exceptions, are looked for by the clock.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

COLLECT_EVERY_S: Final = 30.0
"""A look takes some tens of milliseconds; what waits for it meanwhile is little."""
WAITING_MAX: Final = 2_000_000
"""So many values more than at the last look bring one at once: a bound on memory, whatever makes cycles."""


async def collect_rarely() -> None:
    """Until cancelled, which puts back how it was before."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(WAITING_MAX, 10, 10)
    try:
        while True:
            await asyncio.sleep(COLLECT_EVERY_S)
            gc.collect()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
