"""Settings: environment `INTEGRITY_*`, `.env`, a YAML file, a secrets directory; the later named loses (contract 3).

Every fault of the settings is reported at once, with the name a user would set, and never with a secret's value.
docs/settings.md says of each setting what it does and why its default is what it is.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from integrity.core import duration
from integrity.core.rules.findings import bare
from integrity.core.rules.names import store_fault, topic_fault
from integrity.errors import Finding, SettingsError, UsageError
from integrity.settings_sources import (
    Entry,
    EnvFile,
    Environment,
    NamedSource,
    SecretsDirectory,
    SettingPath,
    SettingsCode,
    YamlFile,
    leaves,
    name_of,
)

ENV_FILE = Path(".env")

_BROKER = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


_SOURCES = "_sources"
"""The keyword that hands the sources to `Settings`."""


class _SeveralFaults(ValueError):
    """Faults between settings, each under the path of the one to change."""

    def __init__(self, faults: Sequence[tuple[SettingPath, str]]) -> None:
        super().__init__("; ".join(message for _, message in faults))
        self.faults = tuple(faults)


def duration_s(value: object) -> object:
    """Seconds of `500ms`, `30s`, `10m`, `1h`, `2d`; anything else is refused by the field's own type."""
    if isinstance(value, str):
        seconds = duration.duration_s(value)
        if seconds is None:
            raise ValueError("must be a duration such as 500ms, 30s or 10m")
        return seconds
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _topic(value: str) -> str:
    if fault := topic_fault(value):
        raise ValueError(fault)
    return value


DurationS = Annotated[float, BeforeValidator(duration_s), Field(gt=0, le=86400)]
OptionalFile = Annotated[Path | None, BeforeValidator(_empty_is_none)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SecurityProtocol(StrEnum):
    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def uses_tls(self) -> bool:
        return self in (SecurityProtocol.SSL, SecurityProtocol.SASL_SSL)

    @property
    def uses_sasl(self) -> bool:
        return self in (SecurityProtocol.SASL_PLAINTEXT, SecurityProtocol.SASL_SSL)


class SaslMechanism(StrEnum):
    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


class KafkaSettings(_Section):
    """How to reach Kafka."""

    bootstrap_servers: str = Field(default="", description="host:port of some brokers, separated by commas.")
    security_protocol: SecurityProtocol = Field(
        default=SecurityProtocol.PLAINTEXT, description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    sasl_mechanism: SaslMechanism = Field(
        default=SaslMechanism.SCRAM_SHA_512, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."
    )
    sasl_username: str = Field(default="", description="The user of a SASL protocol.")
    sasl_password: SecretStr = Field(default=SecretStr(""), description="The password of a SASL protocol.")
    ssl_cafile: OptionalFile = Field(
        default=None, description="PEM file that the brokers' certificates are checked by."
    )
    ssl_certfile: OptionalFile = Field(default=None, description="PEM file of our certificate (mutual TLS).")
    ssl_keyfile: OptionalFile = Field(default=None, description="PEM file of our key (mutual TLS).")

    @field_validator("bootstrap_servers")
    @classmethod
    def _brokers(cls, value: str) -> str:
        brokers = [broker.strip() for broker in value.split(",")] if value else []
        for broker in brokers:
            match = _BROKER.fullmatch(broker)
            if match is None or not 0 < int(match[1]) < 65536:
                raise ValueError("must be host:port, several separated by commas")
        return ",".join(brokers)

    @model_validator(mode="after")
    def _fits_together(self) -> KafkaSettings:
        protocol = self.security_protocol
        faults: list[tuple[SettingPath, str]] = []
        has_user, has_password = bool(self.sasl_username), bool(self.sasl_password.get_secret_value())
        if protocol.uses_sasl:
            if not has_user:
                faults.append((("sasl_username",), f"is not set, and {protocol} needs it"))
            if not has_password:
                faults.append((("sasl_password",), f"is not set, and {protocol} needs it"))
        elif has_user or has_password:
            # A password without a SASL protocol is never sent: somebody takes the connection for a safer one.
            name = "sasl_password" if has_password else "sasl_username"
            faults.append(((name,), f"has no effect with the security protocol {protocol}"))
        if not protocol.uses_tls:
            faults += [
                ((name,), f"has no effect with the security protocol {protocol}")
                for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
                if getattr(self, name) is not None
            ]
        elif self.ssl_keyfile is not None and self.ssl_certfile is None:
            faults.append((("ssl_certfile",), "is not set, and the key file needs its certificate"))
        if faults:
            raise _SeveralFaults(faults)
        return self

    @cached_property
    def client(self) -> Mapping[str, object]:
        """The connection arguments of every Kafka client. Raises SettingsError when no broker is named or a
        certificate can't be read."""
        if not self.bootstrap_servers:
            raise SettingsError(
                "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS is not set.", hint="Set it to host:port of a Kafka broker."
            )
        arguments: dict[str, object] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol.value,
        }
        if self.security_protocol.uses_tls:
            arguments["ssl_context"] = self._ssl_context()
        if self.security_protocol.uses_sasl:
            arguments["sasl_mechanism"] = self.sasl_mechanism.value
            arguments["sasl_plain_username"] = self.sasl_username
            arguments["sasl_plain_password"] = self.sasl_password.get_secret_value()
        return arguments

    def _ssl_context(self) -> ssl.SSLContext:
        """Checks the broker's certificate and host name, TLS 1.2 at least."""
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
        except OSError as exc:
            raise _certificate_fault(("kafka", "ssl_cafile"), self.ssl_cafile, exc) from exc
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ssl_certfile is not None:
            try:
                # An encrypted key is refused: without this OpenSSL would ask for its password on the terminal.
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")
            except OSError as exc:
                raise _certificate_fault(("kafka", "ssl_certfile"), self.ssl_certfile, exc) from exc
        return context


def _certificate_fault(path: SettingPath, file: Path | None, exc: OSError) -> SettingsError:
    reason = "it holds no usable certificate or key" if isinstance(exc, ssl.SSLError) else (exc.strerror or "").lower()
    return SettingsError(
        f"{name_of(path)}: {file} can't be used: {reason or type(exc).__name__}.",
        hint="Name PEM files that this user may read; a key must not be encrypted.",
    )


class StoreKind(StrEnum):
    """What the URL of a store says it is."""

    POSTGRES = "postgresql"
    MONGO = "mongodb"
    TOPIC = "kafka"


_KINDS: Mapping[str, StoreKind] = {
    "postgresql": StoreKind.POSTGRES,
    "postgres": StoreKind.POSTGRES,
    "mongodb": StoreKind.MONGO,
    "mongodb+srv": StoreKind.MONGO,
    "kafka": StoreKind.TOPIC,
}


TENANT_CONNECTIONS = 16
"""Connections to the databases of all tenants, unless a pool size is set: as many tenants are worked on at once."""
TENANT_HERE = "{tenant}"
"""What the tenant's name is put in the place of, in the URL of a store."""
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,63}")
_HOST_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NAME_BYTES_MAX = 63
_SERVERS_OWN: Mapping[StoreKind, frozenset[str]] = {
    StoreKind.POSTGRES: frozenset({"postgres", "template0", "template1"}),
    StoreKind.MONGO: frozenset({"admin", "config", "local"}),
    StoreKind.TOPIC: frozenset(),
}


class StoreSettings(_Section):
    """One dependent store."""

    url: SecretStr = Field(
        description="postgresql://…/database, mongodb://…/database, or kafka: for compacted topics. {tenant} in it: "
        "every tenant has a database of its own."
    )
    batch_size: int = Field(
        default=2000,
        ge=1,
        le=50_000,
        description="Events in one transaction at the most; more are faster, and hold locks longer.",
    )
    pool_size: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Connections of one process to this store, and batches that it applies side by side. With {tenant} "
        "in the URL: to the databases of all tenants together, and 16 unless it is set.",
    )
    tenant_wait: DurationS = Field(
        default=10.0,
        description="With {tenant} in the URL: how long events wait for a database that can't be used before they are "
        "parked as dead letters.",
    )
    timeout: DurationS = Field(default=30.0, description="How long one statement may take.")
    schema_: str = Field(
        default="integrity",
        alias="schema",
        description="Where the ledger lives: a schema, or the prefix of collections and topics.",
    )

    @field_validator("url")
    @classmethod
    def _usable_url(cls, value: SecretStr) -> SecretStr:
        if fault := _url_fault(value.get_secret_value()):
            raise ValueError(fault)
        return value

    @field_validator("schema_")
    @classmethod
    def _plain_schema(cls, value: str) -> str:
        if not _SCHEMA.fullmatch(value):
            raise ValueError("must be letters, digits and _, at most 63, and not begin with a digit")
        return value

    @property
    def kind(self) -> StoreKind:
        return _KINDS[self.url.get_secret_value().partition(":")[0]]

    _tenant: str = PrivateAttr(default="")

    @property
    def connections_max(self) -> int:
        """Connections of one process to this store, the databases of all its tenants included."""
        return TENANT_CONNECTIONS if self.has_tenants and "pool_size" not in self.model_fields_set else self.pool_size

    @property
    def has_tenants(self) -> bool:
        """Whether every tenant has a database of its own: the URL holds `{tenant}`."""
        return TENANT_HERE in self.url.get_secret_value()

    @property
    def tenant(self) -> str:
        """Whose database it is, of settings that are those `of_tenant`; else empty."""
        return self._tenant

    def tenant_fault(self, tenant: str) -> str | None:
        """Why a text names no database of this store, which is one of tenants; None when it does."""
        if not _TENANT.fullmatch(tenant):
            return "is not 1 to 63 letters, digits, _ and -"
        parts = urlsplit(self.url.get_secret_value())
        credentials, _, hosts = parts.netloc.rpartition("@")
        if TENANT_HERE in hosts and not _HOST_LABEL.fullmatch(tenant):
            return "is put in a host name: it must be lower-case letters, digits and -, and not begin or end with -"
        for what, text in (("database", parts.path.removeprefix("/")), ("user", credentials.partition(":")[0])):
            name = unquote(text.replace(TENANT_HERE, tenant))
            # PostgreSQL cuts a longer one off: two tenants would be one.
            if len(name.encode()) > _NAME_BYTES_MAX:
                return f"makes the name of a {what} longer than {_NAME_BYTES_MAX} bytes"
            if what == "database" and name in _SERVERS_OWN[self.kind]:
                return "makes the name of a database that is the server's own"
        return None

    def of_tenant(self, tenant: str) -> StoreSettings:
        """These settings with the database of one tenant. Raises UsageError for a text with a `tenant_fault`."""
        assert self.has_tenants, "asked of a store of tenants"
        if fault := self.tenant_fault(tenant):
            raise UsageError(f"The tenant {bare(tenant[:80])} {fault}.", hint="Name a tenant as the events do.")
        url = self.url.get_secret_value().replace(TENANT_HERE, tenant)
        found = self.model_copy(update={"url": SecretStr(url)})
        found._tenant = tenant
        return found


def _url_fault(url: str) -> str | None:
    """What is wrong with the URL of a store, in words that hold no part of it."""
    scheme, colon, rest = url.partition(":")
    kind = _KINDS.get(scheme) if colon else None
    if kind is None:
        return "must begin with postgresql://, mongodb:// or kafka:"
    if kind is StoreKind.TOPIC:
        return "must be kafka: alone: the brokers are those of INTEGRITY_KAFKA__BOOTSTRAP_SERVERS" if rest else None
    parts = _split(url)
    if parts is None:
        return "can't be read as a URL: percent-encode / ? # and spaces in its user and password"
    database = parts.path.removeprefix("/")
    hosts = parts.netloc.rpartition("@")[2]
    if fault := _tenant_place_fault(parts):
        return fault
    if kind is StoreKind.MONGO:
        if not hosts:
            return "names no host: write mongodb://host:port/database"
        return None if database else "names no database: write mongodb://host:port/database"
    query = parse_qs(parts.query)
    if not hosts and "host" not in query:
        return "names no host and no socket: write postgresql://host:port/database"
    return None if database or "dbname" in query else "names no database: write postgresql://host:port/database"


def _tenant_place_fault(parts: SplitResult) -> str | None:
    """What is wrong with where a URL holds `{tenant}`."""
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    ports = [host.rpartition(":")[2] for host in hosts.split(",") if ":" in host]
    if any(TENANT_HERE in text for text in (password, parts.query, *ports)):
        return "has {tenant} where it can't be: it may be in the database's name, the user and a host name"
    others = "".join((user, hosts, parts.path)).replace(TENANT_HERE, "")
    if "{" in others or "}" in others:
        return "has a brace that is not of {tenant}: percent-encode it, { is %7B and } is %7D"
    return None


def _split(url: str) -> SplitResult | None:
    """The parts of scheme://…; None for what different parsers would read differently."""
    if not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    # A password with a raw / or ? or # ends the authority early: then an @ is left behind it.
    if not url.startswith(f"{parts.scheme}://") or parts.fragment or "@" in parts.path or "@" in parts.query:
        return None
    return parts


def without_password(url: str) -> str:
    """The URL as it may be shown: no password, no query; only its scheme when it can't be read."""
    parts = _split(url)
    if parts is None or parts.scheme not in _KINDS:
        scheme = url.partition(":")[0]
        return "kafka:" if url == "kafka:" else f"{scheme}://…" if scheme in _KINDS else "…"
    credentials, at, hosts = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0] if at else ""
    return f"{parts.scheme}://{user}{'@' if user else ''}{hosts}{parts.path}"


class SchemaRegistrySettings(_Section):
    """The schema registry of records in Confluent's wire format."""

    url: str = Field(default="", description="http(s)://host:port of the registry; empty: records are JSON.")
    username: str = Field(default="", description="Its user, or API key, for HTTP basic authentication.")
    password: SecretStr = Field(default=SecretStr(""), description="The password, or API secret, of that user.")
    cafile: OptionalFile = Field(
        default=None, description="PEM file that the registry's certificate is checked by; else the system's."
    )

    @field_validator("url")
    @classmethod
    def _usable_url(cls, value: str) -> str:
        if not value:
            return value
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
            parts = urlsplit("")
        if not usable or not value.isprintable() or " " in value or "\\" in value or parts.query or parts.fragment:
            raise ValueError("must be http://host:port or https://host:port, of one registry")
        if "@" in parts.netloc:
            raise ValueError("holds a user or password: set USERNAME and PASSWORD beside it")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> SchemaRegistrySettings:
        faults: list[tuple[SettingPath, str]] = []
        has_password = bool(self.password.get_secret_value())
        if not self.url:
            set_ = [("username", bool(self.username)), ("password", has_password), ("cafile", self.cafile is not None)]
            faults += [
                ((name,), "has no effect without the URL of a schema registry") for name, is_set in set_ if is_set
            ]
        elif bool(self.username) is not has_password:
            missing, other = ("password", "username") if self.username else ("username", "password")
            faults.append(((missing,), f"is not set, and the {other} needs it"))
        if self.url.startswith("http:") and self.cafile is not None:
            faults.append((("cafile",), "has no effect with an http: URL"))
        if faults:
            raise _SeveralFaults(faults)
        return self

    @property
    def auth(self) -> tuple[str, str] | None:
        """User and password, when there are any."""
        return (self.username, self.password.get_secret_value()) if self.username else None

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Checks the registry's certificate and host name, TLS 1.2 at least. Raises SettingsError when the file can't
        be used."""
        try:
            context = ssl.create_default_context(cafile=self.cafile)
        except OSError as exc:
            raise _certificate_fault(("schema_registry", "cafile"), self.cafile, exc) from exc
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class DlqSettings(_Section):
    """Where dead letters go."""

    topic: Annotated[str, AfterValidator(_topic)] = Field(default="integrity.dlq", description="Where dead letters go.")


class AuditSettings(_Section):
    """The audit topic."""

    topic: str = Field(default="integrity.audit", description="Where audit records go; empty: off.")
    hash_keys: bool = Field(default=False, description="Write an HMAC of each key in place of the key.")
    hmac_key: SecretStr = Field(default=SecretStr(""), description="The secret of that HMAC.")

    @field_validator("topic")
    @classmethod
    def _topic_or_off(cls, value: str) -> str:
        return _topic(value) if value else value

    @model_validator(mode="after")
    def _has_hmac_key(self) -> AuditSettings:
        if self.hash_keys and not self.hmac_key.get_secret_value():
            raise _SeveralFaults([(("hmac_key",), "is not set, and hashed keys need it")])
        return self


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches the address; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HttpSettings(_Section):
    """The HTTP server of `run`."""

    host: str = Field(
        default="127.0.0.1", min_length=1, description="The address of /livez, /readyz, /metrics and /v1."
    )
    port: int = Field(default=8181, ge=0, le=65535, description="Its port; 0: any free port, printed.")
    token: SecretStr = Field(
        default=SecretStr(""), description="What /v1 asks for; needed to bind anything but loopback."
    )
    read_token: SecretStr = Field(
        default=SecretStr(""), description="Another token, which reads and changes nothing; needs the token too."
    )

    @model_validator(mode="after")
    def _has_token(self) -> HttpSettings:
        if not self.token.get_secret_value() and not is_loopback(self.host):
            raise _SeveralFaults([(("token",), f"is not set, and {bare(self.host)} is not a loopback address")])
        return self

    @model_validator(mode="after")
    def _has_other_token(self) -> HttpSettings:
        token, read = self.token.get_secret_value(), self.read_token.get_secret_value()
        if read and not token:
            raise _SeveralFaults([(("token",), "is not set, and a read token is: nobody could change anything")])
        if read and read == token:
            raise _SeveralFaults([(("read_token",), "is the same as the token, which may change things")])
        return self


class LogFormat(StrEnum):
    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class LogSettings(_Section):
    """What is logged, to standard error."""

    format: Annotated[LogFormat, BeforeValidator(_lower)] = Field(
        default=LogFormat.AUTO, description="auto, console or json; auto is console on a terminal, else json."
    )
    level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(
        default=LogLevel.INFO, description="DEBUG, INFO, WARNING or ERROR."
    )


class Settings(BaseSettings):
    """Everything that can be set. Built by `load_settings`; a direct call reads no environment and no file."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    rules: Path = Field(default=Path("rules"), description="The directory (or file) of the rules.")
    group: str = Field(default="integrity", description="The consumer group of store S is this, a dot, and S.")
    kafka: KafkaSettings = KafkaSettings()
    stores: dict[str, StoreSettings] = Field(default_factory=dict)
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()
    dlq: DlqSettings = DlqSettings()
    audit: AuditSettings = AuditSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is passed, then the sources that `read_settings` passes beside it: the earlier wins."""
        passed = dict(init_settings())
        sources: Sequence[NamedSource] = passed.pop(_SOURCES, ())
        return (InitSettingsSource(settings_cls, passed), *sources)

    @field_validator("group")
    @classmethod
    def _group_name(cls, value: str) -> str:
        if not _GROUP.fullmatch(value):
            raise ValueError("must be 1 to 100 letters, digits, '.', '_' and '-'")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        faults: list[tuple[SettingPath, str]] = []
        for name in self.stores:
            if fault := store_fault(name):
                faults.append((("stores", name), f"is no name of a store: it {fault}"))
        if self.audit.topic in (self.dlq.topic, f"{self.dlq.topic}.status"):
            faults.append((("audit", "topic"), "is the topic of the dead letters or of their status"))
        if faults:
            raise _SeveralFaults(faults)
        return self

    def lane(self, store: str) -> str:
        """The consumer group of a store."""
        return f"{self.group}.{store}"

    @property
    def tenant(self) -> str:
        """Whose these settings are, if they are those `of_tenant`; else empty."""
        return next((store.tenant for store in self.stores.values() if store.tenant), "")

    def of_tenant(self, tenant: str) -> Settings:
        """These settings where every store of tenants is the database of this one. Raises UsageError where there is
        none, and for a text that names no tenant."""
        if not any(store.has_tenants for store in self.stores.values()):
            message = "A tenant is named, and no store has a database for each: no URL holds {tenant}."
            raise UsageError(message, hint="Leave --tenant out.")
        stores = {n: store.of_tenant(tenant) if store.has_tenants else store for n, store in self.stores.items()}
        return self.model_copy(update={"stores": stores})


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, and warnings about where they come from."""

    settings: Settings
    warnings: tuple[Finding, ...]


def load_settings(config: Path | None = None, secrets_dir: Path | None = None) -> Settings:
    """Read the settings. Raises SettingsError with every fault, named as a user sets it."""
    return read_settings(config, secrets_dir).settings


def read_settings(
    config: Path | None = None, secrets_dir: Path | None = None, *, rules: Path | None = None
) -> LoadedSettings:
    """The same with the warnings. `rules` wins over every source: it is what the command line says."""
    sources: list[NamedSource] = [Environment(Settings, os.environ), EnvFile(Settings, ENV_FILE)]
    if config is not None:
        sources.append(YamlFile(Settings, config))
    if secrets_dir is not None:
        sources.append(SecretsDirectory(Settings, secrets_dir))
    passed: dict[str, Any] = {_SOURCES: sources}
    if rules is not None:
        passed["rules"] = rules
    findings = [finding for source in sources for finding in source.findings]
    settings: Settings | None = None
    try:
        settings = Settings(**passed)
    except ValidationError as exc:
        chosen = {path: entry for source in reversed(sources) for path, entry in source.entries.items()}
        findings += [finding for error in exc.errors() for finding in _findings_of(error, chosen)]
    faults = [finding for finding in findings if finding.severity == "error"]
    if settings is None or faults:
        raise SettingsError("\n".join(str(finding) for finding in faults), findings=faults)
    return LoadedSettings(settings, tuple(findings))


def setting_names() -> Iterator[str]:
    """The environment variable of every setting, with <NAME> for the name of a store."""
    for path in leaves(Settings):
        yield name_of(path)


_MESSAGES: Mapping[str, str] = {
    "missing": "is not set",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be true or false",
    "string_too_short": "is empty",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le:g}",
    "enum": "must be {expected}",
}


def _findings_of(error: Mapping[str, Any], chosen: Mapping[SettingPath, Entry]) -> Iterator[Finding]:
    path = tuple(str(part) for part in error["loc"])
    context = error.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, _SeveralFaults):
        for below, message in cause.faults:
            yield _finding(SettingsCode.CONFLICTING_SETTINGS, (*path, *below), message, chosen)
        return
    kind = error["type"]
    code = SettingsCode.MISSING_SETTING if kind == "missing" else SettingsCode.BAD_SETTING
    message = (
        _MESSAGES[kind].format(**context) if kind in _MESSAGES else str(error["msg"]).removeprefix("Value error, ")
    )
    yield _finding(code, path, message, chosen)


def _finding(code: SettingsCode, path: SettingPath, message: str, chosen: Mapping[SettingPath, Entry]) -> Finding:
    entry = chosen.get(path)
    if entry is None:
        # Not set itself: said of the first setting beside it that was, so that a file and line are named.
        beside = next((e for p, e in chosen.items() if p[: len(path)] == path), None)
        if beside is not None:
            entry = beside._replace(shown=f"{beside.shown}: {path[-1]}")
        else:
            entry = Entry(path, "", name_of(path))
    return entry.finding(code, message)
