"""Where settings come from: the environment, a .env file, a YAML file, a directory of secrets.

Each source becomes entries, a path and a text each, and findings for what can't be read. No message of this module
ever holds a value: any of them may be a secret.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dotenv.parser import parse_stream

from integrity.core.rules.document import BYTES_MAX, BrokenNode, ListNode, MappingNode, Node, ScalarNode, read_document
from integrity.core.rules.findings import FindingCode
from integrity.errors import Finding

PREFIX = "INTEGRITY_"
SECRET_BYTES_MAX = 64 * 1024
SECRETS_MAX = 1000

SettingPath = tuple[str, ...]
"""The parts of a setting's name: ("stores", "orders_db", "url")."""


class SettingsCode(StrEnum):
    """The stable code of a finding about settings, beside those of YAML files."""

    UNKNOWN_SETTING = "unknown_setting"
    NOT_SUPPORTED_YET = "not_supported_yet"
    MISSING_SETTING = "missing_setting"
    BAD_SETTING = "bad_setting"
    REPEATED_SETTING = "repeated_setting"
    CONFLICTING_SETTINGS = "conflicting_settings"
    BAD_ENV_LINE = "bad_env_line"
    UNREADABLE_FILE = "unreadable_file"
    SECRET_TOO_LARGE = "secret_too_large"
    SECRET_EXPOSED = "secret_exposed"


class Entry(NamedTuple):
    """A value that somebody set. `shown` is the setting's name as it was written; line and column are 0 where the
    source has none."""

    path: SettingPath
    value: str
    shown: str
    file: str = ""
    line: int = 0
    column: int = 0

    def finding(self, code: SettingsCode, message: str, hint: str = "") -> Finding:
        """A fault of this value; the message says what is wrong with the setting, which is named before it."""
        return Finding(code, f"{self.shown} {message}", hint, self.file, self.line, self.column)


@dataclass(frozen=True, slots=True)
class Source:
    """What one source holds: at most one entry a path."""

    entries: dict[SettingPath, Entry] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def put(self, entry: Entry) -> None:
        """Takes an entry, or the finding that its setting is there twice."""
        first = self.entries.setdefault(entry.path, entry)
        if first is entry:
            return
        if first.shown == entry.shown:
            message, hint = f"is set twice, first on line {first.line}", "Keep one of them."
        else:
            message, hint = f"and {first.shown} are the same setting", "Keep the name in capitals."
        self.findings.append(entry.finding(SettingsCode.REPEATED_SETTING, message, hint))


def name_of(path: SettingPath) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def _path_of(name: str) -> SettingPath | None:
    if not name.upper().startswith(PREFIX):
        return None
    return tuple(name[len(PREFIX) :].lower().split("__"))


def from_environment(environ: Mapping[str, str]) -> Source:
    """Every variable `INTEGRITY_*`, in whatever case."""
    source = Source()
    for name in sorted(environ):
        if path := _path_of(name):
            source.put(Entry(path, environ[name], name))
    return source


def from_env_file(file: Path) -> Source:
    """The `INTEGRITY_*` of a .env file; nothing when there is none. Other programs' lines are passed over."""
    source = Source()
    try:
        with file.open("rb") as stream:
            text = stream.read(BYTES_MAX).decode("utf-8-sig")
    except FileNotFoundError:
        return source
    except (OSError, UnicodeDecodeError) as exc:
        source.findings.append(_unreadable(file, exc))
        return source
    for binding in parse_stream(io.StringIO(text)):
        # The parser counts the blank lines before a binding as its own.
        line = binding.original.line + binding.original.string[: -len(binding.original.string.lstrip())].count("\n")
        if binding.error:
            message, hint = "this line cannot be read", "Write NAME=value, or NAME='value' where it holds a # or space."
            source.findings.append(Finding(SettingsCode.BAD_ENV_LINE, message, hint, str(file), line, 1))
            continue
        if binding.key is None or (path := _path_of(binding.key)) is None:
            continue
        entry = Entry(path, binding.value or "", binding.key, str(file), line, 1)
        if binding.value is None:
            source.findings.append(entry.finding(SettingsCode.BAD_SETTING, "has no value", "Write NAME=value."))
            continue
        source.put(entry)
    return source


_NO_VALUE_SHOWN: Mapping[str, tuple[str, str]] = {
    FindingCode.AMBIGUOUS_SCALAR: ("this is read differently by YAML 1.1 and YAML 1.2", "Quote it."),
    FindingCode.NUMBER_RANGE: ("this number does not fit, or loses digits", "Quote it if it is text."),
    FindingCode.YAML_ALIAS: ("anchors, aliases and merge keys are not allowed", "Quote it if it is text."),
    FindingCode.YAML_TAG: ("tags are not allowed", "Quote it if it is text."),
    FindingCode.YAML_KEY: ("a key must be text", "Quote it."),
    FindingCode.YAML_SYNTAX: ("this is not valid YAML", "Quote values that hold any of : # @ % { } [ ] & * !"),
    FindingCode.YAML_DOCUMENTS: ("a second document in one file", "Write all settings in one document."),
}
"""Findings of the YAML reader that would quote the file, which may hold a secret."""


def from_yaml(file: Path) -> Source:
    """One YAML document of nested mappings."""
    source = Source()
    try:
        with file.open("rb") as stream:
            data = stream.read(BYTES_MAX + 1)
    except OSError as exc:
        source.findings.append(_unreadable(file, exc))
        return source
    root, report = read_document(data, str(file))
    for finding in report.findings():
        message, hint = _NO_VALUE_SHOWN.get(finding.code, (finding.message, finding.hint))
        source.findings.append(Finding(finding.code, message, hint, finding.file, finding.line, finding.column))
    if root is not None and not isinstance(root, BrokenNode):
        _put_node(source, (), root, str(file))
    return source


def _put_node(source: Source, path: SettingPath, node: Node, file: str) -> None:
    entry = Entry(path, "", ".".join(path) or "the file", file, node.line, node.column)
    match node:
        case MappingNode():
            for key, value in node.entries:
                _put_node(source, (*path, key.text), value, file)
        case ScalarNode(value=None):
            hint = 'Leave the setting out, or write "" for an empty text.'
            source.findings.append(entry.finding(SettingsCode.BAD_SETTING, "has no value", hint))
        case ScalarNode() if path:
            value = str(node.value).lower() if isinstance(node.value, bool) else str(node.value)
            source.put(entry._replace(value=value))
        case BrokenNode():
            pass
        case ScalarNode() | ListNode():
            message = "must be a single value, not a list" if path else "must hold settings, such as group: integrity"
            source.findings.append(entry.finding(SettingsCode.BAD_SETTING, message))


def from_secrets(directory: Path, is_setting: Callable[[SettingPath], bool]) -> Source:
    """One file a setting, named like its environment variable, in capitals or not.

    Hidden files and those of other programs are passed over; one that only lacks the prefix is a fault.
    """
    source = Source()
    try:
        files = sorted(islice((f for f in directory.iterdir() if not f.name.startswith(".")), SECRETS_MAX + 1))
    except OSError as exc:
        source.findings.append(_unreadable(directory, exc))
        return source
    if len(files) > SECRETS_MAX:
        message = f"the directory holds more than {SECRETS_MAX} files"
        source.findings.append(Finding(SettingsCode.UNREADABLE_FILE, message, file=str(directory)))
        return source
    for file in files:
        path = _path_of(file.name)
        if path is None:
            if is_setting(tuple(file.name.lower().split("__"))):
                message, hint = "is not read: its name has no prefix", f"Name it {PREFIX}{file.name.upper()}."
                source.findings.append(Finding(SettingsCode.UNKNOWN_SETTING, message, hint, str(file)))
            continue
        secret = _secret(file, source)
        if secret is not None:
            source.put(Entry(path, secret, file.name, str(file)))
    return source


def _secret(file: Path, source: Source) -> str | None:
    try:
        # Looked at first: opening a pipe would wait for its writer.
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            message, hint = "is not a file", "A setting is one file, named like its environment variable."
            source.findings.append(Finding(SettingsCode.UNREADABLE_FILE, message, hint, str(file)))
            return None
        with file.open("rb") as stream:
            data = stream.read(SECRET_BYTES_MAX + 1)
        if len(data) > SECRET_BYTES_MAX:
            message = f"is larger than {SECRET_BYTES_MAX} bytes"
            source.findings.append(Finding(SettingsCode.SECRET_TOO_LARGE, message, file=str(file)))
            return None
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        source.findings.append(_unreadable(file, exc))
        return None
    if mode & stat.S_IROTH:
        hint = "Take the right away: mode 0400, owned by the user that runs integrity."
        message = "may be read by every user of this machine"
        source.findings.append(Finding(SettingsCode.SECRET_EXPOSED, message, hint, str(file), severity="warning"))
    return text.removesuffix("\n").removesuffix("\r")


def _unreadable(file: Path, exc: OSError | UnicodeDecodeError) -> Finding:
    reason = "it is not UTF-8 text" if isinstance(exc, UnicodeDecodeError) else (exc.strerror or "").lower()
    return Finding(SettingsCode.UNREADABLE_FILE, f"cannot be read: {reason or type(exc).__name__}", file=str(file))
