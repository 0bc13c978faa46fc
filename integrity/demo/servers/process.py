"""One server process: started on free ports, watched until it answers, ended by its own process id.

The process never outlives this one: the kernel kills it when the thread that forked it ends, so that thread does
nothing but wait for it. It has its own session, so that Ctrl-C in a terminal reaches this program alone, which then
stops its servers in its own order.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from integrity.errors import OperationError

_POLL_S: Final = 0.02
_START_ATTEMPTS_MAX: Final = 3
_LOG_TAIL_LINES: Final = 20
_LOG_TAIL_BYTES_MAX: Final = 65_536
# Below the range from which the kernel takes the ports of outgoing connections: none of those can steal a port between
# its choice and the server's bind, nor while a server is being restarted.
_PORT_MIN: Final = 20_000
_PORT_MAX: Final = 32_000


class ServerUnavailable(OperationError):
    """A server of the demo or the tests cannot run here; the message says what to do."""

    code = "server_unavailable"


class _PortTaken(Exception):
    """Another process took the port between its choice and the bind."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    for _ in range(1_000):
        port = random.randrange(_PORT_MIN, _PORT_MAX)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerUnavailable(f"No port of 127.0.0.1 from {_PORT_MIN} to {_PORT_MAX} is free.")


def answers(port: int) -> bool:
    """Tell if something accepts connections at this port of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def run(command: Sequence[str | Path], *, timeout_s: float, failure: str, stdin: str | None = None) -> str:
    """Run a helper program to its end and return its output; raise `failure` with its last lines otherwise."""
    try:
        ended = subprocess.run(
            list(command),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment(),
        )
    except subprocess.TimeoutExpired as exc:
        raise ServerUnavailable(f"{failure} within {timeout_s:g} s.") from exc
    except OSError as exc:
        raise ServerUnavailable(f"{failure}: {exc}.") from exc
    if ended.returncode != 0:
        lines = (ended.stdout + ended.stderr).strip().splitlines()[-_LOG_TAIL_LINES:]
        raise ServerUnavailable("\n".join([f"{failure}; the program said:", *lines]))
    return ended.stdout


def environment(**extra: str) -> Mapping[str, str]:
    """Return this environment without what would change a server's or client program's behaviour."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "KAFKA_", "INTEGRITY_", "OTEL_"))
    }
    return kept | {"LC_ALL": "C"} | extra


class _Child:
    """A child process and the thread that forked it, which lives exactly as long."""

    def __init__(self, command: Sequence[str | Path], log: Path, cwd: Path, env: Mapping[str, str]) -> None:
        self._command = [str(part) for part in command]
        self._log = log
        self._cwd = cwd
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._forked = threading.Event()
        self._ended = threading.Event()
        # A daemon, so that it never holds up the end of this program; the kernel then kills the child.
        threading.Thread(target=self._live, name=f"server-{Path(self._command[0]).name}", daemon=True).start()
        self._forked.wait()
        if self._error is not None:
            raise ServerUnavailable(f"{self._command[0]} could not be run: {self._error}.") from self._error

    def _live(self) -> None:
        try:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self._cwd,
                    env=dict(self._env),
                    start_new_session=True,
                )
        except OSError as exc:
            self._error = exc
            return
        finally:
            self._forked.set()
        self._process.wait()
        self._ended.set()

    @property
    def pid(self) -> int:
        assert self._process is not None, "a child that could not be forked is never handed out"
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; to a child that has ended, none."""
        assert self._process is not None, "a child that could not be forked is never handed out"
        self._process.send_signal(number)

    def end(self, first: signal.Signals, timeout_s: float) -> None:
        """Ask the child to end by `first`, kill it when the time is over, and wait for its end."""
        self.send(first)
        self.send(signal.SIGCONT)
        if not self._ended.wait(timeout_s):
            self.send(signal.SIGKILL)
            self._ended.wait()


class Server(ABC):
    """A server that a `with` statement, or `start()` and `stop()`, runs."""

    title: ClassVar[str]
    start_timeout_s: ClassVar[float] = 60
    stop_timeout_s: ClassVar[float] = 15
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    kill_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._directory: Path | None = None
        self._log_offset = 0

    @abstractmethod
    def _prepare(self) -> None:
        """Choose the ports and write the files, in the empty directory of the server."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Return the command that runs the server in the foreground."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Tell if the server does its work; asked every few milliseconds after the launch."""

    @abstractmethod
    def _provide(self) -> None:
        """Fetch or install what the server needs; the time this takes does not count as starting."""

    def _wrap(self, command: Sequence[str | Path]) -> Sequence[str | Path]:
        return [*dies_with_parent(), *command]

    @property
    def directory(self) -> Path:
        """The server's temporary directory."""
        if self._directory is None:
            raise ServerUnavailable(f"{self.title} has not been started.")
        return self._directory

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    def start(self) -> Self:
        """Start the server and return it when it does its work."""
        if self._directory is not None:
            raise ServerUnavailable(f"{self.title} has been started already.")
        self._provide()
        for attempt in range(_START_ATTEMPTS_MAX):
            try:
                self._directory = _make_directory(self.title)
                self._prepare()
                self._launch()
            except _PortTaken as exc:
                self.stop()
                if attempt + 1 == _START_ATTEMPTS_MAX:
                    raise ServerUnavailable(f"{self.title} found no free port.") from exc
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def stop(self) -> None:
        """End the server and remove its files; does nothing when it is not running."""
        self._end(self.stop_signal)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def kill(self) -> None:
        """End the server as a crash would; its files and ports stay for `restart`."""
        self._end(self.kill_signal)

    def restart(self) -> None:
        """End the server gracefully if it runs, and start it again on its files and ports."""
        self._end(self.stop_signal)
        try:
            self._launch()
        except _PortTaken as exc:
            raise ServerUnavailable(f"{self.title} lost its port while it was down.") from exc

    def suspend(self) -> None:
        """Freeze the server: it keeps its connections and answers nothing."""
        self._running().send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._running().send(signal.SIGCONT)

    def log_tail(self, lines_max: int = _LOG_TAIL_LINES) -> str:
        """Return the last lines that the server wrote since its last launch."""
        return "\n".join(self._log_text().splitlines()[-lines_max:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> _Child:
        if self._child is None:
            raise ServerUnavailable(f"{self.title} is not running.")
        return self._child

    def _end(self, first: signal.Signals) -> None:
        if self._child is not None:
            self._child.end(first, self.stop_timeout_s)
            self._child = None

    def _launch(self) -> None:
        log = self.directory / "server.log"
        self._log_offset = log.stat().st_size if log.exists() else 0
        self._child = _Child(self._wrap(self._command()), log, self.directory, environment())
        self._wait_until(self._is_ready, "did not start")

    def _wait_until(self, is_done: Callable[[], bool], failure: str, timeout_s: float | None = None) -> None:
        limit_s = self.start_timeout_s if timeout_s is None else timeout_s
        give_up_at = time.monotonic() + limit_s
        while not is_done():
            if self._running().has_ended:
                if "ddress already in use" in self._log_text():
                    raise _PortTaken
                raise ServerUnavailable(f"{self.title} {failure}: it ended. Its log ends with:\n{self.log_tail()}")
            if time.monotonic() > give_up_at:
                raise ServerUnavailable(
                    f"{self.title} {failure} within {limit_s:g} s. Its log ends with:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def _log_text(self) -> str:
        log = self.directory / "server.log"
        if not log.exists():
            return ""
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_offset, size - _LOG_TAIL_BYTES_MAX))
            return file.read().decode(errors="replace")


def dies_with_parent() -> Sequence[str]:
    """Return the command prefix that ties a child to this process, where the system has it (Linux)."""
    setpriv = shutil.which("setpriv")
    return () if setpriv is None else (setpriv, "--pdeathsig", "KILL")


def _make_directory(title: str) -> Path:
    # A server that gives up root's rights must be able to walk to its directory.
    base = Path(tempfile.gettempdir())
    parents = (base, *base.parents)
    is_walkable = all(parent.stat().st_mode & 0o001 for parent in parents)
    directory = Path(
        tempfile.mkdtemp(prefix=f"integrity-{title.lower().replace(' ', '-')}-", dir=base if is_walkable else "/tmp")
    )
    directory.chmod(0o711)
    return directory
