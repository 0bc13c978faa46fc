"""What is done before the first batch: the ledger is made, and the live store is compared with the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import pymongo
from bson import ObjectId
from pymongo import IndexModel
from pymongo.errors import ConfigurationError, ConnectionFailure, DuplicateKeyError, OperationFailure, PyMongoError

from integrity.errors import Finding, LedgerError, OperationError, UnfitStoreError, UnreachableError
from integrity.stores.mongo import fitness
from integrity.stores.mongo.ledger import COLLECTIONS, INDEXES, LEDGER_ID, LEDGER_VERSION, Ledger, index_options
from integrity.stores.mongo.verdict import AUTHENTICATION_FAILED, TRANSIENT, UNAUTHORIZED
from integrity.stores.rule import StoreRule

_NAMESPACE_EXISTS: Final = 48
_NO_TRANSACTIONS: Final = (20, 59, 115, 263, 303)
"""Illegal operation (a server that stands alone), no such command, not supported, not in a transaction."""


@contextmanager
def reach(at: str, budget_s: float) -> Iterator[None]:
    """Bound the driver's calls inside, and say in this program's words why they failed. `at` names the store."""
    try:
        with pymongo.timeout(budget_s):
            yield
    except (ConnectionFailure, ConfigurationError) as exc:
        raise UnreachableError(
            f"{at} does not answer ({type(exc).__name__}).", hint="Is it running, with a primary, at this address?"
        ) from exc
    except PyMongoError as exc:
        code = exc.code if isinstance(exc, OperationFailure) else None
        if exc.timeout or code in TRANSIENT:
            raise UnreachableError(f"{at} did not answer in time ({type(exc).__name__}).") from exc
        if code in (UNAUTHORIZED, AUTHENTICATION_FAILED):
            raise UnfitStoreError([_privilege(at, code)]) from exc
        raise OperationError(f"{at} refused ({type(exc).__name__}, code {code}).") from exc


async def migrate(ledger: Ledger) -> None:
    """Create what is missing of the ledger; LedgerError when it is newer than this program."""
    version = await _version(ledger)
    if version is not None and version > LEDGER_VERSION:
        raise LedgerError(f"The ledger in {ledger.schema} has version {version}.", hint="Run a newer integrity.")
    existing = set(await ledger.database.list_collection_names())
    for name in COLLECTIONS:
        if ledger.name_of(name) not in existing:
            try:
                await ledger.database.create_collection(ledger.name_of(name), check_exists=False)
            except OperationFailure as exc:
                if exc.code != _NAMESPACE_EXISTS:  # made by another process since
                    raise
    for name in dict.fromkeys(name for name, _, _ in INDEXES):
        indexes = [
            IndexModel(dict.fromkeys(fields, 1), **index_options(only)) for of, fields, only in INDEXES if of == name
        ]
        await ledger.collection(name).create_indexes(indexes)
    try:
        values = {"$setOnInsert": {"version": LEDGER_VERSION}}
        await ledger.collection("meta").update_one({"_id": LEDGER_ID}, values, upsert=True)
    except DuplicateKeyError:
        pass  # written by another process at the same time


async def check(ledger: Ledger, rules: Mapping[str, Sequence[StoreRule]]) -> list[Finding]:
    """Everything in the live store that does not fit the rules."""
    hello = await ledger.database.client.admin.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        return [_no_transactions("is neither a replica set nor a sharded cluster")]
    sharded = hello.get("msg") == "isdbgrid"
    existing = {info["name"]: info async for info in await ledger.database.list_collections()}
    missing = [name for name in COLLECTIONS if ledger.name_of(name) not in existing]
    version = None if missing else await _version(ledger)
    findings: list[Finding] = []
    if version is None:
        text = f"The ledger ({ledger.name_of('*')}) does not exist."
        findings.append(Finding("ledger_missing", text, "Run integrity migrate, or start with --migrate."))
    elif version != LEDGER_VERSION:
        is_older = version < LEDGER_VERSION
        findings.append(
            Finding(
                "ledger_older" if is_older else "ledger_newer",
                f"The ledger ({ledger.name_of('*')}) has version {version}, this program has {LEDGER_VERSION}.",
                "Run integrity migrate." if is_older else "Run a newer integrity.",
            )
        )
    else:
        findings += await _probe(ledger)
    for rule in (rule for of_entity in rules.values() for rule in of_entity):
        findings += await fitness.check(ledger, rule, existing.get(rule.dependent.target.name), sharded=sharded)
    return findings


async def _version(ledger: Ledger) -> int | None:
    document = await ledger.collection("meta").find_one({"_id": LEDGER_ID})
    return None if document is None else int(document["version"])


async def _probe(ledger: Ledger) -> list[Finding]:
    """Prove that transactions hold: some servers that speak MongoDB's protocol answer an abort and do nothing."""
    meta = ledger.collection("meta")
    aborted, committed = f"probe-{ObjectId()}", f"probe-{ObjectId()}"
    try:
        async with ledger.database.client.start_session() as session:
            await session.start_transaction()
            await meta.insert_one({"_id": aborted}, session=session)
            await session.abort_transaction()
            await session.start_transaction()
            await meta.insert_one({"_id": committed}, session=session)
            await session.commit_transaction()
        found = {document["_id"] async for document in meta.find({"_id": {"$in": [aborted, committed]}})}
        await meta.delete_many({"_id": {"$in": [aborted, committed]}})
    except OperationFailure as exc:
        if exc.code in _NO_TRANSACTIONS:
            return [_no_transactions("refuses transactions")]
        if exc.code == UNAUTHORIZED:
            return [_privilege(f"The ledger ({ledger.name_of('*')})", exc.code)]
        raise
    return [] if found == {committed} else [_no_transactions("does not roll a transaction back")]


def _no_transactions(why: str) -> Finding:
    return Finding(
        "no_transactions",
        f"The MongoDB server {why}: effects and ledger cannot be one transaction.",
        "Start it as a replica set (one member is enough): mongod --replSet rs0, then rs.initiate().",
    )


def _privilege(what: str, code: int | None) -> Finding:
    if code == AUTHENTICATION_FAILED:
        return Finding("privilege_missing", f"{what}: the user or password is wrong.", "Look at the URL of the store.")
    return Finding(
        "privilege_missing",
        f"{what}: the user lacks a privilege.",
        "Grant readWrite on the database, or on the ledger's and the rules' collections.",
    )
