"""PostgreSQL as a dependent store."""

from integrity.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
