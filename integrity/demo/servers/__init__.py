"""Launchers of the real servers that the demo and the tests run against.

Each server is one object: `start()` returns when it truly answers, `stop()` leaves neither process nor file.
A server listens on 127.0.0.1 only, lives in a temporary directory of its own, and dies with the process that started
it, however that ends. Whatever is missing is told by one `ServerUnavailable`.
The calls block: beside an event loop, run them in a thread.
"""

from integrity.demo.servers.connect import ConnectServer, debezium_postgres_config
from integrity.demo.servers.kafka import KafkaServer
from integrity.demo.servers.mongo import MongoServer
from integrity.demo.servers.postgres import PostgresServer
from integrity.demo.servers.process import Server, ServerUnavailable

__all__ = [
    "ConnectServer",
    "KafkaServer",
    "MongoServer",
    "PostgresServer",
    "Server",
    "ServerUnavailable",
    "debezium_postgres_config",
]
