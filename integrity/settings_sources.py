"""Where settings come from: the environment, a .env file, a YAML file, a directory of secrets.

Each is a source of pydantic-settings that also knows where every value stands and what can't be read, so that a fault
is told under the name that the user wrote, with file and line. That is more than pydantic-settings' own sources keep:
of two spellings they take one, of an unknown name nothing, and they expand `${...}` and strip blanks in secrets.
No message of this module ever holds a value: any of them may be a secret.
"""

from __future__ import annotations

import difflib
import io
import stat
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

from dotenv.parser import parse_stream
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

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


def name_of(path: SettingPath) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def _path_of(name: str) -> SettingPath | None:
    if not name.upper().startswith(PREFIX):
        return None
    return tuple(name[len(PREFIX) :].lower().split("__"))


ANY_STORE = "<NAME>"

_LATER: frozenset[SettingPath] = frozenset(
    {
        *(("http", name) for name in ("prefix", "payloads", "user_header", "trace_url")),
    }
)
"""Settings of a later version."""


def leaves(model: type[BaseModel], path: SettingPath = ()) -> Iterator[SettingPath]:
    """Every setting of a model, with ANY_STORE where the name of a store stands."""
    for field_name, field in model.model_fields.items():
        below, inner = (*path, field.alias or field_name), field.annotation
        if below == ("stores",):
            below, inner = (*below, ANY_STORE), get_args(inner)[1]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, below)
        else:
            yield below


def _general(path: SettingPath) -> SettingPath:
    return (*path[:1], ANY_STORE, *path[2:]) if path[0] == "stores" and len(path) > 1 else path


class NamedSource(PydanticBaseSettingsSource):
    """What one source holds: at most one entry a setting, and a finding for all else."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.entries: dict[SettingPath, Entry] = {}
        self.findings: list[Finding] = []
        self._leaves = frozenset(leaves(settings_cls))

    def __call__(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for path, entry in self.entries.items():
            place = nested
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = entry.value
        return nested

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def is_setting(self, path: SettingPath) -> bool:
        return _general(path) in self._leaves

    def put(self, entry: Entry) -> None:
        """Takes an entry, or the finding that it is no setting, or is there twice."""
        if not self.is_setting(entry.path):
            self.findings.append(self._unknown(entry))
            return
        first = self.entries.setdefault(entry.path, entry)
        if first is entry:
            return
        if first.shown == entry.shown:
            message, hint = f"is set twice, first on line {first.line}", "Keep one of them."
        else:
            message, hint = f"and {first.shown} are the same setting", "Keep the name in capitals."
        self.findings.append(entry.finding(SettingsCode.REPEATED_SETTING, message, hint))

    def _unknown(self, entry: Entry) -> Finding:
        path = entry.path
        if path in _LATER:
            return entry.finding(SettingsCode.NOT_SUPPORTED_YET, "is not supported yet", "Leave it out.")
        general = _general(path)
        inside = sorted(name_of((*path, leaf[-1])) for leaf in self._leaves if leaf[:-1] == general)
        if inside:
            message, hint = "is a group of settings, not one", f"Set one of {', '.join(inside)}."
        elif general[:-1] in self._leaves:
            message, hint = "is not a setting: what it is part of is a value", f"Set {name_of(path[:-1])}."
        else:
            message, hint = "is not a setting", self._nearest(path)
        return entry.finding(SettingsCode.UNKNOWN_SETTING, message, hint)

    def _nearest(self, path: SettingPath) -> str:
        store = path[1] if path[0] == "stores" and len(path) > 1 else "name"
        names = [name_of(tuple(store if part == ANY_STORE else part for part in leaf)) for leaf in sorted(self._leaves)]
        near = difflib.get_close_matches(name_of(path), names, n=1, cutoff=0.75)
        return f"Did you mean {near[0]}?" if near else "docs/settings.md lists all settings."


class Environment(NamedSource):
    """Every variable `INTEGRITY_*`, in whatever case."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        for name in sorted(environ):
            if path := _path_of(name):
                self.put(Entry(path, environ[name], name))


class EnvFile(NamedSource):
    """The `INTEGRITY_*` of a .env file; nothing when there is none. Other programs' lines are passed over."""

    def __init__(self, settings_cls: type[BaseSettings], file: Path) -> None:
        super().__init__(settings_cls)
        try:
            with file.open("rb") as stream:
                text = stream.read(BYTES_MAX).decode("utf-8-sig")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as exc:
            self.findings.append(_unreadable(file, exc))
            return
        for binding in parse_stream(io.StringIO(text)):
            # The parser counts the blank lines before a binding as its own.
            lead = binding.original.string[: -len(binding.original.string.lstrip())].count("\n")
            place = (str(file), binding.original.line + lead, 1)
            if binding.error:
                message, hint = "this line cannot be read", "Write NAME=value, or NAME='value' around a # or space."
                self.findings.append(Finding(SettingsCode.BAD_ENV_LINE, message, hint, *place))
            elif binding.key is not None and (path := _path_of(binding.key)) is not None:
                entry = Entry(path, binding.value or "", binding.key, *place)
                if binding.value is None:
                    self.findings.append(entry.finding(SettingsCode.BAD_SETTING, "has no value", "Write NAME=value."))
                else:
                    self.put(entry)


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


class YamlFile(NamedSource):
    """One YAML document of nested mappings."""

    def __init__(self, settings_cls: type[BaseSettings], file: Path) -> None:
        super().__init__(settings_cls)
        try:
            with file.open("rb") as stream:
                data = stream.read(BYTES_MAX + 1)
        except OSError as exc:
            self.findings.append(_unreadable(file, exc))
            return
        root, report = read_document(data, str(file))
        for finding in report.findings():
            message, hint = _NO_VALUE_SHOWN.get(finding.code, (finding.message, finding.hint))
            self.findings.append(Finding(finding.code, message, hint, finding.file, finding.line, finding.column))
        if root is not None:
            self._put_node((), root, str(file))

    def _put_node(self, path: SettingPath, node: Node, file: str) -> None:
        entry = Entry(path, "", ".".join(path) or "the file", file, node.line, node.column)
        match node:
            case MappingNode():
                for key, value in node.entries:
                    self._put_node((*path, key.text), value, file)
            case ScalarNode(value=None):
                hint = 'Leave the setting out, or write "" for an empty text.'
                self.findings.append(entry.finding(SettingsCode.BAD_SETTING, "has no value", hint))
            case ScalarNode() if path:
                text = str(node.value).lower() if isinstance(node.value, bool) else str(node.value)
                self.put(entry._replace(value=text))
            case BrokenNode():
                pass
            case ScalarNode() | ListNode():
                message = (
                    "must be a single value, not a list" if path else "must hold settings, such as group: integrity"
                )
                self.findings.append(entry.finding(SettingsCode.BAD_SETTING, message))


class SecretsDirectory(NamedSource):
    """One file a setting, named like its environment variable, in capitals or not.

    Hidden files and those of other programs are passed over; one that only lacks the prefix is a fault.
    """

    def __init__(self, settings_cls: type[BaseSettings], directory: Path) -> None:
        super().__init__(settings_cls)
        try:
            files = sorted(islice((f for f in directory.iterdir() if not f.name.startswith(".")), SECRETS_MAX + 1))
        except OSError as exc:
            self.findings.append(_unreadable(directory, exc))
            return
        if len(files) > SECRETS_MAX:
            message = f"the directory holds more than {SECRETS_MAX} files"
            self.findings.append(Finding(SettingsCode.UNREADABLE_FILE, message, file=str(directory)))
            return
        for file in files:
            path = _path_of(file.name)
            if path is not None:
                secret = self._secret(file)
                if secret is not None:
                    self.put(Entry(path, secret, file.name, str(file)))
            elif self.is_setting(tuple(file.name.lower().split("__"))):
                message, hint = "is not read: its name has no prefix", f"Name it {PREFIX}{file.name.upper()}."
                self.findings.append(Finding(SettingsCode.UNKNOWN_SETTING, message, hint, str(file)))

    def _secret(self, file: Path) -> str | None:
        try:
            # Looked at first: opening a pipe would wait for its writer.
            mode = file.stat().st_mode
            if not stat.S_ISREG(mode):
                message, hint = "is not a file", "A setting is one file, named like its environment variable."
                self.findings.append(Finding(SettingsCode.UNREADABLE_FILE, message, hint, str(file)))
                return None
            with file.open("rb") as stream:
                data = stream.read(SECRET_BYTES_MAX + 1)
            if len(data) > SECRET_BYTES_MAX:
                message = f"is larger than {SECRET_BYTES_MAX} bytes"
                self.findings.append(Finding(SettingsCode.SECRET_TOO_LARGE, message, file=str(file)))
                return None
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            self.findings.append(_unreadable(file, exc))
            return None
        if mode & stat.S_IROTH:
            hint = "Take the right away: mode 0400, owned by the user that runs integrity."
            message = "may be read by every user of this machine"
            self.findings.append(Finding(SettingsCode.SECRET_EXPOSED, message, hint, str(file), severity="warning"))
        return text.removesuffix("\n").removesuffix("\r")


def _unreadable(file: Path, exc: OSError | UnicodeDecodeError) -> Finding:
    reason = "it is not UTF-8 text" if isinstance(exc, UnicodeDecodeError) else (exc.strerror or "").lower()
    return Finding(SettingsCode.UNREADABLE_FILE, f"cannot be read: {reason or type(exc).__name__}", file=str(file))
