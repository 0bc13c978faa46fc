"""`make oracle ARGS="--histories 10000 --seed 7"`: exit 0 when nothing differs, 1 when something does."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from integrity.demo.servers import KafkaServer, MongoServer, PostgresServer
from tests.oracle.dependents import STORES
from tests.oracle.run import Outcome, run_wave
from tests.oracle.world import LARGE, Stuck, World, a_world
from tests.property.faults import FAULTS, FAULTS_BETWEEN

SHOWN_MAX = 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make oracle", description="Random histories against native foreign keys.")
    parser.add_argument("--histories", type=int, default=1_000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, help="what they are made from (default: a random one, which is printed)")
    parser.add_argument("--history", type=int, metavar="N", help="run this one alone and print all that happens in it")
    parser.add_argument("--wave", type=int, default=500, metavar="N", help="how many in a wave (default: 500)")
    parser.add_argument("--beside", type=int, default=4, metavar="N", help="how many waves side by side (default: 4)")
    parser.add_argument(
        "--without", choices=[*FAULTS, *FAULTS_BETWEEN], help="take a part away from the processes: it must be noticed"
    )
    return parser.parse_args()


async def main(options: argparse.Namespace) -> Outcome:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oracle-")))
        kafka = stack.enter_context(KafkaServer(heap_mb=512))
        postgres = stack.enter_context(PostgresServer(durable=False))
        mongo = stack.enter_context(MongoServer())
        async with a_world(
            directory,
            bootstrap_servers=kafka.bootstrap_servers,
            create_database=postgres.create_database,
            mongo_url=mongo.url,
            name="oracle",
            without={options.without: STORES},
            processes=LARGE,
        ) as world:
            total = await run_all(world, options)
            for side in world.sides:
                await side.stop()
            letters = await world.dead_letters()
            if letters and not total.differences:
                raise Stuck(f"{letters} dead letters: there must be none.")
            return total


async def run_all(world: World, options: argparse.Namespace) -> Outcome:
    """Wave after wave, some of them side by side: while one waits for its events another writes or compares."""
    total = Outcome()
    first, last = (1, options.histories) if options.history is None else (options.history, options.history)
    say = None if options.history is None else print
    started = time.monotonic()
    starts = iter(range(first, last + 1, options.wave))

    async def work() -> None:
        for start in starts:
            numbers = range(start, min(start + options.wave, last + 1))
            total.add(await run_wave(world, options.seed, numbers, say=say))
            progress = f"{total.histories} histories, {len(total.differences)} differ"
            print(f"{progress}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(options.beside):
            tasks.create_task(work())
    return total


def report(options: argparse.Namespace, total: Outcome) -> None:
    for (side, number), lines in list(total.differences.items())[:SHOWN_MAX]:
        print(f"history {number} ({side}):", *lines[:SHOWN_MAX], sep="\n  ")
        print(f'  alone: make oracle ARGS="--seed {options.seed} --history {number}"')
    print(
        f"seed {options.seed}: {total.histories} histories, {total.statements} statements, {total.events} events, "
        f"{total.rows} rows compared, {total.restricted} events restricted, {len(total.differences)} histories differ"
    )


if __name__ == "__main__":
    chosen = arguments()
    if chosen.seed is None:
        chosen.seed = random.SystemRandom().getrandbits(32)
    print(f"seed {chosen.seed}", flush=True)
    found = asyncio.run(main(chosen))
    report(chosen, found)
    sys.exit(bool(found.differences))
