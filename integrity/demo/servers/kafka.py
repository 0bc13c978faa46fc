"""Apache Kafka: broker and controller in one Java process, every internal topic with one replica."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from integrity.demo.servers.jars import Artifact, JarSet, find_java, java
from integrity.demo.servers.process import Server, answers, free_port, run

KAFKA_VERSION: Final = "4.1.1"
_BROKER: Final = JarSet(
    f"kafka-{KAFKA_VERSION}",
    (Artifact(f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"), Artifact("org.slf4j:slf4j-simple:1.7.36")),
)
_FORMAT_TIMEOUT_S: Final = 60


class KafkaServer(Server):
    """One broker; `settings` are added to its configuration."""

    title = "Kafka"

    def __init__(self, *, heap_mb: int = 256, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._heap_mb = heap_mb
        self._settings = dict(settings or {})
        self._port = 0
        self._controller_port = 0

    @staticmethod
    def available() -> bool:
        """Tell if Java and the broker's jars are here, so that `start` needs no network."""
        return _BROKER.is_complete and find_java() is not None

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address, as clients take it."""
        return f"127.0.0.1:{self._port}"

    def _provide(self) -> None:
        java()
        _BROKER.resolve()

    def _prepare(self) -> None:
        self._port, self._controller_port = free_port(), free_port()
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in self._configuration().items()))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        run(
            [
                *self._java(64),
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster_id}",
                f"--config={self._properties}",
            ],
            timeout_s=_FORMAT_TIMEOUT_S,
            failure="Kafka could not format its storage",
        )

    def _command(self) -> Sequence[str | Path]:
        return [*self._java(self._heap_mb), "kafka.Kafka", self._properties]

    def _is_ready(self) -> bool:
        # The port opens before the broker has joined its controller; this line comes after.
        return "Kafka Server started" in self._log_text() and answers(self._port)

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    def _java(self, heap_mb: int) -> list[str]:
        return [
            java(),
            f"-Xmx{heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-cp",
            _BROKER.class_path,
        ]

    def _configuration(self) -> dict[str, str]:
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": f"{self.directory}/data",
            "num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "5",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "5",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # The default, 128 MiB, does not fit into a small heap.
            "log.cleaner.dedupe.buffer.size": "16777216",
        } | self._settings
