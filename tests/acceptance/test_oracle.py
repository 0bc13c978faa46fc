"""The oracle in its small form: random histories on native foreign keys, and the same by events on three stores.

`make oracle` is the long form; docs/proof.md tells what it does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from integrity.demo.servers import KafkaServer, MongoServer, PostgresServer
from tests.oracle.run import run_wave
from tests.oracle.world import a_world
from tests.property.faults import FAULTS, FAULTS_BETWEEN

HISTORIES = 100
FAULTY_HISTORIES = 100

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return seed


async def test_random_histories_end_as_native_foreign_keys_leave_them(
    tmp_path: Path,
    kafka: KafkaServer,
    postgres: PostgresServer,
    mongo: MongoServer,
    unique_name: Callable[[str], str],
    seed: int,
) -> None:
    async with a_world(
        tmp_path,
        bootstrap_servers=kafka.bootstrap_servers,
        create_database=postgres.create_database,
        mongo_url=mongo.url,
        name=unique_name("oracle"),
    ) as world:
        outcome = await run_wave(world, seed, range(1, HISTORIES + 1))
        assert outcome.differences == {}, f'make oracle ARGS="--histories {HISTORIES} --seed {seed}"'
        assert outcome.statements > HISTORIES
        assert outcome.rows > HISTORIES
        assert outcome.restricted > 0
        assert await world.dead_letters() == 0
        for side in world.sides:
            await side.stop()


async def test_the_oracle_bites(
    tmp_path: Path,
    kafka: KafkaServer,
    postgres: PostgresServer,
    mongo: MongoServer,
    unique_name: Callable[[str], str],
    seed: int,
) -> None:
    """Processes without the fence, the chain of fates, the arrivals, the header of a key change, the versions of what
    one store tells another: each is noticed."""
    async with a_world(
        tmp_path,
        bootstrap_servers=kafka.bootstrap_servers,
        create_database=postgres.create_database,
        mongo_url=mongo.url,
        name=unique_name("oracle"),
        without={**dict.fromkeys(FAULTS, ("main",)), **dict.fromkeys(FAULTS_BETWEEN, ("main", "docs"))},
    ) as world:
        outcome = await run_wave(world, seed, range(1, FAULTY_HISTORIES + 1))
    noticed = Counter(side for side, _ in outcome.differences)
    assert noticed.keys() == {f"without {fault}" for fault in (*FAULTS, *FAULTS_BETWEEN)}, (seed, noticed)
