"""What the demo looks like: live on a terminal, else plain lines; with --json one document at the end."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from typing import Final, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from integrity.demo.play import RULES, Addresses, Screen
from integrity.demo.result import FEED_MAX, Happened, Letter, Result, Tally, Work
from integrity.demo.servers.postgres import psql
from integrity.demo.shop import CARTS_TOPIC, CHILDREN, EVENTS_TOPIC

_STORES: Final = {"orders_db": "PostgreSQL", "reviews_db": "MongoDB", "carts": "Kafka topic"}
_EFFECTS: Final = {
    ("delete", "cascade"): "deleted",
    ("delete", "nullify"): "set to null",
    ("delete", "set_default"): "set to default",
    ("delete", "tombstone"): "marked",
    ("key change", "cascade"): "re-keyed",
}
_PLAIN_EVERY_S: Final = 1.0
_FRAMES_PER_S: Final = 10
_WIDTH: Final = 100
_VALUE_CHARACTERS_MAX: Final = 60


def screen(out: TextIO, err: TextIO, *, as_json: bool) -> Screen:
    """The screen that fits where the output goes."""
    if as_json:
        return _JsonScreen(out, err)
    if out.isatty() and not os.environ.get("NO_COLOR"):
        return _LiveScreen(out)
    return _PlainScreen(out)


class _PlainScreen:
    """Lines without colour or movement."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(
            file=out, width=_WIDTH, color_system=None, force_terminal=False, highlight=False, markup=False, emoji=False
        )
        self._tally: Tally | None = None
        self._total = 0
        self._told_at_s = 0.0

    def say(self, sentence: str) -> None:
        self._print(sentence)

    def begin(self, tally: Tally, total: int) -> None:
        self._tally, self._total = tally, total
        self._told_at_s = time.monotonic()

    def update(self) -> None:
        if time.monotonic() - self._told_at_s >= _PLAIN_EVERY_S:
            self._told_at_s = time.monotonic()
            self._tell()

    def end(self) -> None:
        self._tell()

    def show(self, result: Result) -> None:
        self._print(_report(result))

    def show_addresses(self, at: Addresses) -> None:
        self._print(_addresses(at))

    def _print(self, what: RenderableType) -> None:
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=isinstance(what, str))
        # Tables fill their cells with spaces.
        text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
        self._console.file.write(text)
        self._console.file.flush()

    def _tell(self) -> None:
        assert self._tally is not None, "told between begin and end"
        told = [f"{work.dependent} {rows:,} {_effect(work)}" for work, rows in self._tally.rows.items()]
        self.say(f"{sum(self._tally.kinds.values()):>4} of {self._total} events: {', '.join(told)}")


class _LiveScreen(_PlainScreen):
    """A table that grows, and what happened last, redrawn in place."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None

    def say(self, sentence: str) -> None:
        self._console.print(sentence)

    def begin(self, tally: Tally, total: int) -> None:
        super().begin(tally, total)
        self._live = Live(console=self._console, refresh_per_second=_FRAMES_PER_S, transient=True)
        self._live.start()

    def update(self) -> None:
        if self._live is not None:
            self._live.update(self._frame())

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, what: RenderableType) -> None:
        self._console.print(what, soft_wrap=isinstance(what, str))

    def _frame(self) -> RenderableType:
        assert self._tally is not None, "drawn between begin and end"
        tally = self._tally
        done = sum(tally.kinds.values())
        bar = Table.grid(padding=(0, 1))
        bar.add_row("events", ProgressBar(total=self._total, completed=done, width=30), f"{done} of {self._total}")
        stores = _table("store", "dependent", "after a", "rule", ">rows")
        for work, rows in tally.rows.items():
            stores.add_row(*_work_cells(work), f"{rows:,} {_effect(work)}")
        feed = _table("what happened", *(f">{dependent}" for dependent in CHILDREN))
        lines = tally.feed()
        for happened in lines:
            feed.add_row(*_feed_cells(happened))
        for _ in range(FEED_MAX - len(lines)):
            feed.add_row("")
        letters = Text(f"dead letters: {tally.dead_letters}", style="yellow" if tally.dead_letters else "")
        return Group("", bar, "", stores, "", feed, letters)


class _JsonScreen:
    """One document on standard output; what is said meanwhile goes to standard error."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._talk = _PlainScreen(err)

    def say(self, sentence: str) -> None:
        self._talk.say(sentence)

    def begin(self, tally: Tally, total: int) -> None: ...

    def update(self) -> None: ...

    def end(self) -> None: ...

    def show(self, result: Result) -> None:
        self._out.write(json.dumps(result.document(), indent=2, ensure_ascii=False) + "\n")
        self._out.flush()

    def show_addresses(self, at: Addresses) -> None:
        self._talk.say(_addresses(at))


# --- the end ---------------------------------------------------------------------------------------------------------


def _report(result: Result) -> RenderableType:
    parts: list[RenderableType] = ["", _rows(result), "", _figures(result)]
    if result.letters:
        parts += ["", _letter(result.letters[0])]
    if result.is_fine:
        parts += ["", Text("Every store holds what native foreign keys would have left.", style="green")]
    else:
        parts += ["", *(Text(sentence, style="red") for sentence in result.trouble)]
    return Group(*parts)


def _rows(result: Result) -> Table:
    table = _table("store", "dependent", "after a", "rule", ">rows")
    for work, rows in result.rows.items():
        table.add_row(*_work_cells(work), f"{rows:,} {_effect(work)}")
    return table


def _figures(result: Result) -> Table:
    table = Table.grid(padding=(0, 2))
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.events.items())
    table.add_row("events", f"{sum(result.events.values()):,} in {result.records:,} records: {kinds}")
    letters = Counter(letter.reason for letter in result.letters)
    told = [
        f"{count} {reason} ({', '.join(sorted(each.store for each in result.letters if each.reason == reason))})"
        for reason, count in letters.items()
    ]
    table.add_row("dead letters", "; ".join(told) or "0")
    table.add_row("orphans left", f"{sum(result.orphans.values()):,}")
    table.add_row("unlike native foreign keys", f"{sum(result.different.values()):,} rows")
    table.add_row(
        "time", f"{result.total_s:.1f} s ({result.start_s:.1f} s to start, {result.enforce_s:.1f} s of events)"
    )
    return table


def _letter(letter: Letter) -> RenderableType:
    """One dead letter, so that it can be seen what is in it."""
    value = (letter.value or b"").decode(errors="replace")
    short = value if len(value) <= _VALUE_CHARACTERS_MAX else f"{value[:_VALUE_CHARACTERS_MAX]}…"
    table = Table.grid(padding=(0, 2))
    for name in ("reason", "message", "store", "topic", "partition", "offset"):
        table.add_row(f"  integrity.{name}", letter.headers.get(f"integrity.{name}", ""))
    table.add_row("  value", f"{short} ({len(letter.value or b''):,} bytes as they came)")
    return Group("a dead letter, in the topic integrity.dlq", table)


def _addresses(at: Addresses) -> str:
    orders = shlex.join([psql(), at.orders_url])
    mongosh = shlex.join(["mongosh", at.reviews_url])
    return f"""
Everything goes on running. To look around:

rules        {RULES}
metrics      {at.http}/metrics and {at.http}/readyz
PostgreSQL   {orders}
               select * from orders limit 5;
               -- the ledger: what happened to each key
               select key, moved_to, rows, to_timestamp(enforced_ms / 1000) from integrity.keys where fate is not null;
             {shlex.join([psql(), at.crm_url])}
               select * from customers limit 5;
MongoDB      {mongosh}
               db.reviews.find({{customerId: null}}).limit(5)
               db.getCollection("integrity.keys").find().limit(5)
Kafka        {at.bootstrap_servers}
               topics: {EVENTS_TOPIC}, {CARTS_TOPIC}, {at.settings.audit.topic},
               {at.settings.dlq.topic}, {at.settings.dlq.topic}.status, integrity.ledger.carts
               kcat -b {at.bootstrap_servers} -e -t {at.settings.dlq.topic} -f '%h\\n%s\\n\\n'

Ctrl-C stops everything and removes it."""


# --- cells -----------------------------------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    """A table; a column whose name begins with > is aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _work_cells(work: Work) -> tuple[str, str, str, str]:
    return _STORES.get(work.store, work.store), work.dependent, work.event, work.action


def _effect(work: Work) -> str:
    return _EFFECTS.get((work.event, work.action), "changed")


def _feed_cells(happened: Happened) -> list[str]:
    def cell(dependent: str) -> str:
        if dependent in happened.letters:
            return "dead letter"
        rows = happened.rows[dependent]
        return f"{rows:,}" if rows else ""

    return [str(happened.published.happening), *(cell(dependent) for dependent in CHILDREN)]
