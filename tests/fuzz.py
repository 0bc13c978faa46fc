"""`make fuzz ARGS="--cases 200000 --seed 7"`: the property tests of decoding on many more cases than `make check` has.

A case is what one of these tests draws: a record of any bytes, one of a format with some of its parts made up, or a
captured one that is mutilated. Cases come in chunks, each from a seed of its own, over several processes. Exit 0 when
none failed, 1 when some did; Hypothesis keeps what failed, so that the test itself then fails too, with a shrunk case.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Final, NamedTuple

from tests.property import (
    test_avro,
    test_decode_documents_never_raises,
    test_decode_never_raises,
    test_messages_never_raise,
    test_protobuf,
)

MODULES: Final = (
    test_decode_never_raises,
    test_messages_never_raise,
    test_decode_documents_never_raises,
    test_avro,
    test_protobuf,
)
CHUNK: Final = 250
BYTES: Final = (64, 512, 4096)
"""What a case is drawn from; one that asks for more is none."""
TRIES_MAX: Final = 10
TELL_EVERY_S: Final = 10.0
CAPTURED: Final = re.compile("broken_bytes|cut_short|only_nearly")
SHARE: Final = 4
"""How many cases tests of captured records have for one of the others: those begin where the formats are."""


class Told(NamedTuple):
    """What came of a chunk. `failures` are tracebacks."""

    test: str
    chunk: int
    cases: int
    failures: tuple[str, ...]


def tests() -> dict[str, Callable[[bytes], bytes | None]]:
    """Each property test by its name, as a function of the bytes that a case is drawn from; None says: too few."""
    return {
        f"{module.__name__.rpartition('.')[2]}::{name}": function.hypothesis.fuzz_one_input
        for module in MODULES
        for name, function in vars(module).items()
        if name.startswith("test_") and function.__module__ == module.__name__ and hasattr(function, "hypothesis")
    }


def run(order: tuple[int, str, int]) -> Told:
    """A chunk of a test's cases, the same for the same order (seed, test, number of the chunk)."""
    seed, test, chunk = order
    source = random.Random(f"{seed}/{test}/{chunk}")
    one = tests()[test]
    cases, failures = 0, []
    for _ in range(TRIES_MAX * CHUNK):
        if cases == CHUNK:
            break
        try:
            cases += one(source.randbytes(source.choice(BYTES))) is not None
        except Exception:  # noqa: BLE001 - whatever it is, it is told
            cases += 1
            failures.append(traceback.format_exc())
    return Told(test, chunk, cases, tuple(failures))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Decoding on random bytes and mutilated records.")
    parser.add_argument("--cases", type=int, default=20_000, metavar="N", help="how many, at least (default: 20000)")
    parser.add_argument("--seed", type=int, help="what they are made from (default: a random one, which is printed)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="how many side by side")
    parser.add_argument("--only", metavar="TEST/CHUNK", help="run this chunk alone")
    return parser.parse_args(words)


def orders(options: argparse.Namespace) -> list[tuple[int, str, int]]:
    """The chunks of all tests in turn."""
    if options.only:
        test, _, chunk = options.only.rpartition("/")
        return [(options.seed, test, int(chunk))]
    shares = {name: SHARE if CAPTURED.search(name) else 1 for name in tests()}
    rounds = -(-options.cases // (CHUNK * sum(shares.values())))
    return [
        (options.seed, name, of_round * share + n)
        for of_round in range(rounds)
        for name, share in shares.items()
        for n in range(share)
    ]


def main(options: argparse.Namespace) -> int:
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**32)
    print(f"seed {options.seed}", flush=True)
    began = told_at = time.monotonic()
    cases: Counter[str] = Counter()
    failed = 0
    with get_context("spawn").Pool(options.processes) as pool:
        for told in pool.imap_unordered(run, orders(options)):
            cases[told.test] += told.cases
            failed += len(told.failures)
            for text in told.failures[:1]:
                print(f'{text}make fuzz ARGS="--seed {options.seed} --only {told.test}/{told.chunk}"', flush=True)
            if time.monotonic() - told_at > TELL_EVERY_S:
                told_at = time.monotonic()
                print(f"{cases.total()} cases, {failed} failed, {told_at - began:.0f} s", file=sys.stderr, flush=True)
    for test, count in sorted(cases.items()):
        print(f"{count:>8}  {test}")
    print(f"{cases.total()} cases, {failed} failed, seed {options.seed}, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(arguments()))
