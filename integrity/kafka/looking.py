"""Looks at topics from outside of any group, and changes nothing: how they are, their last records, their ACLs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DescribeAclsRequest

from integrity.core.decode.record import Record
from integrity.core.doctor import TopicLook
from integrity.errors import UnreachableError
from integrity.kafka.acls import Acl, Operation, Pattern, Resource
from integrity.kafka.consumer import CONSUMER_SETTINGS, STOP_TIMEOUT_S
from integrity.kafka.unpacking import bound_unpacking
from integrity.ports import Deadline

RECORDS_MAX: Final = 200
"""How many of the last records of a topic are looked at."""
_PARTITIONS_MAX: Final = 50
_POLL_MS: Final = 200
_ANY: Final = 1
_SECURITY_DISABLED, _NOT_ALLOWED = 54, 31


async def look_at(client: Mapping[str, Any], topics: Collection[str], deadline: Deadline) -> Mapping[str, TopicLook]:
    """Those of the topics that exist. Raises UnreachableError."""
    bound_unpacking()
    admin = AIOKafkaAdminClient(**client, request_timeout_ms=10_000)
    consumer = AIOKafkaConsumer(**client, **CONSUMER_SETTINGS)
    found: dict[str, TopicLook] = {}
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            await admin.start()
            await consumer.start()
            present = set(await admin.list_topics())
            for topic in sorted(set(topics) & present):
                partitions = (await admin.describe_topics([topic]))[0]["partitions"]
                config = await _config(admin, topic)
                last = await _last(consumer, topic, sorted(each["partition"] for each in partitions), deadline)
                found[topic] = TopicLook(topic, len(partitions), config, last)
    except (KafkaError, OSError, TimeoutError) as exc:
        raise _unreachable(exc) from exc
    finally:
        stopping = [asyncio.ensure_future(consumer.stop()), asyncio.ensure_future(admin.close())]
        await asyncio.wait(stopping, timeout=STOP_TIMEOUT_S)
    return found


async def acls(client: Mapping[str, Any], deadline: Deadline) -> Sequence[Acl] | None:
    """All ACLs of the cluster; None where it has no authorizer, or they may not be read. Raises UnreachableError."""
    admin = AIOKafkaAdminClient(**client, request_timeout_ms=10_000)
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            await admin.start()
            answer = await admin._send_request(DescribeAclsRequest(_ANY, None, _ANY, None, None, _ANY, _ANY))
    except (KafkaError, OSError, TimeoutError) as exc:
        raise _unreachable(exc) from exc
    finally:
        await asyncio.wait([asyncio.ensure_future(admin.close())], timeout=STOP_TIMEOUT_S)
    if answer.error_code in (_SECURITY_DISABLED, _NOT_ALLOWED):
        return None
    if answer.error_code:
        raise _unreachable(for_code(answer.error_code)())
    return [
        Acl(kind, name, pattern, principal, operation, permission == 3)
        for kind, name, pattern, entries in answer.resources
        for principal, _, operation, permission in entries
        if kind in [*Resource] and pattern in [*Pattern] and operation in [*Operation]
    ]


async def _config(admin: AIOKafkaAdminClient, topic: str) -> Mapping[str, str]:
    """Empty where it may not be read."""
    answer = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [(code, _, _, _, entries)] = answer[0].resources
    return {} if code else {entry[0]: entry[1] for entry in entries}


async def _last(consumer: AIOKafkaConsumer, topic: str, partitions: Sequence[int], deadline: Deadline) -> list[Record]:
    """The last records of some partitions, in the order of their time stamps; what did not come in time is left out."""
    chosen = [KafkaPartition(topic, number) for number in partitions[:_PARTITIONS_MAX]]
    if not chosen:
        return []
    each = max(RECORDS_MAX // len(chosen), 1)
    consumer.assign(chosen)
    begins, ends = await consumer.beginning_offsets(chosen), await consumer.end_offsets(chosen)
    for at in chosen:
        consumer.seek(at, max(begins[at], ends[at] - each))
    found: list[Record] = []
    waiting = {at for at in chosen if begins[at] < ends[at]}
    until = Deadline.after(deadline.remaining_s() / 2)
    while waiting and until.remaining_s():
        got: Mapping[KafkaPartition, Sequence[Any]] = await consumer.getmany(timeout_ms=_POLL_MS)
        for at, records in got.items():
            found += [
                Record(topic, at.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records
            ]
        waiting = {at for at in waiting if await consumer.position(at) < ends[at]}
    return sorted(found, key=lambda record: record.timestamp_ms)


def _unreachable(exc: BaseException) -> UnreachableError:
    return UnreachableError(
        f"Kafka does not answer: {type(exc).__name__}.",
        hint="See INTEGRITY_KAFKA__BOOTSTRAP_SERVERS and the security settings.",
    )
