"""Schemas of Protobuf, which registries have as text, compiled: by protoc, which the extra `protobuf` brings along.

It runs once a schema, as a process of its own: what a text may do to a compiler ends there. Nothing of a text becomes
code.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from integrity.core.decode.avro import SCHEMA_BYTES_MAX, SchemaFault
from integrity.core.decode.protobuf import DESCRIPTORS_BYTES_MAX
from integrity.errors import UnreachableError

EXTRA = "it is a Protobuf schema, which needs the extra: pip install 'integrity[protobuf]'"
_TIMEOUT_S = 10.0
"""A compilation takes a tenth of a second; one that hangs must not hold up a stop."""
_BYTES_MAX = 8 * SCHEMA_BYTES_MAX
"""For a schema and all that it refers to."""
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/){0,20}[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_KNOWN = Path(__file__).parent / "protos"
"""What Confluent's registry lets a schema import without a reference: the part of it that matters to a reader."""


def compiled(text: str, files: Mapping[str, str]) -> bytes:
    """The descriptors of a schema and all that it imports (a FileDescriptorSet, its own the last). `files` are the
    schemas that it refers to, by the names under which it imports them. Raises SchemaFault, and UnreachableError where
    the compiler can't run now."""
    if find_spec("grpc_tools") is None:
        raise SchemaFault(EXTRA)
    if len(text) + sum(map(len, files.values())) > _BYTES_MAX:
        raise SchemaFault(f"it and what it refers to are larger than {_BYTES_MAX} characters")
    if not all(_NAME.fullmatch(name) for name in files):
        raise SchemaFault("it refers to a schema by a name that is no path of a file")
    name = "schema.proto"
    while name in files:
        name = f"_{name}"
    try:
        with TemporaryDirectory(prefix="integrity-") as folder:
            return _run(Path(folder), name, {**files, name: text})
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise SchemaFault("two of the schemas that it refers to can't have their names side by side") from None
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UnreachableError(
            f"A Protobuf schema can't be compiled here: {type(exc).__name__}.",
            hint="It takes a process and a directory for temporary files (TMPDIR).",
        ) from exc


def _run(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    sources, target = folder / "in", folder / "out"
    for each, text in files.items():
        path = sources / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    # Google's own, which come with the compiler and with a package of all its APIs.
    paths = [sources, _KNOWN, *_shared()]
    command = [sys.executable, "-P", "-m", "grpc_tools.protoc", "--include_imports", f"--descriptor_set_out={target}"]
    done = subprocess.run(
        [*command, *(f"-I{path}" for path in paths), name],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0 or not target.exists():
        raise SchemaFault("it does not compile, or imports what neither it nor its references define")
    if target.stat().st_size > DESCRIPTORS_BYTES_MAX:
        raise SchemaFault(f"its descriptors are larger than {DESCRIPTORS_BYTES_MAX} bytes")
    return target.read_bytes()


def _shared() -> list[Path]:
    """Where google/type and its like are: beside the modules that were made of them."""
    spec = find_spec("google.type")
    return [] if spec is None else [Path(each).parents[1] for each in spec.submodule_search_locations or ()]
