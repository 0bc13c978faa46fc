"""The demo from start to end: servers, shop, real lanes in this process, then the count.

Whatever ends it, a fault and a cancellation too, ends every server and removes every file before it is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from aiokafka import ConsumerRecord

from integrity.api.serving import serving
from integrity.demo.broker import EmbeddedKafka, KafkaChoice, is_real
from integrity.demo.result import Letter, Place, Result, Tally
from integrity.demo.servers import KafkaServer, MongoServer, PostgresServer, Server
from integrity.demo.shop import CHILDREN, CUSTOMERS, Shop, different, happenings, orphans
from integrity.demo.topics import Tail, Topics
from integrity.errors import OperationError, UsageError
from integrity.kafka.headers import Header
from integrity.rules_files import load_rules
from integrity.settings import HttpSettings, KafkaSettings, Settings, StoreSettings
from integrity.wiring.run import Service, service

RULES: Final = Path(__file__).with_name("rules") / "customer.yaml"

_HAPPENING_EVERY_S: Final = 0.025
_READY_TIMEOUT_S: Final = 30.0
_ENFORCED_TIMEOUT_S: Final = 60.0
_AUDIT_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.1
_POISON_REASON: Final = "bad_json"
_REMARKS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything listens."""

    crm_url: str
    orders_url: str
    reviews_url: str
    bootstrap_servers: str
    http: str
    settings: Settings


class Screen(Protocol):
    """What the demo tells its audience."""

    def say(self, sentence: str) -> None:
        """One sentence, at once."""
        ...

    def begin(self, tally: Tally, total: int) -> None:
        """From now on `update` shows the tally; `total` is how much will happen."""
        ...

    def update(self) -> None: ...

    def end(self) -> None:
        """The tally is complete."""
        ...

    def show(self, result: Result) -> None: ...

    def show_addresses(self, at: Addresses) -> None: ...


async def play(choice: KafkaChoice, screen: Screen, *, keep: bool) -> Result:
    """Run the demo; with `keep` go on until cancelled, and return then. Raises UsageError when parts are missing."""
    began = time.monotonic()
    real = is_real(choice)
    if not (PostgresServer.available() and MongoServer.available()):
        raise UsageError("The demo's servers are missing: pip install 'integrity[demo]'.")
    with _remarks() as remarks:
        async with AsyncExitStack() as stack:
            postgres, mongo, bootstrap_servers = await _start(stack, real, screen)
            topics = await stack.enter_async_context(Topics(bootstrap_servers))
            settings = _settings(postgres, mongo, bootstrap_servers)
            shop = Shop(
                crm_url=await asyncio.to_thread(postgres.create_database, "crm"),
                orders_url=await asyncio.to_thread(postgres.create_database, "orders"),
                reviews_url=mongo.url("shop"),
                topics=topics,
                bootstrap_servers=bootstrap_servers,
            )
            stack.push_async_callback(shop.close)
            await shop.open()
            rows = ", ".join(f"{count:,} {name}" for name, count in CHILDREN.items())
            screen.say(f"The shop is open: {CUSTOMERS:,} customers, {rows}.")
            rules = load_rules(RULES)
            wired = await stack.enter_async_context(service(settings, rules, migrate=True))
            port = await stack.enter_async_context(serving(wired, settings.http))
            await wired.supervisor.check()
            tally = Tally(rules)
            async with _lanes(wired):
                await _until_ready(wired)
                start_s = time.monotonic() - began
                stage = _Stage(settings, shop, topics, tally, screen, wired)
                result = await stage.run(began, start_s, _kafka_name(real), remarks)
                screen.show(result)
                if keep:
                    screen.show_addresses(
                        Addresses(
                            postgres.url("crm"),
                            postgres.url("orders"),
                            mongo.url("shop"),
                            bootstrap_servers,
                            f"http://{settings.http.host}:{port}",
                            settings,
                        )
                    )
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        screen.say("Stopping.")
                else:
                    screen.say("All of it is being removed. With --keep it stays, to look around.")
        return result


class _Stage:
    """The part with the lanes running: let things happen, wait until they are enforced, and count."""

    def __init__(
        self, settings: Settings, shop: Shop, topics: Topics, tally: Tally, screen: Screen, wired: Service
    ) -> None:
        self._settings = settings
        self._shop = shop
        self._topics = topics
        self._tally = tally
        self._screen = screen
        self._wired = wired
        self._trouble: list[str] = []

    async def run(self, began: float, start_s: float, kafka: str, remarks: Sequence[str]) -> Result:
        events = happenings()
        self._screen.begin(self._tally, len(events))
        async with _background(self._watch(), "watch the audit trail"):
            from_s = time.monotonic()
            try:
                for happening in events:
                    self._tally.publish(await self._shop.happen(happening))
                    await asyncio.sleep(_HAPPENING_EVERY_S)
                await self._until_enforced()
                enforce_s = time.monotonic() - from_s
                await self._until_audited()
            finally:
                self._screen.end()
        return await self._count(began, start_s, enforce_s, kafka, remarks)

    async def _watch(self) -> None:
        """Feed the tally from the audit trail, whose topic is made with its first record."""
        topic = self._settings.audit.topic
        while not (partitions := await self._topics.partitions(topic)):
            self._screen.update()
            await asyncio.sleep(_POLL_S)
        async with Tail(self._settings.kafka.bootstrap_servers, partitions) as tail:
            while True:
                for record in await tail.read():
                    self._tally.audit(record.value)
                self._screen.update()

    async def _until_enforced(self) -> None:
        """Until every lane has committed all that was published: it does so only when the effects are durable."""
        ends = self._shop.ends
        groups = [self._settings.lane(store) for store in self._settings.stores]
        give_up_at = time.monotonic() + _ENFORCED_TIMEOUT_S
        while groups:
            behind = []
            for group in groups:
                committed = await self._topics.committed(group, list(ends))
                if any(committed.get(partition, -1) < end for partition, end in ends.items()):
                    behind.append(group)
            groups = behind
            if groups and time.monotonic() > give_up_at:
                why = "; ".join(f"{store}: {reason}" for store, reason in self._wired.supervisor.ready().items())
                self._trouble.append(
                    f"{', '.join(groups)} did not come to the end within {_ENFORCED_TIMEOUT_S:g} s"
                    f"{f' ({why})' if why else ''}."
                )
                return
            await asyncio.sleep(_POLL_S)

    async def _until_audited(self) -> None:
        """The audit trail never holds up the work: it may be a little behind."""
        give_up_at = time.monotonic() + _AUDIT_TIMEOUT_S
        while self._tally.effects < self._effects():
            if time.monotonic() > give_up_at:
                self._trouble.append("The audit trail is not complete, so that the rows may be more than is told.")
                return
            await asyncio.sleep(_POLL_S)

    def _effects(self) -> int:
        return round(
            sum(
                sample.value
                for metric in self._wired.metrics.collect()
                for sample in metric.samples
                if sample.name == "integrity_effects_total"
            )
        )

    async def _count(
        self, began: float, start_s: float, enforce_s: float, kafka: str, remarks: Sequence[str]
    ) -> Result:
        customers = await self._shop.customers()
        orphaned, differing = dict[str, int](), dict[str, int]()
        for dependent in CHILDREN:
            found = await self._shop.references(dependent)
            orphaned[dependent] = orphans(found, customers)
            differing[dependent] = different(found, await self._shop.native(dependent))
        letters = [_letter(record) for record in await self._topics.read(self._settings.dlq.topic)]
        poison = self._tally.poison
        assert poison is not None, "the poison has been published"
        for name, count in orphaned.items():
            if count:
                self._trouble.append(f"{name}: {count:,} rows reference customers that do not exist.")
        for name, count in differing.items():
            if count:
                self._trouble.append(f"{name}: {count:,} rows are not what native foreign keys have made of them.")
        self._trouble += letter_trouble(letters, poison, set(self._settings.stores))
        if self._trouble:
            self._trouble += [f"A lane said: {remark}" for remark in remarks]
        return Result(
            kafka=kafka,
            events={kind.value: self._tally.kinds[kind] for kind in sorted(self._tally.kinds)},
            records=self._tally.records,
            rows=dict(self._tally.rows),
            letters=letters,
            poison=poison,
            orphans=orphaned,
            different=differing,
            start_s=start_s,
            enforce_s=enforce_s,
            total_s=time.monotonic() - began,
            trouble=tuple(self._trouble),
        )


def _letter(record: ConsumerRecord[bytes, bytes]) -> Letter:
    headers = {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
    return Letter(
        id=headers.get(Header.ID, ""),
        reason=headers.get(Header.REASON, ""),
        message=headers.get(Header.MESSAGE, ""),
        store=headers.get(Header.STORE, ""),
        dependent=headers.get(Header.DEPENDENT, ""),
        topic=headers.get(Header.TOPIC, ""),
        partition=int(headers.get(Header.PARTITION, "-1")),
        offset=int(headers.get(Header.OFFSET, "-1")),
        headers=headers,
        value=record.value,
    )


def letter_trouble(letters: Sequence[Letter], poison: Place, stores: set[str]) -> Iterator[str]:
    """The poison is a dead letter of every store that reads it, and nothing else is one."""
    others = [letter for letter in letters if (letter.partition, letter.offset) != poison]
    if others:
        reasons = Counter(letter.reason for letter in others)
        yield f"Dead letters that are not the poison: {len(others):,} ({', '.join(reasons)})."
    told = [letter.store for letter in letters if letter not in others and letter.reason == _POISON_REASON]
    for store in sorted(stores - set(told)):
        yield f"The poison is no dead letter of {store}."
    if len(told) > len(set(told)):
        yield "The poison is a dead letter more than once."


def _kafka_name(real: bool) -> str:
    return "real" if real else "embedded"


def _settings(postgres: PostgresServer, mongo: MongoServer, bootstrap_servers: str) -> Settings:
    urls = {"orders_db": postgres.url("orders"), "reviews_db": mongo.url("shop"), "carts": "kafka:"}
    return Settings(
        rules=RULES,
        kafka=KafkaSettings(bootstrap_servers=bootstrap_servers),
        stores={name: StoreSettings.model_validate({"url": url}) for name, url in urls.items()},
        http=HttpSettings(port=0),
    )


# --- servers ---------------------------------------------------------------------------------------------------------


async def _start(stack: AsyncExitStack, real: bool, screen: Screen) -> tuple[PostgresServer, MongoServer, str]:
    """Start everything at once. The servers are stopped when the stack is closed."""
    postgres, mongo = PostgresServer(durable=False), MongoServer()
    if real:
        kafka = KafkaServer()
        screen.say("Starting PostgreSQL, MongoDB and Apache Kafka on 127.0.0.1.")
        await stack.enter_async_context(_running([postgres, mongo, kafka], screen))
        return postgres, mongo, kafka.bootstrap_servers
    screen.say("Starting PostgreSQL, MongoDB and librdkafka's mock of Kafka (in this process) on 127.0.0.1.")
    screen.say("The mock has real groups and transactions, but keeps everything in memory and compacts nothing.")
    await stack.enter_async_context(_running([postgres, mongo], screen))
    embedded = await stack.enter_async_context(EmbeddedKafka())
    return postgres, mongo, embedded.bootstrap_servers


@asynccontextmanager
async def _running(servers: Sequence[Server], screen: Screen) -> AsyncIterator[None]:
    """Servers, started in threads: such a thread can't be cancelled, but killing its server ends it."""
    loop = asyncio.get_running_loop()
    began = time.monotonic()

    def start(server: Server) -> None:
        server.start()
        loop.call_soon_threadsafe(screen.say, f"{server.title} runs ({time.monotonic() - began:.1f} s).")

    with ThreadPoolExecutor(2 * len(servers), thread_name_prefix="demo-server") as threads:
        starting = {server: loop.run_in_executor(threads, start, server) for server in servers}

        async def end(server: Server) -> None:
            while not starting[server].done():
                await loop.run_in_executor(threads, server.kill)
                await asyncio.wait({starting[server]}, timeout=_POLL_S)
            starting[server].exception()  # told already, or the cancellation's doing
            # Its files are thrown away: there is nothing to finish.
            await loop.run_in_executor(threads, server.kill)
            await loop.run_in_executor(threads, server.stop)

        try:
            await asyncio.wait(starting.values(), return_when=asyncio.FIRST_EXCEPTION)
            for future in starting.values():
                if future.done():
                    future.result()
            yield
        finally:
            await asyncio.gather(*(end(server) for server in servers))


# --- the service -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _lanes(wired: Service) -> AsyncIterator[None]:
    """Run the lanes meanwhile; an unexpected end of theirs ends the body."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:

        async def run() -> None:
            await wired.supervisor.run(stop)
            if not stop.is_set():
                raise OperationError("The lanes have ended unexpectedly.")

        tasks.create_task(run(), name="lanes")
        try:
            yield
        finally:
            stop.set()


async def _until_ready(wired: Service) -> None:
    give_up_at = time.monotonic() + _READY_TIMEOUT_S
    while reasons := wired.supervisor.ready():
        if time.monotonic() > give_up_at:
            why = "; ".join(f"{store}: {reason}" for store, reason in reasons.items())
            raise OperationError(f"The lanes were not ready within {_READY_TIMEOUT_S:g} s: {why}.")
        await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def _background(coroutine: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run beside the body, and be cancelled at its end; a failure ends the body."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(coroutine, name=name)
        try:
            yield
        finally:
            task.cancel()


class _Remarks(logging.Handler):
    """Keeps the last warnings: they are told only if something is wrong."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: deque[str] = deque(maxlen=_REMARKS_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        error = getattr(record, "error", "")
        self.texts.append(f"{record.getMessage()}{f' ({error})' if error else ''}")


@contextmanager
def _remarks() -> Iterator[Sequence[str]]:
    """What the program logs meanwhile, in place of standard error."""
    handler, root = _Remarks(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler.texts
    finally:
        root.removeHandler(handler)
