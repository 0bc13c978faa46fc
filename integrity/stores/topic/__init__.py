"""Compacted topics as a dependent store: rows are records, found through a local view of them."""

from integrity.stores.topic.copy import TopicCopy
from integrity.stores.topic.store import TopicStore

__all__ = ["TopicCopy", "TopicStore"]
