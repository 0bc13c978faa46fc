"""How many records a second one core decodes, by the processor's time: `make bench` begins with it.

    python -m tests.bench.decode

Deletions of 1 kB as they were captured (tests/golden/events), their rows filled up to that size. The best of many short
rounds counts: on a machine that others use, whoever shares the core takes a third of its speed.
"""

from __future__ import annotations

import gc
import json
import time
from typing import NamedTuple

from integrity.core.change import ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Record
from integrity.core.keys import KeyType
from tests.golden.records import load, rule
from tests.wire import Converter

RECORDS = 500
ROUNDS = 300
BYTES = 1_000
BARE_MIN, SCHEMAS_MIN, AVRO_MIN = 150_000, 50_000, 60_000


class Rate(NamedTuple):
    what: str
    a_second: float
    at_least: int


def measured() -> list[Rate]:
    """Each rate is the best of some rounds, taken in turns."""
    converter = Converter()
    in_avro = [converter.record(record) for record in _deletions("pg_env_schemas", "pg_env_schemas.public.customers")]
    kinds = {
        "PostgreSQL": (_deletions("pg_env", "pg_env.public.customers"), BARE_MIN),
        "MariaDB": (_deletions("my_env", "my_env.shop.customers"), BARE_MIN),
        "PostgreSQL, schemas on": (_deletions("pg_env_schemas", "pg_env_schemas.public.customers"), SCHEMAS_MIN),
        "MariaDB, schemas on": (_deletions("my_env_schemas", "my_env_schemas.shop.customers"), SCHEMAS_MIN),
        "PostgreSQL, Avro": (in_avro, AVRO_MIN),
    }
    best = dict.fromkeys(kinds, 0.0)
    for _ in range(ROUNDS):
        for what, (records, _least) in kinds.items():
            best[what] = max(best[what], _rate(records, converter))
    return [Rate(what, best[what], least) for what, (_, least) in kinds.items()]


def _rate(records: list[Record], converter: Converter) -> float:
    is_avro = (records[0].value or b"").startswith(b"\0")
    decode = decoder_for(rule(id=KeyType.INT64), schemas=converter.schemas if is_avro else None)
    assert all(isinstance(decode(record), ParentChange) for record in records[:100])
    began = time.process_time()
    for record in records:
        decode(record)
    return len(records) / (time.process_time() - began)


def _deletions(file: str, topic: str) -> list[Record]:
    """A captured deletion, many times: of other keys, at other offsets, with a row that fills it up."""
    found = [record for record in load(file) if record.topic == topic and record.value is not None]
    deletion = next(record for record in found if b'"op":"d"' in (record.value or b"") and len(record.headers) == 4)
    assert deletion.value is not None
    value = json.loads(deletion.value)
    row = (value.get("payload") or value)["before"]
    missing = BYTES - len(json.dumps(value.get("payload") or value, separators=(",", ":")))
    row["name"] = "x" * max(missing, 1)
    text = json.dumps(value, separators=(",", ":")).encode()
    key, number = deletion.key or b"", str(json.loads(deletion.key or b"")).rpartition(":")[2].strip(" }").encode()
    return [
        deletion._replace(offset=offset, key=key.replace(number, b"%d" % (offset + 1)), value=bytes(bytearray(text)))
        for offset in range(RECORDS)
    ]


def report() -> bool:
    """Print the rates; whether each is as promised."""
    rates = measured()
    for what, a_second, at_least in rates:
        print(f"decoding a deletion of 1 kB, {what:<24} {a_second:>10,.0f} records/s   (at least {at_least:,})")
    return all(a_second >= at_least for _, a_second, at_least in rates)


if __name__ == "__main__":
    gc.freeze()
    raise SystemExit(0 if report() else 1)
