"""Kafka Connect with the Debezium connector for PostgreSQL: what the source side of a real installation runs."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from integrity.demo.servers.jars import Artifact, JarSet, java, resolve_plugin
from integrity.demo.servers.kafka import KAFKA_VERSION
from integrity.demo.servers.postgres import query
from integrity.demo.servers.process import Server, ServerUnavailable, free_port

DEBEZIUM_POSTGRES: Final = Artifact(
    "io.debezium:debezium-connector-postgres:3.7.0.Final:tar.gz:plugin",
    sha256="660673cbabd2f269da21409208ebd0f0d9977bd92e824fc9daa272f240e88e51",
)
_WORKER: Final = JarSet(
    f"connect-{KAFKA_VERSION}",
    (
        Artifact(f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}"),
        Artifact(f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}"),
        Artifact("org.slf4j:slf4j-simple:1.7.36"),
    ),
)
_REQUEST_TIMEOUT_S: Final = 30
_CONNECTOR_TIMEOUT_S: Final = 60
_POLL_S: Final = 0.1
_STREAMING: Final = """
    select count(*) from pg_replication_slots slot join pg_stat_replication sender on sender.pid = slot.active_pid
    where slot.slot_name = :'slot' and sender.state = 'streaming'
"""


class ConnectServer(Server):
    """One distributed worker on the given broker; each plugin makes its start about two seconds longer."""

    title = "Kafka Connect"
    start_timeout_s = 120
    stop_timeout_s = 20

    def __init__(
        self, bootstrap_servers: str, *, heap_mb: int = 1_024, plugins: Sequence[Artifact] = (DEBEZIUM_POSTGRES,)
    ) -> None:
        super().__init__()
        self._bootstrap_servers = bootstrap_servers
        self._heap_mb = heap_mb
        self._plugins = tuple(plugins)
        self._port = 0

    @property
    def url(self) -> str:
        """The address of the worker's REST interface."""
        return f"http://127.0.0.1:{self._port}"

    def create_connector(self, name: str, config: Mapping[str, str]) -> None:
        """Create or change a connector and wait until it runs; a PostgreSQL source until it streams its slot."""
        self._request("PUT", f"/connectors/{quote(name)}/config", config)
        self._wait_for_connector(name, lambda: self._is_running(name), "does not run")
        if "slot.name" in config:
            self._wait_for_connector(name, lambda: _is_streaming(config), "does not stream")

    def delete_connector(self, name: str) -> None:
        """Delete a connector; the replication slot of a source stays in its database."""
        self._request("DELETE", f"/connectors/{quote(name)}")

    def _provide(self) -> None:
        java()
        _WORKER.resolve()
        for plugin in self._plugins:
            resolve_plugin(plugin)

    def _prepare(self) -> None:
        self._port = free_port()
        plugins = self.directory / "plugins"
        plugins.mkdir()
        for artifact in self._plugins:
            (plugins / artifact.name).symlink_to(resolve_plugin(artifact), target_is_directory=True)
        text = "".join(f"{name}={value}\n" for name, value in self._configuration(plugins).items())
        (self.directory / "connect.properties").write_text(text)

    def _command(self) -> Sequence[str | Path]:
        return [
            java(),
            f"-Xmx{self._heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-cp",
            _WORKER.class_path,
            "org.apache.kafka.connect.cli.ConnectDistributed",
            self.directory / "connect.properties",
        ]

    def _is_ready(self) -> bool:
        try:
            # Answered only after the worker has joined its group and read its topics.
            self._request("GET", "/connectors")
        except (OSError, http.client.HTTPException, ServerUnavailable):
            return False
        return True

    def _is_running(self, name: str) -> bool:
        try:
            status = self._request("GET", f"/connectors/{quote(name)}/status")
        except ServerUnavailable:
            # Unknown until the worker has read its own topic.
            return False
        assert isinstance(status, dict), "the status of a connector is a JSON object"
        parts = [status["connector"], *status["tasks"]]
        if failed := [part for part in parts if part["state"] == "FAILED"]:
            raise ServerUnavailable(f"The connector {name} failed: {failed[0].get('trace', 'no reason given')}")
        return bool(status["tasks"]) and all(part["state"] == "RUNNING" for part in parts)

    def _wait_for_connector(self, name: str, is_done: Callable[[], bool], failure: str) -> None:
        give_up_at = time.monotonic() + _CONNECTOR_TIMEOUT_S
        while not is_done():
            if time.monotonic() > give_up_at:
                raise ServerUnavailable(
                    f"The connector {name} {failure} after {_CONNECTOR_TIMEOUT_S} s. "
                    f"Kafka Connect's log ends with:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def _request(self, method: str, path: str, body: Mapping[str, str] | None = None) -> object:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_REQUEST_TIMEOUT_S)
        try:
            payload = None if body is None else json.dumps(dict(body))
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise ServerUnavailable(f"Kafka Connect refused {method} {path}: {answer.decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def _configuration(self, plugins: Path) -> dict[str, str]:
        topics = {
            f"{kind}.storage.{name}": value
            for kind in ("offset", "config", "status")
            for name, value in (("topic", f"connect.{self._port}.{kind}"), ("replication.factor", "1"))
        }
        return topics | {
            "bootstrap.servers": self._bootstrap_servers,
            "group.id": f"connect.{self._port}",
            "offset.storage.partitions": "1",
            "status.storage.partitions": "1",
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "key.converter.schemas.enable": "false",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter.schemas.enable": "false",
            "listeners": self.url,
            "plugin.path": str(plugins),
            # Halves the start; a plugin without a manifest, which none of today lacks, would not be seen.
            "plugin.discovery": "service_load",
            "offset.flush.interval.ms": "2000",
            "scheduled.rebalance.max.delay.ms": "0",
            "connector.client.config.override.policy": "All",
        }


def debezium_postgres_config(url: str, *, name: str, tables: Sequence[str], **more: str) -> dict[str, str]:
    """Return the configuration of a Debezium source of these tables, whose topics are `<name>.<schema>.<table>`."""
    parts = urlsplit(url)
    return {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "plugin.name": "pgoutput",
        "database.hostname": parts.hostname or "127.0.0.1",
        "database.port": str(parts.port or 5432),
        "database.user": parts.username or "postgres",
        "database.password": parts.password or "unused",
        "database.dbname": parts.path.removeprefix("/"),
        "topic.prefix": name,
        "slot.name": name,
        "publication.name": name,
        "publication.autocreate.mode": "filtered",
        "table.include.list": ",".join(tables),
        "poll.interval.ms": "20",
    } | more


def _is_streaming(config: Mapping[str, str]) -> bool:
    user, host, port, database = (config[f"database.{name}"] for name in ("user", "hostname", "port", "dbname"))
    url = f"postgresql://{quote(user)}:{quote(config['database.password'])}@{host}:{port}/{quote(database)}"
    return query(url, _STREAMING, {"slot": config["slot.name"]}).strip() == "1"
