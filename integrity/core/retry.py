"""When to try again: pure, so that the lane only has to wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential growth with full jitter: many processes that lost one server do not come back at once.

    Times are in seconds. The cap bounds how long a server that is back goes unnoticed.
    """

    first_s: float = 0.1
    cap_s: float = 15.0

    def delay_s(self, attempt: int, luck: float) -> float:
        """How long to wait after that many failures in a row (from 1); `luck` is random in [0, 1)."""
        ceiling = min(self.cap_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return ceiling * (0.2 + 0.8 * luck)


CONTENDED_ATTEMPTS_MAX = 3
"""How often a batch that waits for rows locked by others is tried whole before the event that waits is looked for:
other keys never wait for a locked one (guarantee 3)."""
