"""Ctrl-C: everything is stopped and removed first, however often it is pressed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

STOP_TIMEOUT_S: Final = 30.0
"""The kernel ends the servers with this program: after this long that is left to it."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_Result = TypeVar("_Result")


async def until_signalled(work: Coroutine[Any, Any, _Result], say: Callable[[str], None]) -> _Result:
    """The work's result. SIGINT and SIGTERM cancel it once; raises KeyboardInterrupt when it ends by that."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work, name="demo")
    signalled = False

    def stop(number: int) -> None:
        nonlocal signalled
        if signalled:
            say("Stopping already: the servers are being ended and their files removed.")
            return
        signalled = True
        loop.call_later(STOP_TIMEOUT_S, os._exit, 128 + number)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not signalled:
            raise
        say("Stopped; nothing is left running.")
        raise KeyboardInterrupt from None
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
