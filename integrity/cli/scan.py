"""`integrity scan`: rows whose parent is not there."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from integrity.cli.base import Options, print_json, run_async, start, tenant_option
from integrity.errors import OperationError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from integrity.core.keys import Key, KeySpec
    from integrity.core.rules.model import Dependent, RuleSet
    from integrity.service.scan import Found
    from integrity.service.scan_repair import Mended
    from integrity.settings import Settings
    from integrity.wiring.scan import Scans

EXIT_FOUND: Final = 1
EXIT_SILENT: Final = 3
SCAN_TIMEOUT_S: Final = 24 * 3600.0
"""How long a dependent may take: beyond it something hangs."""
LINE_EVERY_S: Final = 10.0
_HEARD: Final = {
    "unheard": "never heard of: their deletion was never told, or waits to be enforced",
    "alive": "last heard of as living: their deletion was never told, or waits to be enforced",
    "deleted": "deleted before the rows were written, or before the rule was there",
    "moved": "have another key now: the rows were written late",
}


@click.command("scan")
@click.option("--dependent", "names", multiple=True, metavar="D", help="Only this one (customer.orders); repeatable.")
@click.option("--repair", is_flag=True, help="Do to the orphans what on_delete says.")
@click.option("--grace", metavar="TIME", default="1m", show_default=True, help="Look again after that long.")
@click.option(
    "--max-share",
    metavar="SHARE",
    default="10%",
    show_default=True,
    help="Repair no more orphans than that of all keys.",
)
@click.option("--allow-no-parents", is_flag=True, help="Repair even where there is no parent at all.")
@click.option("--yes", is_flag=True, help="Repair without asking.")
@click.option("--no-input", is_flag=True, help="Never ask.")
@click.option("--json", "is_json", is_flag=True, help="One JSON document on standard output.")
@tenant_option
@click.pass_obj
def command(
    options: Options,
    tenant: str | None,
    names: tuple[str, ...],
    repair: bool,
    grace: str,
    max_share: str,
    allow_no_parents: bool,
    yes: bool,
    no_input: bool,
    is_json: bool,
) -> int:
    """Find orphans: rows whose parent is not there.

    Compares all references with all parents: those of events.source, the rows that are parents, or the compacted topic
    of their events. --repair says what it will do, and asks, unless --yes. Exit 0: no orphans; 1: there are some, also
    when they are mended; 2: wrong usage, settings or rules; 3: something could not be scanned.
    """
    if repair and not yes and (no_input or not sys.stdin.isatty()):
        raise click.UsageError("--repair needs --yes, or a terminal to ask on. Without it, orphans are only counted.")
    asked = _Asked(repair, _seconds(grace), _share(max_share), allow_no_parents, yes, is_json)
    return run_async(_run(options, tenant, names, asked))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for."""

    repair: bool
    grace_s: float
    share_max: float
    allow_no_parents: bool
    yes: bool
    is_json: bool


async def _run(options: Options, tenant: str | None, names: Sequence[str], asked: _Asked) -> int:
    settings = start(options, tenant)
    from integrity.ports import Deadline
    from integrity.rules_files import load_rules
    from integrity.service.scan import scan
    from integrity.wiring.scan import scanning

    rules = load_rules(settings.rules)
    chosen = _chosen(rules, names)
    found: list[Found] = []
    silent: dict[str, str] = {}
    mended: dict[str, Mended | str] = {}
    async with scanning(settings, rules, chosen, actor=getpass.getuser()) as scans:
        try:
            async with _Watch(options) as watch:
                for subject in scans.subjects:
                    try:
                        found.append(
                            await scan(
                                subject,
                                watch,
                                Deadline.after(SCAN_TIMEOUT_S),
                                grace_s=asked.grace_s,
                                timeout_s=scans.timeout_s,
                            )
                        )
                    except OperationError as exc:
                        silent[subject.dependent.id] = f"{exc.message} {exc.hint}".strip()
            if not asked.is_json:
                for each in found:
                    _print(each)
            if asked.repair:
                mended = await _repair(options, scans, found, asked, silent)
            await _publish(settings, found, {name: mended[name] for name in mended.keys() - silent.keys()})
            if asked.is_json:
                print_json({"scans": [_document(each, mended) for each in found], "failed": silent})
        finally:
            for each in found:
                each.orphans.close()
    for dependent, why in silent.items():
        click.echo(f"{dependent} failed: {why}", err=True)
    if silent:
        return EXIT_SILENT
    return EXIT_FOUND if any(each.orphans.keys for each in found) else 0


def _chosen(rules: RuleSet, names: Sequence[str]) -> list[Dependent]:
    """The dependents to scan: those named, else all whose rule does something."""
    from integrity.core.rules.findings import did_you_mean, shown
    from integrity.core.rules.model import Ignore

    known = {dependent.id: dependent for parent in rules.parents for dependent in parent.dependents}
    for name in names:
        if name not in known:
            raise UsageError(f"No rule has the dependent {shown(name)}.", hint=did_you_mean(name, known))
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    return [dependent for dependent in known.values() if not isinstance(dependent.on_delete, Ignore)]


async def _publish(settings: Settings, found: Sequence[Found], mended: Mapping[str, Mended | str]) -> None:
    """Tell the services what orphans there are now, whose metric it is. Without Kafka the scan counts all the same."""
    from integrity.kafka.scans import ScanResult
    from integrity.wiring.scan import publish_scans

    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    results: list[ScanResult] = []
    for each in found:
        name, done = each.subject.dependent.id, mended.get(each.subject.dependent.id)
        if settings.stores[each.subject.dependent.store].tenant:
            continue  # the metric is that of all rows, and these are those of one tenant
        if done is None or isinstance(done, str):
            results.append(ScanResult(name, each.orphans.keys, each.orphans.rows, at))
        else:
            results.append(ScanResult(name, done.left_keys, done.left_rows, at))
    if not results:
        return
    try:
        await publish_scans(settings, results)
    except OperationError as exc:
        click.echo(f"The metric integrity_orphans stays as it was: {exc.message}", err=True)


async def _repair(
    options: Options, scans: Scans, found: Sequence[Found], asked: _Asked, silent: dict[str, str]
) -> dict[str, Mended | str]:
    """What came of each dependent with orphans: a sentence where nothing was to be done. What failed is added to
    `silent`."""
    from integrity.core.rules.model import action_name
    from integrity.service.scan_repair import refusal

    told: dict[str, Mended | str] = {}
    fit: list[Found] = []
    for each in found:
        if each.orphans.keys:
            why = refusal(each, share_max=asked.share_max, allow_no_parents=asked.allow_no_parents)
            if why is None:
                fit.append(each)
            else:
                told[each.subject.dependent.id] = why
                click.echo(f"{each.subject.dependent.id} is not repaired: {why}", err=True)
    if not fit:
        return told
    click.echo("Repair, as deletions of these parents would:", err=True)
    for each in fit:
        dependent = each.subject.dependent
        click.echo(
            f"  {dependent.id}: {action_name(dependent.on_delete)}, {_keys(each.orphans.keys)},"
            f" {_rows(each.orphans.rows)} and what depends on them",
            err=True,
        )
    if not asked.yes and not click.confirm("Do it?", err=True):
        return told
    for each in fit:
        name = each.subject.dependent.id
        async with (
            _Watch(options) as watch,
            scans.repairer(each.subject, watch.repairing(name, each.orphans.keys)) as repairer,
        ):
            try:
                await repairer.run(each)
            except OperationError as exc:
                silent[name] = f"{exc.message} {exc.hint}".strip()
            told[name] = mended = repairer.mended
        if not asked.is_json:
            _print_mended(each, mended)
    return told


class _Watch:
    """Progress on standard error: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, options: Options) -> None:
        self._is_quiet = options.quiet
        self._text = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._lines: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Watch:
        if self._is_quiet:
            return self
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        else:
            self._lines = asyncio.create_task(self._tell_lines(), name="progress")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._lines is not None:
            self._lines.cancel()

    def compared(self, dependent: str, rows: int) -> None:
        self._tell(f"{dependent}: {rows:,} rows compared", None, None)

    def waits(self, dependent: str, candidates: int, seconds: float) -> None:
        self._tell(f"{dependent}: {_keys(candidates)} without a parent, looked up again in {seconds:g} s", None, None)

    def looked_up(self, dependent: str, keys: int, of: int) -> None:
        self._tell(f"{dependent}: {keys:,} of {of:,} keys looked up", keys, of)

    def repairing(self, dependent: str, of: int) -> Callable[[int], None]:
        """What hears of each portion of a repair."""
        return lambda keys: self._tell(f"{dependent}: {keys:,} of {of:,} keys repaired", keys, of)

    def _tell(self, text: str, done: int | None, of: int | None) -> None:
        self._text = text
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text, completed=done or 0, total=of)

    async def _tell_lines(self) -> None:
        while True:
            await asyncio.sleep(LINE_EVERY_S)
            click.echo(self._text or "waiting for the first rows", err=True)


def _print(found: Found) -> None:
    subject = found.subject
    name, spec = subject.dependent.id, subject.spec
    orphans = f"{_keys(found.orphans.keys)}, {_rows(found.orphans.rows)}" if found.orphans.keys else "none"
    click.echo(
        f"{name}: orphans: {orphans} (of {_keys(found.keys)}, {_rows(found.rows)}; parents: {subject.parents_at})"
    )
    for heard, count in found.heard.items():
        if count.keys:
            click.echo(f"  {_keys(count.keys)}, {_rows(count.rows)}: {_HEARD[heard]}")
    for sample in found.samples:
        click.echo(f"  {subject.entity} {_text(sample.key)}  {_rows(sample.rows)}  {sample.known.heard.value}")
    if found.orphans.keys > len(found.samples):
        click.echo("  …")
    if found.mistyped:
        click.echo(f"  {_rows(found.mistyped)} hold no key of {subject.entity} ({_spec(spec)}), and refer to nothing")
    if subject.note:
        click.echo(f"  {subject.note}")


def _print_mended(found: Found, mended: Mended) -> None:
    click.echo(f"{found.subject.dependent.id}: repaired {_keys(mended.keys)}")
    for dependent, rows in mended.rows.items():
        click.echo(f"  {dependent}  {_rows(rows)}")
    if mended.returned:
        click.echo(f"  {_keys(mended.returned)} had a parent again, or no rows any more")
    for left in mended.left:
        click.echo(f"  {found.subject.entity} {_text(left.key)} stays as it is: {left.why}", err=True)
    if mended.left_keys > len(mended.left):
        click.echo(f"  {mended.left_keys - len(mended.left)} more stay as they are.", err=True)


def _document(found: Found, mended: dict[str, Mended | str]) -> dict[str, Any]:
    subject = found.subject
    document: dict[str, Any] = {
        "dependent": subject.dependent.id,
        "store": subject.dependent.store,
        "target": subject.dependent.target.name,
        "entity": subject.entity,
        "parents_at": subject.parents_at,
        "keys": found.keys,
        "rows": found.rows,
        "mistyped_rows": found.mistyped,
        "has_parents": bool(found.parents),
        "candidates": found.candidates,
        "took_s": round(found.took_s, 3),
        "orphans": {
            "keys": found.orphans.keys,
            "rows": found.orphans.rows,
            **{heard.value: {"keys": count.keys, "rows": count.rows} for heard, count in found.heard.items()},
        },
        "samples": [
            {"key": _json(each.key, subject.spec), "rows": each.rows, "heard": each.known.heard.value}
            for each in found.samples
        ],
    }
    if subject.note:
        document["note"] = subject.note
    match mended.get(subject.dependent.id):
        case None:
            pass
        case str(why):
            document["repair"] = {"refused": why}
        case done:
            document["repair"] = {
                "keys": done.keys,
                "rows": done.rows,
                "returned": done.returned,
                "left_keys": done.left_keys,
                "left": [{"key": _json(each.key, subject.spec), "why": each.why} for each in done.left],
            }
    return document


def _json(key: Key, spec: KeySpec) -> dict[str, Any]:
    import json

    from integrity.core.keys import canonical

    parts = json.loads(canonical(key), parse_float=str)
    return dict(zip(spec.names, parts, strict=True))


def _text(key: Key) -> str:
    from integrity.core.key_text import key_text

    return "".join(char if char.isprintable() else "?" for char in key_text(key))


def _spec(spec: KeySpec) -> str:
    return ", ".join(f"{name}: {kind.value}" for name, kind in spec.fields)


def _keys(count: int) -> str:
    return f"{count:,} key{'' if count == 1 else 's'}"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _seconds(text: str) -> float:
    from integrity.core.duration import duration_s

    seconds = duration_s(text)
    if seconds is None or seconds > 7 * 86_400:
        raise click.UsageError(f"--grace {text}: write 30s, 1m or 1h, for example; at most 7d.")
    return float(seconds)


def _share(text: str) -> float:
    digits = text.removesuffix("%")
    try:
        share = float(digits) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share <= 1:
        raise click.UsageError(f"--max-share {text}: write 10%, for example; at most 100%.")
    return share
