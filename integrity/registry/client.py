"""The HTTP API of Confluent's schema registry, as far as a reader needs it: a schema by its id, and what it refers to.

One attempt a call, bounded in time and size; who calls tries again. Karapace, Apicurio (its ccompat API) and Redpanda
have the same API.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import quote

import httpx
import msgspec

from integrity.core.decode.avro import SCHEMA_BYTES_MAX, SchemaFault
from integrity.core.decode.wire import SchemaRef
from integrity.errors import UnreachableError

REQUEST_TIMEOUT_S = 10.0
_ANSWER_BYTES_MAX = 3 * SCHEMA_BYTES_MAX
"""A schema is text inside JSON, where some characters take two bytes or more."""
_REFERENCES_MAX = 200
"""Schemas that one schema may need, directly and through others."""
_UNKNOWN = frozenset({40401, 40402, 40403})
"""Subject, version and schema not found, as the registry's own 404: another 404 may be a wrong address."""


class FoundSchema(NamedTuple):
    """A schema as the registry has it: its kind (AVRO, JSON, PROTOBUF), its text, and the schemas that it refers to,
    those first that others need. `files` are those by the names under which they are referred to."""

    kind: str
    text: str
    references: tuple[str, ...]
    files: Mapping[str, str] = MappingProxyType({})


class _Reference(msgspec.Struct):
    subject: str
    version: int
    name: str = ""


class _Answer(msgspec.Struct):
    schema: str
    schemaType: str = "AVRO"
    references: list[_Reference] | None = None


class _Error(msgspec.Struct):
    error_code: int


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_error = msgspec.json.Decoder(_Error).decode


class RegistryClient:
    """A registry at an address."""

    def __init__(self, url: str, *, auth: tuple[str, str] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            auth=auth,
            verify=tls if tls is not None else ssl.create_default_context(),
            timeout=REQUEST_TIMEOUT_S,
            headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
            # What the environment says of proxies and of passwords in files is not what the settings say.
            trust_env=False,
        )

    async def schema(self, ref: SchemaRef) -> FoundSchema:
        """The schema of an id. Raises SchemaFault when the registry does not know it or has no usable one,
        UnreachableError when it does not answer, or not as a registry does."""
        where = f"/schemas/ids/{ref}" if isinstance(ref, int) else f"/schemas/guids/{quote(ref, safe='')}"
        answer = await self._get(where)
        texts: dict[tuple[str, int], str | None] = {}
        names: dict[str, tuple[str, int]] = {}
        await self._follow(answer, texts, names)
        references = tuple(text for text in texts.values() if text is not None)
        if answer.schemaType != "PROTOBUF":
            return FoundSchema(answer.schemaType, answer.schema, references)
        files = {name: text for name, at in names.items() if (text := texts[at]) is not None}
        return FoundSchema(answer.schemaType, answer.schema, references, files)

    async def check(self) -> None:
        """Raises UnreachableError when the registry does not answer as one."""
        await self._request("/subjects")

    async def close(self) -> None:
        """Bounded: nothing is in flight but what was cancelled."""
        await self._http.aclose()

    async def _follow(
        self, answer: _Answer, texts: dict[tuple[str, int], str | None], names: dict[str, tuple[str, int]]
    ) -> None:
        """Gather what a schema refers to, once each, depth first: a reference stands behind what it needs itself."""
        for reference in answer.references or ():
            at = (reference.subject, reference.version)
            if names.setdefault(reference.name, at) != at and answer.schemaType == "PROTOBUF":
                raise SchemaFault("two of the schemas that it refers to have one name")
            if at in texts:
                continue
            if len(texts) >= _REFERENCES_MAX:
                raise SchemaFault(f"it refers to more than {_REFERENCES_MAX} other schemas")
            texts[at] = None
            found = await self._get(f"/subjects/{quote(reference.subject, safe='')}/versions/{reference.version}")
            await self._follow(found, texts, names)
            del texts[at]
            texts[at] = found.schema

    async def _get(self, path: str) -> _Answer:
        body = await self._request(path)
        try:
            return _decode_answer(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UnreachableError("The schema registry's answer is none of a schema registry.") from None

    async def _request(self, path: str) -> bytes:
        body = b""
        try:
            # The client's own time limit is one of each part that comes.
            async with asyncio.timeout(REQUEST_TIMEOUT_S), self._http.stream("GET", self._url + path) as response:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _ANSWER_BYTES_MAX:
                        raise SchemaFault(f"it is larger than {SCHEMA_BYTES_MAX} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as exc:
            raise UnreachableError(f"The schema registry does not answer: {type(exc).__name__}.") from exc
        if response.status_code == 200:
            return body
        if response.status_code == 404 and _error_code(body) in _UNKNOWN:
            raise SchemaFault("the schema registry does not know it")
        if response.status_code in (401, 403):
            raise UnreachableError(
                f"The schema registry refuses this user (HTTP {response.status_code}).",
                hint="Check INTEGRITY_SCHEMA_REGISTRY__USERNAME and __PASSWORD, and what that user may read.",
            )
        raise UnreachableError(
            f"The schema registry answers with HTTP {response.status_code}.",
            hint="Check INTEGRITY_SCHEMA_REGISTRY__URL." if response.status_code < 500 else "",
        )


def _error_code(body: bytes) -> int | None:
    try:
        return _decode_error(body).error_code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
