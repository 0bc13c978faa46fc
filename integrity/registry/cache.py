"""What the schema registry has said, kept for all lanes of a process: a schema never changes under its id.

An id that it does not know is asked for again after a while: a record may come from another registry today and be
copied tomorrow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from integrity.core.decode.avro import SchemaFault
from integrity.core.decode.protobuf import ProtobufSchema
from integrity.core.decode.record import Limits, Record
from integrity.core.decode.wire import SchemaRef, WireSchema, references, wire_schema
from integrity.registry.client import FoundSchema
from integrity.registry.protoc import compiled

log = logging.getLogger(__name__)

UNKNOWN_S = 30.0
"""For how long an id that can't be used is not asked for again."""
_SCHEMAS_MAX = 4_000
_TEXT_MAX = 64 * 1024 * 1024
"""Beyond either, in schemas and in characters of their text, the older half is forgotten and asked for again when it
comes again. What one poll brings needs far fewer."""
_SIDE_BY_SIDE = 8


class Looks(Protocol):
    async def check(self) -> None:
        """Raises UnreachableError."""
        ...

    async def schema(self, ref: SchemaRef) -> FoundSchema:
        """Raises SchemaFault or UnreachableError."""
        ...


class SchemaCache:
    """The schemas of a registry, by id."""

    def __init__(
        self, client: Looks, *, limits: Limits | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._limits = limits or Limits()
        self._now = now
        self.schemas: dict[SchemaRef, WireSchema | SchemaFault] = {}
        """What decoders look ids up in."""
        self.bare_keys: set[str] = set()
        """The topics whose keys are in another form by the rules: what looks like an id there is part of a number."""
        self._faulty: dict[SchemaRef, float] = {}
        """When an id that can't be used is asked for again."""
        self._sizes: dict[SchemaRef, int] = {}
        self._turn = asyncio.Lock()

    def missing(self, records: Iterable[Record]) -> Collection[SchemaRef]:
        """The ids of these records that have to be asked for before they can be decoded."""
        found = references(records, self.bare_keys)
        if not self._faulty:
            return found - self.schemas.keys()
        now = self._now()
        return {ref for ref in found if ref not in self.schemas or self._faulty.get(ref, now + 1) <= now}

    async def learn(self, refs: Collection[SchemaRef]) -> None:
        """Ask for these ids. Raises UnreachableError when the registry does not answer, or a schema can't be compiled
        now; what it has said is kept."""
        async with self._turn:
            now = self._now()
            wanted = [ref for ref in refs if ref not in self.schemas or self._faulty.get(ref, now + 1) <= now]
            if len(self.schemas) + len(wanted) > _SCHEMAS_MAX or sum(self._sizes.values()) > _TEXT_MAX:
                for old in list(self.schemas)[: len(self.schemas) // 2]:
                    del self.schemas[old]
                    self._faulty.pop(old, None)
                    self._sizes.pop(old, None)
            for begin in range(0, len(wanted), _SIDE_BY_SIDE):
                asked = wanted[begin : begin + _SIDE_BY_SIDE]
                answers = await asyncio.gather(*map(self._ask, asked), return_exceptions=True)
                for answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer

    async def learn_of(self, records: Sequence[Record]) -> None:
        """Learn what these records need, so that they can be decoded. Raises as `learn` does."""
        if refs := self.missing(records):
            await self.learn(refs)

    async def check(self) -> None:
        """Raises UnreachableError when the registry does not answer."""
        await self._client.check()

    async def _ask(self, ref: SchemaRef) -> None:
        try:
            found = await self._client.schema(ref)
            # To make what reads it takes a moment, for which nothing else should wait.
            schema = await asyncio.to_thread(made_of, found, self._limits)
        except SchemaFault as fault:
            log.warning("a schema can't be used", extra={"schema": ref, "error": fault.message})
            self.schemas[ref] = fault
            self._faulty[ref] = self._now() + UNKNOWN_S
        else:
            log.info("a schema was read", extra={"schema": ref, "kind": found.kind})
            self.schemas[ref] = schema
            self._faulty.pop(ref, None)
            self._sizes[ref] = len(found.text) + sum(map(len, found.references))


def made_of(found: FoundSchema, limits: Limits | None = None) -> WireSchema:
    """What reads the values of a schema. Raises SchemaFault, and UnreachableError where it can't be compiled now."""
    if found.kind == "PROTOBUF":
        return ProtobufSchema(compiled(found.text, found.files))
    return wire_schema(found.kind, found.text, found.references, limits)
