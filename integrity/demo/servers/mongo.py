"""MongoDB 6 from a wheel, or the one installed: a replica set of one member, so that transactions work."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from integrity.demo.servers.process import Server, ServerUnavailable, answers, free_port

_REPLICA_SET: Final = "rs0"
_CALL_TIMEOUT_MS: Final = 5_000


class MongoServer(Server):
    """One member; `settings` are its server parameters, `test_commands` allows `failCommand`."""

    title = "MongoDB"

    def __init__(
        self, *, test_commands: bool = False, cache_gb: float = 0.5, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._parameters = {
            "diagnosticDataCollectionEnabled": "false",
            # There is no other member that could take over: waiting for one only makes the stop slow.
            "shutdownTimeoutMillisForSignaledShutdown": "100",
            "enableTestCommands": str(int(test_commands)),
        } | dict(settings or {})
        self._cache_gb = cache_gb
        self._port = 0
        self._is_initiated = False

    @staticmethod
    def available() -> bool:
        """Tell if the programs are here."""
        try:
            _find_mongod()
        except ServerUnavailable:
            return False
        return True

    def url(self, database: str = "test") -> str:
        """Return the address of a database, as drivers take it."""
        return f"mongodb://127.0.0.1:{self._port}/{quote(database)}?replicaSet={_REPLICA_SET}"

    def _provide(self) -> None:
        _find_mongod()

    def _prepare(self) -> None:
        self._port = free_port()
        self._is_initiated = False
        (self.directory / "data").mkdir()

    def _command(self) -> Sequence[str | Path]:
        return [
            _find_mongod(),
            "--dbpath",
            self.directory / "data",
            "--bind_ip",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--replSet",
            _REPLICA_SET,
            "--wiredTigerCacheSizeGB",
            str(self._cache_gb),
            "--nounixsocket",
            "--quiet",
            *(part for name, value in self._parameters.items() for part in ("--setParameter", f"{name}={value}")),
        ]

    def _launch(self) -> None:
        super()._launch()
        if not self._is_initiated:
            member = {"_id": 0, "host": f"127.0.0.1:{self._port}"}
            self._admin({"replSetInitiate": {"_id": _REPLICA_SET, "members": [member]}})
            self._is_initiated = True
            self._wait_until(self._is_ready, "elected no primary")

    def _is_ready(self) -> bool:
        if not answers(self._port):
            return False
        from pymongo.errors import PyMongoError

        try:
            hello = self._admin({"hello": 1})
        except PyMongoError:
            return False
        return not self._is_initiated or bool(hello.get("isWritablePrimary"))

    def _admin(self, command: Mapping[str, object]) -> Mapping[str, object]:
        from pymongo import MongoClient

        client: MongoClient[dict[str, object]] = MongoClient(
            f"mongodb://127.0.0.1:{self._port}/?directConnection=true",
            serverSelectionTimeoutMS=_CALL_TIMEOUT_MS,
            socketTimeoutMS=_CALL_TIMEOUT_MS,
        )
        with client:
            return client.admin.command(dict(command))


def _find_mongod() -> Path:
    spec = importlib.util.find_spec("fiftyone")
    for place in () if spec is None else spec.submodule_search_locations or ():
        wheel = Path(place) / "db" / "bin" / "mongod"
        if wheel.exists():
            if not wheel.stat().st_mode & 0o100:
                wheel.chmod(0o755)
            return wheel
    system = shutil.which("mongod")
    if system is None:
        raise ServerUnavailable("MongoDB is missing: install it with pip install 'integrity[demo]'.")
    return Path(system)
