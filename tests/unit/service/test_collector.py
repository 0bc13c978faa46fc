"""Cycles are looked for rarely, and only while the service runs."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from integrity.service import collector


class Node:
    """Part of a cycle."""


async def test_cycles_are_collected_by_the_clock_and_everything_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "COLLECT_EVERY_S", 0.01)
    before = gc.get_threshold()
    task = asyncio.create_task(collector.collect_rarely())
    await asyncio.sleep(0)
    assert gc.get_threshold()[0] == collector.WAITING_MAX
    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    gone = asyncio.Event()
    weakref.finalize(node, gone.set)
    del node
    await asyncio.wait_for(gone.wait(), 20)
    task.cancel()
    await asyncio.wait({task})
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
