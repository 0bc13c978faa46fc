"""Schemas of Protobuf become descriptors: with what they import, or not at all, and never by running long."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from integrity.core.decode.avro import SchemaFault
from integrity.core.decode.protobuf import ProtobufSchema
from integrity.errors import UnreachableError
from integrity.registry import protoc
from integrity.registry.cache import SchemaCache, made_of
from integrity.registry.client import FoundSchema
from integrity.registry.protoc import compiled
from tests.unit.test_registry import client

MAIN = 'syntax = "proto3"; import "shop/money.proto"; message Order { Money total = 1; }'
MONEY = 'syntax = "proto3"; message Money { int64 cents = 1; }'


def fields_of(descriptors: bytes) -> list[str]:
    schema: Any = json.loads(ProtobufSchema(descriptors).json(b"\0", 0))["schema"]
    return [each["field"] for each in schema["fields"]]


def test_a_schema_is_compiled_with_what_it_refers_to() -> None:
    assert fields_of(compiled(MAIN, {"shop/money.proto": MONEY})) == ["total"]


def test_what_confluent_s_registry_knows_is_imported_without_a_reference() -> None:
    names = (
        "confluent/meta.proto", "confluent/type/decimal.proto", "confluent/type/variant.proto",
        "google/type/date.proto", "google/type/timeofday.proto", "google/type/money.proto", "google/protobuf/any.proto",
        "google/protobuf/descriptor.proto", "google/protobuf/duration.proto", "google/protobuf/empty.proto",
        "google/protobuf/field_mask.proto", "google/protobuf/struct.proto", "google/protobuf/timestamp.proto",
        "google/protobuf/wrappers.proto",
    )  # fmt: skip
    imports = "".join(f'import "{name}";' for name in names)
    assert fields_of(compiled(f'syntax = "proto3"; {imports} message M {{ google.type.Money m = 1; }}', {})) == ["m"]


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("message", {}),
        ('syntax = "proto3"; message M { Gone gone = 1; }', {}),
        (MAIN, {}),
        (MAIN, {"shop/money.proto": "broken"}),
        (MAIN, {"shop/money.proto": 'syntax = "proto3"; import "schema.proto"; message Money {}'}),
        (MAIN, {"shop/money.proto": MONEY, "shop": MONEY}),
        (MAIN, {"../money.proto": MONEY}),
        (MAIN, {"/tmp/money.proto": MONEY}),
        (MAIN, {"shop/../money.proto": MONEY}),
        (MAIN, {"": MONEY}),
        (MAIN, {"-I/": MONEY}),
        ("\ud800\0", {}),
        ("//" + "x" * 9_000_000, {}),
    ],
)
def test_a_schema_that_does_not_compile_is_a_fault_of_the_schema(text: str, files: dict[str, str]) -> None:
    with pytest.raises(SchemaFault) as fault:
        compiled(text, files)
    assert "Gone" not in fault.value.message


def test_a_schema_imports_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "money.proto").write_text(MONEY)
    for name in (f"{tmp_path}/money.proto", "../money.proto"):
        with pytest.raises(SchemaFault):
            compiled(f'syntax = "proto3"; import "{name}"; message M {{ Money m = 1; }}', {})


def test_without_the_extra_the_fault_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protoc, "find_spec", lambda name: None)
    with pytest.raises(SchemaFault, match=r"pip install 'integrity\[protobuf\]'"):
        made_of(FoundSchema("PROTOBUF", MONEY, ()))


@pytest.mark.parametrize("fault", [subprocess.TimeoutExpired("protoc", 10), OSError("no process")])
def test_a_compiler_that_can_t_run_now_is_waited_for(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing of the schema: its records are no dead letters."""

    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UnreachableError, match="compiled"):
        compiled(MONEY, {})


def found(text: str, *references: tuple[str, str]) -> httpx.Response:
    named = [{"name": name, "subject": subject, "version": 1} for name, subject in references]
    return httpx.Response(200, json={"schema": text, "schemaType": "PROTOBUF", "references": named})


async def test_references_are_kept_by_the_names_that_import_them() -> None:
    """One schema under two names, and one that another needs."""
    answers = {
        "/schemas/ids/1": found(MAIN, ("a.proto", "money"), ("b.proto", "line")),
        "/subjects/line/versions/1": found("line", ("c.proto", "money")),
        "/subjects/money/versions/1": found(MONEY),
    }
    schema = await client(lambda request: answers[request.url.path]).schema(1)
    assert schema.files == {"a.proto": MONEY, "b.proto": "line", "c.proto": MONEY}
    answers["/subjects/line/versions/1"] = found("line", ("a.proto", "other"))
    with pytest.raises(SchemaFault, match="one name"):
        await client(lambda request: answers[request.url.path]).schema(1)


async def test_the_cache_compiles_what_the_registry_has() -> None:
    class Registry:
        async def check(self) -> None:
            return None

        async def schema(self, ref: object) -> FoundSchema:
            return FoundSchema("PROTOBUF", MAIN, (MONEY,), {"shop/money.proto": MONEY} if ref == 1 else {})

    cache = SchemaCache(Registry())
    await cache.learn([1, 2])
    assert isinstance(cache.schemas[1], ProtobufSchema) and isinstance(cache.schemas[2], SchemaFault)
