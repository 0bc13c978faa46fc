"""What `integrity undo` works with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from integrity.core.rules.model import RuleSet
from integrity.core.undo import Choice
from integrity.ports import Undoable
from integrity.service.redrive import Person
from integrity.service.undo import Undoer
from integrity.settings import Settings, StoreKind, StoreSettings
from integrity.wiring.shared import VIEW_TIMEOUT_S, person_audit
from integrity.wiring.stores import chosen_stores, open_store


@asynccontextmanager
async def undoer(
    settings: Settings, rules: RuleSet, names: Collection[str], choice: Choice, person: Person
) -> AsyncIterator[Undoer]:
    """What puts back what events changed in these stores."""
    async with AsyncExitStack() as stack:
        stores: dict[str, Undoable] = {}
        for name, store_settings in chosen_stores(settings, rules, names).items():
            stores[name] = store = open_store(name, store_settings, settings, rules)
            stack.push_async_callback(store.close)
        audit = person_audit(stack, settings, rules)
        yield Undoer(
            stores,
            choice,
            person,
            rules=rules,
            audit=audit,
            timeout_of=lambda name: _undo_timeout_s(settings.stores[name]),
        )


def _undo_timeout_s(store: StoreSettings) -> float:
    """A topic is read from its beginning before anything of it is put back."""
    return VIEW_TIMEOUT_S if store.kind is StoreKind.TOPIC else store.timeout
