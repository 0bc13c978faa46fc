"""What the live topics have to be like, and the making of the ledger's topic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code

from integrity.core.rules.model import Dependent
from integrity.errors import Finding, LedgerError, UnreachableError
from integrity.ports import Deadline
from integrity.stores.topic import clients
from integrity.stores.topic.faults import CLIENT_ERRORS

LEDGER_CONFIG: Final[Mapping[str, str]] = {
    "cleanup.policy": "compact",
    # A ledger is read from its start at each takeover: compacted early, it stays short.
    "segment.bytes": str(64 * 1024 * 1024),
    "min.cleanable.dirty.ratio": "0.1",
}
MISSED_DELETES_MS: Final = 10 * 60 * 1000
"""A null record has to stay that long, so that a view which reads on every few minutes misses none."""
_REPLICAS_MAX: Final = 3
_TOPIC_EXISTS: Final = 36
_LEADER_POLL_S: Final = 0.05

Config = Mapping[str, str]


class Fitness:
    """Looks at the topics of one store, and creates its ledger."""

    def __init__(self, client: Mapping[str, object], ledger: str, dependents: Sequence[Dependent]) -> None:
        self._client = client
        self._ledger = ledger
        self._dependents = dependents
        self._closer = clients.Closer()

    async def check(self, deadline: Deadline) -> tuple[list[Finding], int | None]:
        """All findings, and the smallest record limit, in bytes, of the child topics. Raises UnreachableError."""
        names = sorted({dependent.target.name for dependent in self._dependents} | {self._ledger})
        async with self.admin(deadline) as admin:
            existing = {topic.name for topic in await clients.describe(admin, names) if topic.partitions}
            configs = await _configs(admin, [name for name in names if name in existing])
        findings: list[Finding] = []
        for dependent in self._dependents:
            findings += _of_child(dependent, configs.get(dependent.target.name))
        findings += _of_ledger(self._ledger, configs.get(self._ledger), self.ddl())
        children = [config for name, config in configs.items() if name != self._ledger]
        return findings, min((int(config["max.message.bytes"]) for config in children), default=None)

    def ddl(self) -> str:
        """The command that creates the ledger's topic."""
        settings = "".join(f" --config {name}={value}" for name, value in LEDGER_CONFIG.items())
        return (
            f"kafka-topics.sh --bootstrap-server {_bootstrap(self._client)} --create --if-not-exists "
            f"--topic {self._ledger} --partitions 1 --replication-factor {_REPLICAS_MAX}{settings}\n"
        )

    async def migrate(self, deadline: Deadline) -> None:
        """Create the ledger's topic when it is missing. Raises UnreachableError, LedgerError."""
        async with self.admin(deadline) as admin:
            if not (await clients.describe(admin, [self._ledger]))[0].partitions:
                brokers = len((await admin.describe_cluster())["brokers"])
                topic = NewTopic(self._ledger, 1, min(_REPLICAS_MAX, brokers), topic_configs=dict(LEDGER_CONFIG))
                code = (await admin.create_topics([topic])).topic_errors[0][1]
                if code not in (0, _TOPIC_EXISTS):
                    raise LedgerError(
                        f"Kafka refuses to create topic {self._ledger} ({for_code(code).__name__}).",
                        hint=f"Have it created: {self.ddl().strip()}",
                    )
                while not (await clients.describe(admin, [self._ledger]))[0].partitions:
                    await asyncio.sleep(_LEADER_POLL_S)  # a new topic is known to its server a little later
            for finding in _of_ledger(self._ledger, (await _configs(admin, [self._ledger]))[self._ledger], self.ddl()):
                raise LedgerError(finding.message, hint=finding.hint)

    @asynccontextmanager
    async def admin(self, deadline: Deadline) -> AsyncIterator[AIOKafkaAdminClient]:
        """A client for questions. Raises UnreachableError."""
        admin = clients.admin(self._client)
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await admin.start()
                yield admin
        except CLIENT_ERRORS as exc:
            raise unreachable(self._client) from exc
        finally:
            self._closer.stop(admin.close(), "stop the admin client")
            await self._closer.wait()


async def policies_of(client: Mapping[str, object], topics: Sequence[str], deadline: Deadline) -> dict[str, str]:
    """The cleanup policy of each of these topics that exists. Raises UnreachableError."""
    async with Fitness(client, "", ()).admin(deadline) as admin:
        existing = [topic.name for topic in await clients.describe(admin, topics) if topic.partitions]
        return {name: config["cleanup.policy"] for name, config in (await _configs(admin, existing)).items()}


def unreachable(client: Mapping[str, object]) -> UnreachableError:
    return UnreachableError(
        f"Kafka at {_bootstrap(client)} does not answer.",
        hint="See that it runs, and that the address and the security settings are right.",
    )


def _bootstrap(client: Mapping[str, object]) -> str:
    servers = client.get("bootstrap_servers", "localhost")
    return servers if isinstance(servers, str) else ",".join(map(str, servers)) if isinstance(servers, list) else "?"


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, Config]:
    if not names:
        return {}
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, Config] = {}
    for answer in await admin.describe_configs(wanted):
        for code, _, _, name, entries in answer.resources:
            if code:
                raise for_code(code)()
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def _of_child(dependent: Dependent, config: Config | None) -> list[Finding]:
    topic = dependent.target.name
    if config is None:
        return [_at(dependent, "topic_missing", f"Topic {topic} does not exist.", "Create it, or mend the rule.")]
    findings: list[Finding] = []
    if "compact" not in config["cleanup.policy"].split(","):
        findings.append(
            _at(
                dependent,
                "topic_not_compacted",
                f"Topic {topic} is not compacted (cleanup.policy={config['cleanup.policy']}): a null record would "
                "delete nothing.",
                f"kafka-configs.sh --alter --topic {topic} --add-config cleanup.policy=compact",
            )
        )
    if int(config["delete.retention.ms"]) < MISSED_DELETES_MS:
        findings.append(
            _at(
                dependent,
                "delete_retention_short",
                f"Topic {topic} keeps null records for {config['delete.retention.ms']} ms only: readers that are "
                "down for longer never learn of a deletion.",
                f"kafka-configs.sh --alter --topic {topic} --add-config delete.retention.ms=86400000",
                severity="warning",
            )
        )
    return findings


def _of_ledger(ledger: str, config: Config | None, ddl: str) -> list[Finding]:
    if config is None:
        return [
            Finding(
                "ledger_missing",
                f"The ledger topic {ledger} does not exist.",
                f"Run integrity migrate, or: {ddl.strip()}",
            )
        ]
    if config["cleanup.policy"] != "compact":
        return [
            Finding(
                "ledger_not_compacted",
                f"The ledger topic {ledger} has cleanup.policy={config['cleanup.policy']}: it would forget.",
                f"kafka-configs.sh --alter --topic {ledger} --add-config cleanup.policy=compact",
            )
        ]
    return []


def _at(dependent: Dependent, code: str, message: str, hint: str, *, severity: str = "error") -> Finding:
    place = dependent.place
    return Finding(code, message, hint, place.file, place.line, place.column, severity)
