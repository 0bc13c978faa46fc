"""PostgreSQL as a dependent store."""

from integrity.stores.postgres.copy import PostgresCopy
from integrity.stores.postgres.store import PostgresStore

__all__ = ["PostgresCopy", "PostgresStore"]
