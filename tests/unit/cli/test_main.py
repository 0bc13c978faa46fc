"""The program as a whole: help, exit codes, and one sentence for whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from integrity.cli import main, shell
from integrity.cli.base import Options, run_async, start
from integrity.errors import Finding, IntegrityError, RulesError, SettingsError, UnreachableError

HEAVY = (
    *("asyncpg", "pymongo", "aiokafka", "pydantic", "opentelemetry", "rich", "uvloop", "starlette", "yaml"),
    *("asyncio", "integrity.settings", "integrity.core"),
)

Register = Callable[..., None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Add a command `probe` that runs the given function."""

    def add(function: Callable[..., object], *, reads_settings: bool = False) -> None:
        command = click.Command("probe", callback=function, params=[click.Option(["--json"], is_flag=True)])
        module = SimpleNamespace(command=command)
        monkeypatch.setitem(sys.modules, "probe_module", module)
        entries = {**shell.COMMANDS, "probe": shell.Entry("probe_module", "Probe.", reads_settings)}
        monkeypatch.setattr(shell, "COMMANDS", entries)

    return add


def failing(error: BaseException) -> Callable[..., None]:
    def fail(json: bool) -> None:
        raise error

    return fail


def python(code: str, **arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, **arguments
    )


# --- help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(shell.COMMANDS))
def test_line_in_the_help_is_the_first_line_of_the_command_itself(name: str) -> None:
    command = shell.shell().get_command(click.Context(shell.shell()), name)
    assert command is not None
    assert command.get_short_help_str(limit=200) == shell.COMMANDS[name].help
    assert command.name == name


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, entry in shell.COMMANDS.items():
        assert f" {name} {entry.help}" in shown


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["version", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from integrity.cli import main; code = main({arguments!r}); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    ended = python(code)
    assert (ended.returncode, ended.stderr.strip()) == (0, "[]")


def test_no_command_is_wrong_usage_and_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


# --- usage -----------------------------------------------------------------------------------------------------


def test_misspelt_command_is_wrong_usage_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["valdate"]) == 2
    assert capsys.readouterr().err == "There is no command valdate. Did you mean validate? See integrity --help.\n"


def test_command_of_a_later_version_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top"]) == 2
    assert "not in this version" in capsys.readouterr().err


def test_unknown_option_is_wrong_usage_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("options", [["--config", "x.yaml"], ["--rules", "x"], ["--secrets-dir", "x"], ["-v"], ["-q"]])
def test_option_that_would_do_nothing_is_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "version"]) == 2
    assert "has no effect on version" in capsys.readouterr().err


def test_options_count_before_and_behind_the_command(register: Register) -> None:
    seen: list[Options] = []
    register(click.pass_obj(lambda options, json: seen.append(options)), reads_settings=True)
    assert main(["--config", "a.yaml", "--rules", "r", "probe"]) == 0
    assert main(["--config", "a.yaml", "probe", "--config", "b.yaml", "-v", "--debug"]) == 0
    assert seen == [
        Options(config=Path("a.yaml"), rules=Path("r")),
        Options(config=Path("b.yaml"), verbose=True, debug=True),
    ]


@pytest.mark.parametrize("arguments", [["-v", "-q", "probe"], ["-v", "probe", "-q"]])
def test_verbose_and_quiet_exclude_each_other(arguments: list[str], register: Register) -> None:
    register(failing(AssertionError("must not run")), reads_settings=True)
    assert main(arguments) == 2


# --- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UnreachableError("Kafka does not answer.", hint="Start it."), 3, "Kafka does not answer. Start it.\n"),
        (SettingsError("X is not set.", hint="Set it."), 2, "X is not set. Set it.\n"),
        (
            RulesError([Finding("a", "one", file="f.yaml", line=1, column=2), Finding("b", "two", "mend")]),
            2,
            "f.yaml:1:2: one [a]\ntwo [b]\n    mend\n2 faults to mend. Nothing has started.\n",
        ),
    ],
)
def test_fault_is_told_on_standard_error_with_its_exit_code(
    error: IntegrityError, code: int, text: str, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register(failing(error))
    assert main(["probe"]) == code
    assert capsys.readouterr() == ("", text)


def test_fault_is_one_json_document_on_standard_output(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    register(failing(UnreachableError("Kafka does not answer.", hint="Start it.")))
    assert main(["probe", "--json"]) == 3
    error = {"code": "unreachable", "message": "Kafka does not answer.", "hint": "Start it."}
    assert json.loads(capsys.readouterr().out) == {"error": error}


def test_wrong_usage_is_one_json_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json", "--nothing"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_unexpected_exception_shows_its_type_and_no_value(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register(failing(KeyError("customer 4711")))
    assert main(["probe"]) == 3
    assert capsys.readouterr().err == (
        "Something unexpected happened: KeyError. Run it with --debug for the traceback.\n"
    )


def test_debug_prints_the_traceback(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    register(failing(KeyError("customer 4711")))
    assert main(["--debug", "probe"]) == 3
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("Something unexpected happened: KeyError.\n")


def test_fault_inside_a_task_group_is_told_as_itself(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("x", [ValueError("a"), ExceptionGroup("y", [SettingsError("X is not set.")])])
    register(failing(group))
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == "X is not set.\n"


@pytest.mark.parametrize("stop", [1, 3])
def test_exit_code_of_a_command_is_that_of_the_program(stop: int, register: Register) -> None:
    register(lambda json: click.get_current_context().exit(stop))
    assert main(["probe"]) == stop
    register(lambda json: stop)
    assert main(["probe"]) == stop


def test_control_characters_of_a_message_do_not_reach_the_terminal(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register(failing(UnreachableError("the host \x1b[2Jx does not answer")))
    main(["probe"])
    assert "\x1b" not in capsys.readouterr().err


def test_settings_faults_are_told_all_at_once(
    register: Register,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTEGRITY_HTTP__PORT", "many")
    monkeypatch.setenv("INTEGRITY_GRUOP", "x")
    register(click.pass_obj(lambda options, json: start(options)), reads_settings=True)
    assert main(["probe"]) == 2
    err = capsys.readouterr().err
    assert "INTEGRITY_HTTP__PORT must be a whole number" in err
    assert "INTEGRITY_GRUOP is not a setting [unknown_setting]\n    Did you mean INTEGRITY_GROUP?" in err
    assert err.endswith("2 faults to mend. Nothing has started.\n")


def test_world_readable_secret_is_a_warning_that_quiet_leaves_out(
    register: Register, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("INTEGRITY_GROUP").write_text("a")
    Path("INTEGRITY_GROUP").chmod(0o644)
    monkeypatch.setattr("integrity.logs.setup_logging", lambda *arguments, **keywords: None)
    register(click.pass_obj(lambda options, json: start(options).group and None), reads_settings=True)
    assert main(["probe", "--secrets-dir", "."]) == 0
    assert capsys.readouterr().err.startswith("warning: INTEGRITY_GROUP: may be read by every user of this machine")
    assert main(["-q", "probe", "--secrets-dir", "."]) == 0
    assert capsys.readouterr().err == ""


# --- the end ---------------------------------------------------------------------------------------------------


def test_interrupt_ends_a_command_quietly() -> None:
    code = """
import asyncio, signal, sys, types, click
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
from integrity.cli import main, shell
from integrity.cli.base import run_async
async def wait():
    print("ready", flush=True)
    await asyncio.Event().wait()
sys.modules["probe_module"] = types.SimpleNamespace(command=click.Command("probe", callback=lambda: run_async(wait())))
shell.COMMANDS = {"probe": shell.Entry("probe_module", "Probe.")}
sys.exit(main(["probe"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=20) == 130
        finally:
            process.kill()
        assert process.stderr.read() == ""


def test_closed_pipe_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "integrity", "schema"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (141, "")


def test_coroutines_run_on_uvloop() -> None:
    async def loop() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run_async(loop()).startswith("uvloop")


def test_module_is_the_program_too() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "integrity", "version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout.split()[0]) == (0, "integrity")
