"""Gives every partition of a group to one member: for a lane whose store only one process may change at a time.

The owner stays the owner while it is a member. When it leaves, the member that started first takes over.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

_VERSION: Final = 0


class _Standing(msgspec.Struct, frozen=True):
    """What a member tells of itself: whether it owns the partitions, and when it started, in nanoseconds since the
    epoch."""

    owner: bool
    started_ns: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Standing).decode
_UNKNOWN: Final = _Standing(False, (1 << 63) - 1)


class SingleOwnerAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # the client ships no types
    """One instance a consumer: `partition_assignment_strategy=(SingleOwnerAssignor(),)`. A wrong clock costs at most
    a needless change of owner."""

    name = "integrity-single-owner"

    def __init__(self, started_ns: int | None = None) -> None:
        self._started_ns = time.time_ns() if started_ns is None else started_ns
        self._owner = False

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        owner = min(members, key=lambda member: _rank(member, members[member]))
        # Members learn of new topics one after the other: the owner is given none that it does not know yet.
        topics = sorted(members[owner].subscription)
        everything = [
            (topic, sorted(partitions)) for topic in topics if (partitions := cluster.partitions_for_topic(topic))
        ]
        return {
            member: ConsumerProtocolMemberAssignment(_VERSION, everything if member == owner else [], b"")
            for member in members
        }

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(_VERSION, list(topics), _encode(_Standing(self._owner, self._started_ns)))

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        self._owner = bool(assignment.partitions())


def _rank(member: str, metadata: ConsumerProtocolMemberMetadata) -> tuple[bool, int, str]:
    try:
        standing = _decode(metadata.user_data or b"")
    except msgspec.DecodeError:
        standing = _UNKNOWN
    return not standing.owner, standing.started_ns, member
