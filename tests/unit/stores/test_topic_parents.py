"""Who lives, as a topic of events tells it."""

from __future__ import annotations

import pytest

from integrity.core.keys import KeySpec, KeyType
from integrity.errors import OperationError
from integrity.ports import Deadline
from integrity.stores.topic.scan import TopicParents
from tests.golden.messages import decoder


async def test_topic_of_domain_events_tells_nobody_that_a_parent_is_gone() -> None:
    """Of most parents no event tells anything: their rows would all be orphans, and repaired."""
    read = decoder("format: outbox", "key: {id: int64}", "types: {deleted: [D]}")
    parents = TopicParents({}, ("t",), KeySpec((("id", KeyType.INT64),)), read, is_telling=False)
    with pytest.raises(OperationError) as caught:
        await anext(parents.keys(Deadline.after(1)))
    assert "events.source" in caught.value.hint
    await parents.close()
