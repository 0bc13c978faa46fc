"""Publishes in transactions under one transactional id: who opened it last owns the store, all others are fenced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from integrity.core.batch import TopicPartition
from integrity.stores.topic import clients
from integrity.stores.topic.faults import PRODUCER_ERRORS, Unsent
from integrity.stores.topic.records import Write

BATCH_BYTES: Final = 128 * 1024
_ABORT_S: Final = 5.0


_log = logging.getLogger(__name__)


class Writer:
    """One producer, and at most one open transaction. After any exception it is of no use but to be discarded: the
    next one, under the same id, learns from the ledger what came of the transaction."""

    def __init__(self, client: Mapping[str, object], transactional_id: str, *, batch_bytes: int = BATCH_BYTES) -> None:
        self._producer: AIOKafkaProducer = clients.producer(
            client, transactional_id=transactional_id, batch_bytes=batch_bytes
        )
        self._sent: list[tuple[TopicPartition, int, str | None, asyncio.Future[Any]]] = []
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether a transaction is open."""
        return self._open

    async def start(self) -> None:
        """Take over: abort the transaction a former owner left open, and fence it."""
        await self._producer.start()

    async def begin(self) -> None:
        try:
            await self._producer.begin_transaction()
        except PRODUCER_ERRORS as exc:
            raise Unsent(None) from (self._verdict() or exc)
        self._open = True
        self._sent.clear()

    async def send(self, writes: Sequence[Write]) -> None:
        """Publish records, each partition's in order, as part of the open transaction. Raises Unsent."""
        grouped: dict[TopicPartition, list[Write]] = {}
        for write in writes:
            grouped.setdefault(write.at, []).append(write)
        for at, of_partition in grouped.items():
            await self._send_to(at, of_partition)

    async def delivered(self) -> dict[TopicPartition, list[tuple[int, int]]]:
        """Wait until everything sent is in the log; the first and last offset of each run of records. Raises
        Unsent."""
        ranges: dict[TopicPartition, list[tuple[int, int]]] = {}
        for at, count, dependent, future in self._sent:
            try:
                first = (await future).offset
            except PRODUCER_ERRORS as exc:
                raise Unsent(dependent) from (self._verdict() or exc)
            ranges.setdefault(at, []).append((first, first + count - 1))
        self._sent.clear()
        return ranges

    async def commit(self) -> None:
        """Make the transaction's records visible, all at once. After an exception it is unknown whether they are.
        Raises Unsent."""
        try:
            await self._producer.commit_transaction()
        except PRODUCER_ERRORS as exc:
            raise Unsent(None) from (self._verdict() or exc)
        self._open = False

    async def discard(self) -> None:
        """Abort what is open, for nobody may read past it, and close."""
        for _, _, _, future in self._sent:
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen
        if self._open:
            try:
                async with asyncio.timeout(_ABORT_S):
                    await self._producer.abort_transaction()
            except PRODUCER_ERRORS:
                _log.debug("A transaction is left to the next owner, or its timeout, to abort.")
        await self._producer.stop()
        self._verdict()  # seen; it would be logged as never retrieved

    def _verdict(self) -> BaseException | None:
        """What ended the transaction. Once a producer has failed, its calls say only that it is in no transaction."""
        ended = self._producer._txn_manager.wait_for_transaction_end()
        if ended is None or not ended.done() or ended.cancelled():
            return None
        verdict: BaseException | None = ended.exception()
        return verdict

    async def _send_to(self, at: TopicPartition, writes: Sequence[Write]) -> None:
        left = list(writes)
        while left:
            # A record larger than a batch has one of its own: when one is refused, it is the first.
            builder = self._producer.create_batch()
            count = 0
            for write in left:
                taken = builder.append(timestamp=None, key=write.key, value=write.value, headers=list(write.headers))
                if taken is None:
                    break
                count += 1
            builder.close()
            try:
                future = await self._producer.send_batch(builder, at.topic, partition=at.partition)
            except PRODUCER_ERRORS as exc:
                raise Unsent(left[0].dependent) from (self._verdict() or exc)
            self._sent.append((at, count, left[0].dependent, future))
            del left[:count]
