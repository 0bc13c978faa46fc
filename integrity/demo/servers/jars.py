"""Java programs for the servers: resolved by Maven once, kept in the user's cache, never half there.

A set of jars appears under its final name only when it is complete, so an interrupted download is simply done again.
Two processes that need the same set wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integrity.demo.servers.process import ServerUnavailable, run

_DOWNLOAD_TIMEOUT_S: Final = 900
_INSTALL_TIMEOUT_S: Final = 600
_JAVA_VERSION_MIN: Final = 17
_DEPENDENCY_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_MARKER: Final = ".complete"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published file, by its coordinates `group:name:version[:type[:classifier]]`."""

    coordinates: str
    # For a file that its repository publishes no checksum of, or not everywhere.
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.coordinates.split(":")[1]

    @property
    def version(self) -> str:
        return self.coordinates.split(":")[2]


@dataclass(frozen=True, slots=True)
class JarSet:
    """A program: the named artifacts with everything they depend on at run time."""

    name: str
    artifacts: tuple[Artifact, ...]

    @property
    def directory(self) -> Path:
        return _cache_directory() / self.name

    @property
    def class_path(self) -> str:
        return f"{self.directory}/*"

    @property
    def is_complete(self) -> bool:
        """Tell if the set is here, without touching the network."""
        return (self.directory / _MARKER).exists()

    def resolve(self) -> None:
        """Make the set complete, downloading it if need be."""
        _make_once(self.directory, self._download)

    def _download(self, target: Path) -> None:
        pom = target / "pom.xml"
        pom.write_text(_pom(self.artifacts))
        _maven(
            "--file", str(pom), f"{_DEPENDENCY_PLUGIN}:copy-dependencies",
            "-DincludeScope=runtime", f"-DoutputDirectory={target}", "--strict-checksums",
            what=f"the jars of {self.name}",
        )  # fmt: skip
        pom.unlink()


def resolve_plugin(artifact: Artifact) -> Path:
    """Return the directory of a Kafka Connect plugin, downloading and unpacking it if need be."""
    directory = _cache_directory() / "plugins" / f"{artifact.name}-{artifact.version}"

    def download(target: Path) -> None:
        _maven(
            f"{_DEPENDENCY_PLUGIN}:copy", f"-Dartifact={artifact.coordinates}", f"-DoutputDirectory={target}",
            what=f"the plugin {artifact.name}",
        )  # fmt: skip
        for archive in target.iterdir():
            _verify(archive, artifact)
        for archive in target.glob("*.tar.gz"):
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
            archive.unlink()

    _make_once(directory, download)
    return directory


def _verify(file: Path, artifact: Artifact) -> None:
    if artifact.sha256 not in (None, hashlib.sha256(file.read_bytes()).hexdigest()):
        raise ServerUnavailable(f"The downloaded {file.name} is not the published one: its checksum differs.")


def java() -> str:
    """Return the path of a fit Java; install one when this is root on Debian."""
    found = find_java()
    if found is None:
        _install("openjdk-17-jre-headless", "Java 17 or newer")
        found = find_java()
    if found is None:
        raise ServerUnavailable("Java 17 or newer is missing: install openjdk-17-jre-headless.")
    return found


def find_java() -> str | None:
    """Return the path of a fit Java that is here, or nothing."""
    home = os.environ.get("JAVA_HOME")
    candidates = [
        *([f"{home}/bin/java"] if home else []),
        *([on_path] if (on_path := shutil.which("java")) else []),
        *(str(path) for path in sorted(Path("/usr/lib/jvm").glob("java-*-openjdk-*/bin/java"), reverse=True)),
    ]
    return next((path for path in candidates if _java_version(path) >= _JAVA_VERSION_MIN), None)


def _java_version(path: str) -> int:
    try:
        told = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', told)
    return int(found[1]) if found else 0


def _maven(*arguments: str, what: str) -> None:
    # Maven is itself a Java program, and may come without one.
    java()
    if shutil.which("mvn") is None:
        _install("maven", "Maven")
    mvn = shutil.which("mvn")
    if mvn is None:
        raise ServerUnavailable("Maven is missing: install maven.")
    run(
        [mvn, "--batch-mode", "--quiet", "-Dstyle.color=never", *arguments],
        timeout_s=_DOWNLOAD_TIMEOUT_S,
        failure=f"Maven could not download {what}",
    )


def _install(package: str, what: str) -> None:
    """Install a Debian package when this is root on Debian; otherwise say what to install."""
    apt_get = shutil.which("apt-get")
    if apt_get is None or os.geteuid() != 0:
        raise ServerUnavailable(f"{what} is missing: install it (on Debian and Ubuntu: apt-get install {package}).")
    failure = f"{what} is missing, and apt-get could not install {package}"
    install = ["env", "DEBIAN_FRONTEND=noninteractive", apt_get, "-qq", "--no-install-recommends", "install", "-y"]
    _cache_directory().mkdir(parents=True, exist_ok=True)
    # apt-get fails beside another one; of what is there it installs nothing.
    with _locked(_cache_directory() / "apt-get.lock"):
        run([apt_get, "-qq", "update"], timeout_s=_INSTALL_TIMEOUT_S, failure=failure)
        run([*install, package], timeout_s=_INSTALL_TIMEOUT_S, failure=failure)


def _make_once(directory: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a directory and give it its name at the end, unless another process has done so."""
    if (directory / _MARKER).exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory.with_name(f"{directory.name}.lock")):
        if (directory / _MARKER).exists():
            return
        shutil.rmtree(directory, ignore_errors=True)
        target = Path(tempfile.mkdtemp(prefix=f"{directory.name}.partial-", dir=directory.parent))
        try:
            make(target)
            (target / _MARKER).touch()
            target.rename(directory)
        finally:
            shutil.rmtree(target, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The lock is the kernel's: it ends with the process that holds it, so a dead one never blocks the next.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cache_directory() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The specification tells to ignore a relative path.
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "integrity"


def _pom(artifacts: tuple[Artifact, ...]) -> str:
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *artifact.coordinates.split(":")[:3]
        )
        for artifact in artifacts
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>integrity</groupId><artifactId>servers</artifactId>"
        f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
    )
