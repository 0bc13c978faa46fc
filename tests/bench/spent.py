"""What servers spend of the processors: the better measure where others use the machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from integrity.demo.servers.process import Server


class Spent:
    """The CPU seconds that servers have spent since it was made, their children included (Linux)."""

    def __init__(self, **servers: Server) -> None:
        self._servers = servers
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        found = dict.fromkeys(self._servers, 0)
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                parent, (own, ended) = int(fields[1]), (sum(map(int, fields[11:13])), sum(map(int, fields[13:15])))
                for name, server in self._servers.items():
                    if server.pid in (int(path.parent.name), parent):
                        found[name] += own + ended
        return {name: ticks / os.sysconf("SC_CLK_TCK") for name, ticks in found.items()}

    def seconds(self) -> float:
        """Of all servers together."""
        return sum(self._read().values()) - sum(self._before.values())

    def each(self, events: int, process_s: float) -> str:
        """Microseconds an event, of the process and of each server."""
        seconds = {"process": process_s} | {name: at - self._before[name] for name, at in self._read().items()}
        return "CPU " + ", ".join(f"{name} {spent / events * 1e6:.0f}" for name, spent in seconds.items()) + " µs"
