"""The client of a schema registry, over scripted answers: what is final, what is tried again, what is kept."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from integrity.core.decode.avro import SchemaFault
from integrity.core.decode.record import Record
from integrity.core.decode.wire import SchemaRef
from integrity.core.rules.parse import parse_rules
from integrity.errors import UnreachableError
from integrity.registry import cache as cache_module
from integrity.registry.cache import UNKNOWN_S, SchemaCache
from integrity.registry.client import FoundSchema, RegistryClient
from integrity.settings import SchemaRegistrySettings
from integrity.wiring.decoding import decoder_of


def client(answer: Callable[[httpx.Request], httpx.Response], **more: Any) -> RegistryClient:
    made = RegistryClient("http://registry:8081/", **more)
    made._http = httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=more.get("auth"))
    return made


def found(schema: object, **more: Any) -> httpx.Response:
    return httpx.Response(200, json={"schema": json.dumps(schema), **more})


UNKNOWN = httpx.Response(404, json={"error_code": 40403, "message": "Schema not found"})


async def test_a_schema_is_asked_for_by_id_or_guid_as_the_user_that_is_set() -> None:
    asked: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.headers.get("authorization")))
        return found("long")

    registry = client(answer, auth=("me", "secret"))
    assert await registry.schema(7) == FoundSchema("AVRO", '"long"', ())
    await registry.schema("01234567-89ab-cdef-0123-456789abcdef")
    assert asked == [
        ("/schemas/ids/7", "Basic bWU6c2VjcmV0"),
        ("/schemas/guids/01234567-89ab-cdef-0123-456789abcdef", "Basic bWU6c2VjcmV0"),
    ]


async def test_references_come_before_what_needs_them_and_once_each() -> None:
    """order -> line -> money, and order -> money."""
    line, money = {"name": "l", "subject": "a line/x", "version": 2}, {"name": "m", "subject": "money", "version": 1}
    answers = {
        "/schemas/ids/1": found("order", references=[line, money], schemaType="AVRO"),
        "/subjects/a%20line%2Fx/versions/2": found("line", references=[money]),
        "/subjects/money/versions/1": found("money"),
    }
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        return answers[asked[-1]]

    assert (await client(answer).schema(1)).references == ('"money"', '"line"')
    assert len(asked) == 3


async def test_references_that_lead_back_to_themselves_end() -> None:
    back = [{"name": "a", "subject": "a", "version": 1}]
    assert (await client(lambda _: found("a", references=back)).schema(1)).references == ('"a"',)


async def test_references_without_end_are_refused() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        version = int(request.url.path.rpartition("/")[2]) + 1
        return found("a", references=[{"name": "a", "subject": "a", "version": version}])

    with pytest.raises(SchemaFault, match="refers to more"):
        await client(answer).schema(1)


async def test_only_the_registry_itself_says_that_it_does_not_know_an_id() -> None:
    with pytest.raises(SchemaFault, match="does not know"):
        await client(lambda _: UNKNOWN).schema(1)
    for other in (
        httpx.Response(404, text="<html>no such page</html>"),
        httpx.Response(404, json={"error_code": 404}),
        httpx.Response(401),
        httpx.Response(403),
        httpx.Response(429),
        httpx.Response(503),
        httpx.Response(302, headers={"location": "/elsewhere"}),
        httpx.Response(200, text="<html>welcome</html>"),
        httpx.Response(200, json={"id": 1}),
        httpx.Response(200, content=b"\xff"),
    ):
        with pytest.raises(UnreachableError):
            await client(lambda _, other=other: other).schema(1)


async def test_a_registry_that_is_away_is_unreachable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError, match="ConnectError"):
        await client(answer).schema(1)
    with pytest.raises(UnreachableError):
        await client(answer).check()


async def test_a_registry_is_believed_by_its_certificate_and_its_name(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    body = found("long").content

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        for host, cafile, is_believed in (
            ("localhost", tmp_path / "ca.pem", True),
            ("127.0.0.1", tmp_path / "ca.pem", False),
            ("localhost", None, False),
        ):
            settings = SchemaRegistrySettings(url=f"https://{host}:{port}", cafile=cafile)
            registry = RegistryClient(settings.url, tls=settings.tls)
            try:
                if is_believed:
                    assert (await registry.schema(1)).text == '"long"'
                else:
                    with pytest.raises(UnreachableError):
                        await registry.schema(1)
            finally:
                await registry.close()


async def test_a_schema_of_many_megabytes_is_refused_unread() -> None:
    with pytest.raises(SchemaFault, match="larger"):
        await client(lambda _: httpx.Response(200, content=b"x" * 4_000_000)).schema(1)


class Registry:
    def __init__(self) -> None:
        self.asked: list[SchemaRef] = []
        self.unknown: set[SchemaRef] = set()
        self.up = True

    async def check(self) -> None:
        return None

    async def schema(self, ref: SchemaRef) -> FoundSchema:
        self.asked.append(ref)
        if not self.up:
            raise UnreachableError("away")
        if ref in self.unknown:
            raise SchemaFault("the schema registry does not know it")
        return FoundSchema("AVRO", '"long"', ())


def record(*ids: int) -> list[Record]:
    return [Record("t", 0, 0, 0, None, b"\0" + id_.to_bytes(4, "big"), ()) for id_ in ids]


async def test_each_id_is_asked_for_once() -> None:
    registry = Registry()
    cache = SchemaCache(registry)
    for _ in range(3):
        await cache.learn_of(record(1, 2, 1))
    assert sorted(map(str, registry.asked)) == ["1", "2"] and not cache.missing(record(1, 2))


async def test_an_id_that_is_unknown_today_is_asked_for_again_later() -> None:
    registry, now = Registry(), [0.0]
    cache = SchemaCache(registry, now=lambda: now[0])
    registry.unknown.add(1)
    await cache.learn_of(record(1))
    assert isinstance(cache.schemas[1], SchemaFault) and not cache.missing(record(1))
    registry.unknown.clear()
    now[0] = UNKNOWN_S
    assert cache.missing(record(1))
    await cache.learn_of(record(1))
    assert not isinstance(cache.schemas[1], SchemaFault)
    now[0] *= 2
    assert not cache.missing(record(1)), "what is known stays known"


async def test_what_was_learned_before_the_registry_went_away_is_kept() -> None:
    registry = Registry()
    cache = SchemaCache(registry)
    await cache.learn_of(record(1))
    registry.up = False
    with pytest.raises(UnreachableError):
        await cache.learn_of(record(1, 2))
    assert not cache.missing(record(1)) and cache.missing(record(2)) == {2}


async def test_schemas_are_kept_up_to_a_number_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_SCHEMAS_MAX", 10)
    cache = SchemaCache(Registry())
    for id_ in range(100):
        await cache.learn_of(record(id_))
        assert not cache.missing(record(id_)) and len(cache.schemas) <= 10


RULE = """\
version: 1
parent: customer
events: {{topic: customers, format: debezium, key: {{id: int64}}, key_format: {key_format}}}
dependents:
  - {{store: shop_db, table: orders, references: {{customer_id: id}}, on_delete: cascade}}
"""


async def test_no_id_is_looked_for_in_keys_that_are_bare_by_the_rule() -> None:
    """A long begins with zero bytes as an id does: the lane would ask the registry for numbers that are keys."""
    of_key = Record("customers", 0, 0, 0, (7 << 24).to_bytes(8, "big"), b"\0" + (3).to_bytes(4, "big"), ())
    for key_format, expected in (("json", {3, 7}), ("long", {3}), ("string", {3})):
        [parent] = parse_rules({"a.yaml": RULE.format(key_format=key_format)}).parents
        cache = SchemaCache(Registry())
        decoder_of(parent, cache)
        assert cache.missing([of_key]) == expected
