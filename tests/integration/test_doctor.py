"""`integrity doctor` on real servers, which it leaves as they are."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from integrity.cli import main
from integrity.demo.servers import KafkaServer
from integrity.errors import RulesError
from integrity.kafka.acls import Need, Operation, Pattern, Resource, lacking
from integrity.kafka.looking import acls, look_at
from integrity.ports import Deadline
from integrity.rules_files import load_rules
from integrity.settings import read_settings
from integrity.wiring.doctor import require_identities
from integrity.wiring.stores import chosen_stores
from tests.conftest import CreateTopic
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_derived_events import deleted, produce

pytestmark = pytest.mark.servers

RULES = """\
version: 1
parent: category
events: {{topics: [{topic}, {topic}_eu], format: debezium, key: {{id: int64}}}}
dependents:
  - store: goods_db
    table: categories
    references: {{parent_id: id}}
    on_delete: {{set_default: {{parent_id: 1}}}}
    entity: category
    key: {{id: int64}}
  - store: goods_db
    table: goods
    references: {{category_id: id}}
    on_delete: {{set_default: {{category_id: 2}}}}
"""

SOURCED = """\
version: 1
parent: customer
events: {{topic: {topic}, format: debezium, key: {{id: int64}}, source: {{store: shop_db, table: customers}}}}
dependents:
  - {{store: orders_db, table: orders, references: {{customer_id: id}}, on_delete: cascade}}
"""


async def test_findings_name_place_and_mend(
    kafka: KafkaServer,
    create_topic: CreateTopic,
    pg_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:

    topic = await create_topic(config={"retention.ms": "60000"})
    await produce(kafka.bootstrap_servers, topic, (1, deleted(1, 5), []), (2, b"{}", []))
    await run_sql(
        pg_database,
        "create table categories(id bigint primary key, parent_id bigint)",
        "create index on categories(parent_id)",
        "create table goods(id bigint primary key, category_id bigint not null)",
        "insert into categories values (1, null)",
    )
    rules = tmp_path / "category.yaml"
    rules.write_text(RULES.format(topic=topic))
    monkeypatch.setenv("INTEGRITY_RULES", str(rules))
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("INTEGRITY_STORES__GOODS_DB__URL", pg_database)
    code = await asyncio.to_thread(main, ["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["unanswered"], code, document["ok"]) == ([], 1, False)
    told = {each["code"]: (each["severity"], each["line"], each["hint"]) for each in document["findings"]}
    [forgets] = [each["message"] for each in document["findings"] if each["code"] == "retention_short"]
    assert forgets == f"deletions older than 1 min are gone from topic '{topic}' (retention.ms)"
    assert told.keys() == {
        "ledger_missing",
        "missing_topic",
        "retention_short",
        "undecodable_events",
        "index_missing",
        "default_unreachable",
    }
    assert told["index_missing"] == ("error", 11, 'CREATE INDEX CONCURRENTLY ON "public"."goods" ("category_id");')
    assert told["default_unreachable"][:2] == ("error", 11), "there is a category 1, and none that is 2"
    assert told["undecodable_events"][2].startswith("bad_envelope: ")
    [look] = (await look_at({"bootstrap_servers": kafka.bootstrap_servers}, [topic], Deadline.after(30))).values()
    assert [record.offset for record in look.last] == [0, 1]
    assert await acls({"bootstrap_servers": kafka.bootstrap_servers}, Deadline.after(30)) is None


async def test_run_does_not_start_where_deletions_name_another_row(
    kafka: KafkaServer,
    create_topic: CreateTopic,
    pg_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    topic = await create_topic(config={"cleanup.policy": "compact"})
    await run_sql(
        pg_database,
        "create table customers(id bigint primary key, email text not null unique)",
        "alter table customers replica identity using index customers_email_key",
    )
    rules = tmp_path / "customer.yaml"
    rules.write_text(SOURCED.format(topic=topic))
    monkeypatch.setenv("INTEGRITY_RULES", str(rules))
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    for store in ("ORDERS_DB", "SHOP_DB"):
        monkeypatch.setenv(f"INTEGRITY_STORES__{store}__URL", pg_database)
    mend = 'ALTER TABLE "public"."customers" REPLICA IDENTITY DEFAULT;'
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "integrity", "run", "--migrate", stderr=subprocess.PIPE
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 2, said.decode()
    assert "REPLICA IDENTITY USING INDEX" in said.decode() and mend in said.decode()
    assert b'"enforcing"' not in said
    assert await asyncio.to_thread(main, ["doctor", "--json"]) == 1
    told = {each["code"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert told["key_made_up"]["hint"] == mend
    assert told["retention_short"]["message"] == (
        f"deletions older than 24 h are gone from topic '{topic}' (delete.retention.ms)"  # Kafka's default
    )

    async def required() -> None:
        settings, loaded = read_settings(None, None).settings, load_rules(rules)
        await require_identities(settings, loaded, chosen_stores(settings, loaded))

    with pytest.raises(RulesError, match="key that is made up"):
        await required()
    # A database of parents that is away, or that no settings tell of, keeps no lane waiting.
    monkeypatch.setenv("INTEGRITY_STORES__SHOP_DB__URL", pg_database.rpartition("/")[0] + "/nowhere")
    await required()
    monkeypatch.delenv("INTEGRITY_STORES__SHOP_DB__URL")
    await required()


async def test_acls_of_a_cluster_are_read_as_it_keeps_them() -> None:
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    reads = Need(Resource.TOPIC, "shop.customers", Operation.READ)
    with KafkaServer(settings=settings) as server:
        client = {"bootstrap_servers": server.bootstrap_servers}
        assert await acls(client, Deadline.after(30)) == []
        admin = AIOKafkaAdminClient(**client)
        await admin.start()
        try:
            prefixed, allowed = Pattern.PREFIXED, 3
            asked = CreateAclsRequest(Resource.TOPIC, "shop.", prefixed, "User:i", "*", Operation.READ, allowed)
            answer = await admin._send_request(asked)
        finally:
            await admin.close()
        assert answer.creation_responses[0][0] == 0
        found = await acls(client, Deadline.after(30))
    assert found is not None
    assert lacking(found, "User:i", [reads]) == []
    assert lacking(found, "User:j", [reads]) == [reads]


async def test_init_prints_the_block_that_fits_a_topic(
    kafka: KafkaServer,
    create_topic: CreateTopic,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    topic, empty = await create_topic(partitions=2), await create_topic()
    await produce(kafka.bootstrap_servers, topic, (1, deleted(1, 5), []), (2, deleted(2, 6), []))
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)

    async def init(topic: str, *more: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["init", "--from-topic", topic, *more])
        return code, *capsys.readouterr()

    code, out, _ = await init(topic)
    assert code == 0
    assert out.endswith(f"events:\n  topic: {topic}\n  format: debezium\n  key: {{id: int64}}\n")
    assert out.startswith(f"# From the last 2 records of {topic}.\n# types_guessed: ")
    code, out, _ = await init(topic, "--json")
    document = json.loads(out)
    assert document["events"] == {"topic": topic, "format": "debezium", "key": {"id": "int64"}}
    assert "no_truncates" in {remark["code"] for remark in document["remarks"]}
    for name, told in ((f"{topic}-no", "There is no topic"), (empty, "holds no record")):
        code, out, err = await init(name)
        assert (code, out) == (2, "") and told in err
