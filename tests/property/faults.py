"""What the order of events is kept by, taken away one at a time: a comparison that tells nothing without it is none.

Every store works by the same functions of the core: `settle` and `trace` of the fold, `numbered` of what follows down
the graph. A fault replaces one of them in every module that has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from integrity.core import derive, fold
from integrity.core.change import Op, Version
from integrity.core.fold import Referencing

SETTLE, TRACE, NUMBERED = fold.settle, fold.trace, derive.numbered

Patch = Callable[[object, str, object], None]
"""setattr, or one that is undone after a test."""


def without_fence(changes, heads, **more):  # type: ignore[no-untyped-def]
    """An event that comes again counts as a new one: a deletion takes the rows of a key that lives again."""
    seen = {key: head.seen for key, head in heads.items()}
    unfenced = []
    for change in changes:
        before, version = seen.get(change.key), change.version
        if version is not None:
            if before is not None and version <= before and change.op in (Op.DELETED, Op.MOVED):
                version = Version(before.epoch, (*before.position, 1))
            if before is None or before < version:
                seen[change.key] = version
        unfenced.append(change._replace(version=version))
    return SETTLE(unfenced, heads, **more)


def without_chain(changes, heads, **more):  # type: ignore[no-untyped-def]
    """b's deletion enforced before a->b: without b's known fate the rows of a stay at b."""
    settled = SETTLE(changes, heads, **more)
    fates = {key: tuple(fate for fate in fates if fate.change >= 0) for key, fates in settled.fates.items()}
    return replace(settled, fates=fates)


def without_arrivals(*arguments, **more):  # type: ignore[no-untyped-def]
    """a->b enforced before b's older deletion: without arrivals that deletion takes the rows of a."""
    return [
        group._replace(end=replace(group.end, arrival=None)) if isinstance(group.end, Referencing) else group
        for group in TRACE(*arguments, **more)
    ]


def without_header(changes, heads, **more):  # type: ignore[no-untyped-def]
    """A key change whose header of the new key is not looked at is a deletion."""
    bare = [c._replace(op=Op.DELETED, to=None) if c.op is Op.MOVED else c for c in changes]
    return SETTLE(bare, heads, **more)


FAULTS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "fence": ("settle", without_fence),
    "chain": ("settle", without_chain),
    "arrivals": ("trace", without_arrivals),
    "header": ("settle", without_header),
}
"""What is taken away -> the function of the core that it is in, and what stands there instead."""


def without_versions(happened, heads):  # type: ignore[no-untyped-def]
    """Of what happens to a row one time after the other, the store that is told takes all but the first for old."""
    found = NUMBERED(happened, heads)
    return replace(found, versions=[Version(0, (1,)) for _ in found.versions])


FAULTS_BETWEEN: Mapping[str, tuple[str, Callable[..., Any]]] = {"versions": ("numbered", without_versions)}
"""The same of what one store tells another."""


def take_away(name: str, patch: Patch = setattr) -> None:
    """Take it away in every module of the program that is loaded."""
    function, faulty = {**FAULTS, **FAULTS_BETWEEN}[name]
    real = {"settle": SETTLE, "trace": TRACE, "numbered": NUMBERED}[function]
    modules = [module for key, module in list(sys.modules.items()) if key.startswith("integrity.")]
    found = [module for module in modules if getattr(module, function, None) is real]
    assert any(module.__name__.startswith("integrity.stores.") for module in found), f"no store calls {function}"
    for module in found:
        patch(module, function, faulty)
