"""The service as `integrity run --migrate --exit-at-end` wires it, timed from the first record to the last commit.

Prints seconds and peak memory as JSON: joining a group for the first time on a new broker takes a second that no
backlog sees.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Sequence

from integrity.cli.base import Options, run_async, start
from integrity.core.batch import Batch
from integrity.core.outcome import Effect
from integrity.rules_files import load_rules
from integrity.service.report import Report
from integrity.service.work import Piece
from integrity.wiring import run

times: list[float] = []
cpu: list[float] = []


class TimedReport(Report):
    """Notes when the first record was read and when each batch was durable."""

    def read(self, store: str, piece: Piece) -> None:
        if not times and piece.counts:
            times.append(time.perf_counter())
            cpu.append(time.process_time())
        super().read(store, piece)

    def applied(self, store: str, batch: Batch, effects: Sequence[Effect], took_s: float) -> None:
        super().applied(store, batch, effects, took_s)
        times.append(time.perf_counter())
        cpu.append(time.process_time())


async def main() -> None:
    run.Report = TimedReport  # type: ignore[misc]
    settings = start(Options())
    rules = load_rules(settings.rules)
    async with run.service(settings, rules, migrate=True) as wired:
        await wired.supervisor.check()
        await wired.supervisor.run(asyncio.Event(), to_end=True)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"seconds": times[-1] - times[0], "cpu_seconds": cpu[-1] - cpu[0], "peak_mb": peak_mb}
    print(json.dumps(figures | {"batches": len(times) - 1}))


if __name__ == "__main__":
    run_async(main())
