"""Collections as dependents: effects, ledger and progress in one MongoDB transaction."""

from integrity.stores.mongo.copy import MongoCopy
from integrity.stores.mongo.store import MongoStore

__all__ = ["MongoCopy", "MongoStore"]
