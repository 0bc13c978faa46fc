"""SIGTERM and SIGINT as a request to stop; a second one, or too long a stop, ends the process at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 23.0
"""A stop that takes longer ends the process: what is not committed is replayed. Below the promised 25 s."""


@contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at the first signal."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def asked(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("stopping: the open batch is finished or rolled back", extra={"signal": signal.Signals(number).name})
        stop.set()
        timers.append(loop.call_later(STOP_TIMEOUT_S, os._exit, 0))

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, asked, number)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number in numbers:
            loop.remove_signal_handler(number)
