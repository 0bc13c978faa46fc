"""Dead letters, and what sends them back: for people, and for the lane of tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from integrity.core.rules.model import RuleSet
from integrity.kafka.dead_letters import DeadLetters
from integrity.kafka.letters import LetterIndex, LetterReader, open_letters
from integrity.kafka.producer import BATCH_BYTES_MAX, Producer, ensure_topics
from integrity.kafka.redrives import redrive_topic, wanted
from integrity.ports import Deadline
from integrity.service.redrive import Person, Redriver
from integrity.settings import Settings
from integrity.wiring.decoding import open_schemas, redrive_decoders
from integrity.wiring.shared import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S, person_audit
from integrity.wiring.topics import with_known_topics


@asynccontextmanager
async def dead_letters(settings: Settings) -> AsyncIterator[tuple[LetterReader, LetterIndex]]:
    """The dead letters as they are now."""
    deadline = Deadline.after(CONNECT_TIMEOUT_S)
    async with open_letters(settings.kafka.client, settings.dlq.topic, deadline) as reader:
        index = await reader.index()
        try:
            yield reader, index
        finally:
            index.close()


@asynccontextmanager
async def redriver(
    settings: Settings, rules: RuleSet, reader: LetterReader, index: LetterIndex, person: Person
) -> AsyncIterator[Redriver]:
    """What sends dead letters back to the lanes of these settings, or gives them up."""
    rules = await with_known_topics(settings, rules)
    client = settings.kafka.client
    topic = redrive_topic(settings.group)
    async with AsyncExitStack() as stack:
        facts = (await ensure_topics(client, [wanted(topic)], Deadline.after(CONNECT_TIMEOUT_S)))[topic]
        letters = DeadLetters(client, topic=settings.dlq.topic, group=settings.group)
        stack.push_async_callback(lambda: letters.close(Deadline.after(CLOSE_TIMEOUT_S)))
        producer = Producer(
            client, client_id=f"{settings.group}-redrive", batch_bytes_max=min(BATCH_BYTES_MAX, facts.bytes_max)
        )
        stack.push_async_callback(lambda: producer.close(Deadline.after(CLOSE_TIMEOUT_S)))
        audit = person_audit(stack, settings, rules)
        schemas = open_schemas(stack, settings)
        yield Redriver(
            reader,
            index,
            marks=letters,
            sends=producer,
            audit=audit,
            topic=topic,
            bytes_max=facts.bytes_max,
            rules=rules,
            decoders=redrive_decoders(rules.parents, schemas),
            person=person,
            learn=None if schemas is None else schemas.learn_of,
            of_tenants={name for name, store in settings.stores.items() if store.has_tenants},
        )
