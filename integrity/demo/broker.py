"""The demo's Kafka: a real broker where Java and its jars are here already, else librdkafka's mock in this process.

The mock keeps records, groups and transactions, but can neither create a topic nor tell a topic's configuration, and
its transaction markers have wrong checksums. So a front stands before it, which answers the first two itself, mends the
third and passes everything else on. Nothing is on disk and nothing is ever compacted: it shows what the program does
and proves nothing.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from enum import StrEnum
from io import BytesIO
from typing import Any, Final, Protocol

from aiokafka.protocol.admin import (
    ApiVersionResponse_v0,
    CreateTopicsRequest_v1,
    CreateTopicsResponse_v1,
    DescribeConfigsRequest_v0,
    DescribeConfigsResponse_v0,
)
from aiokafka.protocol.api import RequestHeader_v1
from aiokafka.protocol.coordination import FindCoordinatorResponse_v1
from aiokafka.protocol.fetch import FetchResponse_v5
from aiokafka.protocol.metadata import MetadataRequest_v5, MetadataResponse_v5
from aiokafka.record.util import calc_crc32c

from integrity.demo.servers import KafkaServer, ServerUnavailable
from integrity.errors import UsageError

_HOST: Final = "127.0.0.1"
_MOCK_TIMEOUT_S: Final = 10.0
_FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
_CLIENT: Final = "front"

_FETCH: Final = 1
_METADATA: Final = 3
_FIND_COORDINATOR: Final = 10
_API_VERSIONS: Final = 18
_CREATE_TOPICS: Final = 19
_DESCRIBE_CONFIGS: Final = 32
_SPOKEN: Final = {
    _FETCH: 5,
    _METADATA: 5,
    _FIND_COORDINATOR: 1,
    _API_VERSIONS: 0,
    _CREATE_TOPICS: 1,
    _DESCRIBE_CONFIGS: 0,
}
"""The one version in which the front speaks what it has to understand."""

_UNSUPPORTED_VERSION: Final = 35
_TOPIC_EXISTS: Final = 36
# Where these are in a record batch of today's format.
_LENGTH_AT: Final = 8
_CHECKSUM_AT: Final = 17
_CHECKED_FROM: Final = 21
_IS_MARKER: Final = 0x20

_DEFAULTS: Final[Mapping[str, str]] = {
    "cleanup.policy": "delete",
    "delete.retention.ms": "86400000",
    "max.message.bytes": "1048588",
    "retention.ms": "604800000",
}


class KafkaChoice(StrEnum):
    """Which Kafka the demo runs on."""

    AUTO = "auto"
    REAL = "real"
    EMBEDDED = "embedded"


class Broker(Protocol):
    """A running Kafka."""

    @property
    def bootstrap_servers(self) -> str: ...


def is_real(choice: KafkaChoice) -> bool:
    """Whether the demo runs on a real Kafka. Raises UsageError when neither can be had."""
    match choice:
        case KafkaChoice.REAL:
            return True
        case KafkaChoice.AUTO if KafkaServer.available():
            return True
        case KafkaChoice.AUTO | KafkaChoice.EMBEDDED:
            try:
                import confluent_kafka  # noqa: F401
            except ImportError as exc:
                raise UsageError("The demo's parts are missing: pip install 'integrity[demo]'.") from exc
            return False


class EmbeddedKafka:
    """librdkafka's mock broker, behind a front on a port of its own, as long as the `async with` lasts.

    Every topic has four partitions, whatever was asked for.
    """

    def __init__(self) -> None:
        self._mock: Any = None
        self._address = ("", 0)
        self._versions: list[tuple[int, int, int]] = []
        self._configs: dict[str, dict[str, str]] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def bootstrap_servers(self) -> str:
        """The front's address, as clients take it."""
        return f"{_HOST}:{self._port}"

    async def __aenter__(self) -> EmbeddedKafka:
        self._address = await asyncio.to_thread(self._start_mock)
        async with asyncio.timeout(_MOCK_TIMEOUT_S):
            backend = await _Backend.connect(self._address)
            answer = ApiVersionResponse_v0.decode(await backend.ask(_API_VERSIONS, 0, b""))
            backend.close()
        known = [entry for entry in answer.api_versions if entry[0] not in _SPOKEN]
        self._versions = sorted(known + [(key, version, version) for key, version in _SPOKEN.items()])
        self._server = await asyncio.start_server(self._serve, _HOST, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._server = None
        self._mock = None

    @property
    def _port(self) -> int:
        assert self._server is not None, "the front is open"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def _start_mock(self) -> tuple[str, int]:
        import confluent_kafka

        # It announces itself on standard error at any level above this one.
        settings = {"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0}
        self._mock = confluent_kafka.Producer(settings)
        try:
            brokers = self._mock.list_topics(timeout=_MOCK_TIMEOUT_S).brokers
        except confluent_kafka.KafkaException as exc:
            raise ServerUnavailable("librdkafka's mock broker does not answer.") from exc
        broker = next(iter(brokers.values()))
        return broker.host, broker.port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection: each request is answered before the next is read, as a broker does."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        backend: _Backend | None = None
        try:
            backend = await _Backend.connect(self._address)
            while True:
                request = await _read_frame(reader)
                correlation, answer = await self._answer(request, backend)
                writer.write(_frame(correlation, answer))
                await writer.drain()
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client has gone, or the demo ends
        finally:
            self._tasks.discard(task)
            writer.close()
            if backend is not None:
                backend.close()

    async def _answer(self, request: bytes, backend: _Backend) -> tuple[bytes, bytes]:
        key, version = struct.unpack_from(">hh", request)
        correlation = request[4:8]
        if key == _API_VERSIONS:
            # In any other version the answer is this one too, as the protocol wants it.
            code = 0 if version == 0 else _UNSUPPORTED_VERSION
            return correlation, ApiVersionResponse_v0(code, self._versions).encode()
        if key == _CREATE_TOPICS:
            return correlation, await self._create_topics(_body(request), backend)
        if key == _DESCRIBE_CONFIGS:
            return correlation, self._describe_configs(_body(request))
        answer = await backend.pass_on(request)
        if key == _FETCH:
            fetched = FetchResponse_v5.decode(answer)
            fetched.topics = [
                (topic, [(*partition[:-1], _mended(partition[-1])) for partition in partitions])
                for topic, partitions in fetched.topics
            ]
            return correlation, fetched.encode()
        if key == _METADATA:
            metadata = MetadataResponse_v5.decode(answer)
            metadata.brokers = [(node, _HOST, self._port, rack) for node, _, _, rack in metadata.brokers]
            # The mock names no controller, and requests to create a topic go to that.
            metadata.controller_id = metadata.brokers[0][0]
            return correlation, metadata.encode()
        if key == _FIND_COORDINATOR:
            found = FindCoordinatorResponse_v1.decode(answer)
            found.host, found.port = _HOST, self._port
            return correlation, found.encode()
        return correlation, answer

    async def _create_topics(self, body: BytesIO, backend: _Backend) -> bytes:
        errors: list[tuple[str, int, str | None]] = []
        for name, _, _, _, configs in CreateTopicsRequest_v1.decode(body).create_topic_requests:
            if name in self._configs:
                errors.append((name, _TOPIC_EXISTS, "The topic exists."))
                continue
            # The mock makes a topic when it is asked about one.
            await backend.ask(_METADATA, 5, MetadataRequest_v5([name], True).encode())
            self._configs[name] = dict(configs)
            errors.append((name, 0, None))
        answer: bytes = CreateTopicsResponse_v1(errors).encode()
        return answer

    def _describe_configs(self, body: BytesIO) -> bytes:
        resources = []
        for kind, name, _ in DescribeConfigsRequest_v0.decode(body).resources:
            own = self._configs.get(name, {})
            entries = [(key, value, False, key not in own, False) for key, value in {**_DEFAULTS, **own}.items()]
            resources.append((0, None, kind, name, entries))
        answer: bytes = DescribeConfigsResponse_v0(0, resources).encode()
        return answer


class _Backend:
    """A connection to the mock: one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> _Backend:
        return cls(*await asyncio.open_connection(*address))

    async def pass_on(self, request: bytes) -> bytes:
        """What the mock answers, without the correlation id."""
        self._writer.write(struct.pack(">i", len(request)) + request)
        return (await _read_frame(self._reader))[4:]

    async def ask(self, key: int, version: int, body: bytes) -> bytes:
        """What the mock answers to a request of the front's own."""
        header = struct.pack(f">hhih{len(_CLIENT)}s", key, version, 0, len(_CLIENT), _CLIENT.encode())
        return await self.pass_on(header + body)

    def close(self) -> None:
        self._writer.close()


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    """Raises EOFError (IncompleteReadError) at the end of the connection."""
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    if not 0 <= size <= _FRAME_BYTES_MAX:
        raise EOFError
    return await reader.readexactly(size)


def _frame(correlation: bytes, body: bytes) -> bytes:
    return struct.pack(">i", len(correlation) + len(body)) + correlation + body


def _mended(batches: bytes | None) -> bytes | None:
    """Record batches with right checksums on those that are transaction markers."""
    if not batches:
        return batches
    mended = bytearray(batches)
    at = 0
    while at + _CHECKED_FROM < len(mended):
        (length,) = struct.unpack_from(">i", mended, at + _LENGTH_AT)
        end = at + _LENGTH_AT + 4 + length
        (attributes,) = struct.unpack_from(">h", mended, at + _CHECKED_FROM)
        if attributes & _IS_MARKER and end <= len(mended):
            struct.pack_into(">I", mended, at + _CHECKSUM_AT, calc_crc32c(mended[at + _CHECKED_FROM : end]))
        at = end
    return bytes(mended)


def _body(request: bytes) -> BytesIO:
    stream = BytesIO(request)
    RequestHeader_v1.SCHEMA.decode(stream)
    return stream
