"""`integrity` that looks for what others parked, or lost on the way, every few seconds and not every few minutes, and
whose group soon sees that it was killed."""

from __future__ import annotations

import sys

from integrity.cli import main
from integrity.kafka import consumer
from integrity.service import tenant_redrive

SESSION_MS = 6_000
"""The least that a broker allows."""

if __name__ == "__main__":
    tenant_redrive.AGAIN_S = 3.0  # type: ignore[misc]
    tenant_redrive.LOST_S = 8.0  # type: ignore[misc]
    tenant_redrive.PAUSE_MAX_S = 4.0  # type: ignore[misc]
    consumer.CONSUMER_SETTINGS = {**consumer.CONSUMER_SETTINGS, "session_timeout_ms": SESSION_MS}
    sys.exit(main())
