"""What several of them need: how long things may take, and the audit trail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from integrity.core.rules.model import RuleSet
from integrity.kafka.audit import AuditTrail
from integrity.ports import Deadline
from integrity.settings import Settings

log = logging.getLogger(__name__)


CLOSE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 15.0
VIEW_TIMEOUT_S = 600.0
"""A topic is read from its beginning before it can be asked anything."""


def person_audit(stack: AsyncExitStack, settings: Settings, rules: RuleSet) -> AuditTrail | None:
    """The audit of what a person does: nobody reads metrics there, so what is dropped is said."""

    def say(count: int) -> None:
        log.warning("audit records were dropped", extra={"count": count})

    return open_audit(stack, settings, rules, say, close_s=CONNECT_TIMEOUT_S)


def open_audit(
    stack: AsyncExitStack, settings: Settings, rules: RuleSet, on_dropped: Callable[[int], None], *, close_s: float
) -> AuditTrail | None:
    """The audit trail, started, and closed by the stack; None when it is switched off."""
    if not settings.audit.topic:
        return None
    secret = settings.audit.hmac_key.get_secret_value().encode() if settings.audit.hash_keys else None
    trail = AuditTrail(settings.kafka.client, rules, topic=settings.audit.topic, on_dropped=on_dropped, hmac_key=secret)
    trail.start()
    stack.push_async_callback(lambda: trail.close(Deadline.after(close_s)))
    return trail
