"""`integrity demo` as somebody runs it: a process of its own, its output, its exit code, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from integrity.demo.servers import KafkaServer
from integrity.demo.shop import HAPPENINGS

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(600)]

MARK = "DEMO_TEST_MARK"
"""Servers inherit it, so that a process can be told to be of this run's."""

START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 60


class Demo:
    """One run, in a directory for temporary files of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[str] | None = None
        self._output = directory.parent / "output"

    def start(self, *arguments: str) -> None:
        environment = os.environ | {MARK: self._mark, "TMPDIR": str(self.directory)}
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "integrity", "demo", *arguments],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                # A shell without job control lets its background jobs ignore SIGINT, and tests may run in one.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str) -> str:
        """The first match in the output."""
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while (found := re.search(pattern, self.output)) is None:
            assert self._running.poll() is None, f"it has ended:\n{self.output}"
            assert time.monotonic() < give_up_at, f"there is no {pattern} in:\n{self.output}"
            time.sleep(0.05)
        return found[0]

    def interrupt(self) -> int:
        """Press Ctrl-C; the exit code."""
        self._running.send_signal(signal.SIGINT)
        return self._running.wait(STOP_TIMEOUT_S)

    def wait(self) -> int:
        return self._running.wait(START_TIMEOUT_S + STOP_TIMEOUT_S)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def leftovers(self) -> list[str]:
        """Files and processes that are still there."""
        return [str(path) for path in self.directory.iterdir()] + list(_processes(f"{MARK}={self._mark}"))

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "start it first"
        return self._process


def _processes(mark: str) -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                yield f"{entry.name} {(entry / 'cmdline').read_bytes()[:100]!r}"
        except OSError:
            continue  # ended meanwhile, or somebody else's


@pytest.fixture
def demo() -> Iterator[Demo]:
    with tempfile.TemporaryDirectory(prefix="demo-test-") as base:
        directory = Path(base) / "tmp"
        directory.mkdir()
        # PostgreSQL gives up root's rights, and must still be able to walk there.
        Path(base).chmod(0o711)
        directory.chmod(0o711)
        run = Demo(directory)
        yield run
        run.kill()


def _figures(demo: Demo) -> Mapping[str, object]:
    # What is said meanwhile, on standard error, comes before it; the hint to --keep comes after.
    figures = json.JSONDecoder().raw_decode(demo.output, demo.output.index("\n{") + 1)[0]
    assert isinstance(figures, dict)
    return figures


def _assert_fine(figures: Mapping[str, object]) -> None:
    assert (figures["ok"], figures["trouble"]) == (True, [])
    assert figures["orphans"] == {"total": 0, "orders": 0, "reviews": 0, "carts": 0}
    unlike = figures["different_from_native_foreign_keys"]
    assert unlike == {"total": 0, "orders": 0, "reviews": 0, "carts": 0}
    events = figures["events"]
    assert isinstance(events, dict)
    assert (events["total"], events["poison"]) == (HAPPENINGS, 1)
    rows = figures["rows"]
    assert isinstance(rows, list)
    assert [(each["dependent"], each["event"], each["action"]) for each in rows if each["rows"] > 0] == [
        ("orders", "delete", "cascade"),
        ("orders", "key change", "cascade"),
        ("reviews", "delete", "nullify"),
        ("reviews", "key change", "cascade"),
        ("carts", "delete", "cascade"),
        ("carts", "key change", "cascade"),
    ]
    letters, poison = figures["dead_letters"], figures["poison"]
    assert isinstance(letters, list)
    assert sorted(letter["store"] for letter in letters) == ["carts", "orders_db", "reviews_db"]
    assert {letter["reason"] for letter in letters} == {"bad_json"}
    assert [{"partition": letter["partition"], "offset": letter["offset"]} for letter in letters] == [poison] * 3


def test_real_kafka_ends_without_orphans_and_with_the_poison_alone_as_dead_letter(
    demo: Demo, kafka: KafkaServer
) -> None:
    """The fixture is there for its jars: the demo starts a Kafka of its own."""
    demo.start("--json", "--kafka", "real")
    assert demo.wait() == 0, demo.output
    figures = _figures(demo)
    assert figures["kafka"] == "real"
    _assert_fine(figures)
    assert demo.leftovers() == []


def test_embedded_kafka_ends_without_orphans_and_with_the_poison_alone_as_dead_letter(demo: Demo) -> None:
    demo.start("--json", "--kafka", "embedded")
    assert demo.wait() == 0, demo.output
    figures = _figures(demo)
    assert figures["kafka"] == "embedded"
    _assert_fine(figures)
    assert "librdkafka's mock" in demo.output
    assert demo.leftovers() == []


def test_kept_demo_can_be_looked_at_until_it_is_interrupted(demo: Demo) -> None:
    demo.start("--keep", "--kafka", "embedded")
    demo.wait_for("Ctrl-C stops everything")
    assert "\x1b" not in demo.output, "plain lines where there is no terminal"
    assert re.search(r"^orphans left +0$", demo.output, re.MULTILINE)
    with urllib.request.urlopen(demo.wait_for(r"http://[\d.:]+/metrics"), timeout=10) as answer:
        assert b'integrity_rows_total{action="cascade",dependent="customer.orders"}' in answer.read()
    assert demo.interrupt() == 0, "what was shown was fine"
    assert demo.leftovers() == []


@pytest.mark.parametrize("moment", ["Starting PostgreSQL", "PostgreSQL runs", "The shop is open", r"\d+ of \d+ events"])
def test_interrupted_demo_leaves_nothing(demo: Demo, moment: str, wait_a_little: Callable[[], None]) -> None:
    demo.start("--kafka", "auto")
    demo.wait_for(moment)
    wait_a_little()
    assert demo.interrupt() == 130, demo.output
    assert demo.output.splitlines()[-1] == "Stopped; nothing is left running.", "no traceback"
    assert demo.leftovers() == []


@pytest.fixture
def wait_a_little() -> Callable[[], None]:
    """So that not the line itself is interrupted, but what follows it."""
    return lambda: time.sleep(0.2)


def test_missing_extra_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['confluent_kafka'] = None; from integrity.cli import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", hide, "demo", "--kafka", "embedded"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "The demo's parts are missing: pip install 'integrity[demo]'.\n"
