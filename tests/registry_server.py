"""A real schema registry: Apicurio, by the API that it has in common with Confluent's."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from integrity.demo.servers.jars import Artifact, java, resolve_plugin
from integrity.demo.servers.process import Server, free_port

_APICURIO: Final = Artifact(
    "io.apicurio:apicurio-registry-app:2.6.13.Final:tar.gz:all",
    sha256="3cda1b34aa020fb4ac4dd6a66018d757e81e437f97e20a1f92d366b70091c6ba",
)
_BASE: Final = "/apis/ccompat/v7"


class RegistryServer(Server):
    """One registry that keeps its schemas in memory."""

    title = "Schema registry"
    start_timeout_s = 180

    def __init__(self) -> None:
        super().__init__()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{_BASE}"

    @property
    def native_url(self) -> str:
        """Where its own converters find it."""
        return f"http://127.0.0.1:{self._port}/apis/registry/v2"

    def register(
        self, subject: str, schema: Any, kind: str = "AVRO", references: Sequence[Mapping[str, Any]] = ()
    ) -> int:
        """Keep a schema, one of Protobuf as its text; returns its id."""
        body = {
            "schema": schema if kind == "PROTOBUF" else json.dumps(schema),
            "schemaType": kind,
            "references": list(references),
        }
        answer = self._request("POST", f"{_BASE}/subjects/{quote(subject, safe='')}/versions", body)
        return int(answer["id"])

    def _provide(self) -> None:
        java()
        resolve_plugin(_APICURIO)

    def _prepare(self) -> None:
        self._port = free_port()

    def _command(self) -> Sequence[str | Path]:
        jar = resolve_plugin(_APICURIO) / "apicurio-registry-app-2.6.13.Final-runner.jar"
        return [
            java(),
            "-Xmx384m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dquarkus.http.host=127.0.0.1",
            f"-Dquarkus.http.port={self._port}",
            "-Dquarkus.log.level=WARN",
            "-jar",
            jar,
        ]

    def _is_ready(self) -> bool:
        try:
            self._request("GET", f"{_BASE}/subjects")
        except (OSError, http.client.HTTPException, AssertionError):
            return False
        return True

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            payload = None if body is None else json.dumps(dict(body))
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        assert response.status == 200, answer
        return json.loads(answer)
