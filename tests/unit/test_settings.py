"""Settings: where they come from, which source wins, and every fault at once under the name a user sets."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from integrity.errors import Finding, SettingsError, UsageError
from integrity.settings import (
    KafkaSettings,
    LogLevel,
    SchemaRegistrySettings,
    Settings,
    StoreKind,
    StoreSettings,
    load_settings,
    read_settings,
    setting_names,
    without_password,
)
from integrity.settings_sources import SECRET_BYTES_MAX

SECRET = "hunter2-3c9f"
PG = "postgresql://shop@db.example/shop"

Faults = Callable[..., dict[str, Finding]]


@pytest.fixture(autouse=True)
def empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No .env of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def faults() -> Faults:
    """Load settings that are wrong; give the findings by the words before the first space of their message."""

    def load(config: Path | None = None, secrets_dir: Path | None = None) -> dict[str, Finding]:
        with pytest.raises(SettingsError) as caught:
            load_settings(config, secrets_dir)
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value.findings)
        found = {finding.message.split()[0]: finding for finding in caught.value.findings}
        assert len(found) == len(caught.value.findings)
        return found

    return load


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


# --- sources ---------------------------------------------------------------------------------------------------


def test_nothing_set_gives_the_defaults() -> None:
    settings = load_settings()
    assert (settings.rules, settings.group, settings.stores) == (Path("rules"), "integrity", {})
    assert (settings.dlq.topic, settings.audit.topic) == ("integrity.dlq", "integrity.audit")
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8181)
    assert settings == Settings()


def test_settings_that_are_made_directly_read_no_environment_and_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTEGRITY_GROUP", "environment")
    monkeypatch.setenv("INTEGRITY_NOTHING", "x")
    written(tmp_path / ".env", "INTEGRITY_DLQ__TOPIC=dotenv\n")
    settings = Settings(rules=Path("here"))
    assert (settings.rules, settings.group, settings.dlq.topic) == (Path("here"), "integrity", "integrity.dlq")


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().group = "other"  # type: ignore[misc]


def test_earlier_named_source_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    config = written(tmp_path / "c.yaml", "group: file\ndlq: {topic: file}\nlog: {level: error}\n")
    written(secrets / "INTEGRITY_GROUP", "secrets")
    written(secrets / "INTEGRITY_DLQ__TOPIC", "secrets")
    written(secrets / "INTEGRITY_LOG__LEVEL", "debug")
    written(secrets / "INTEGRITY_HTTP__PORT", "1234\n")
    written(tmp_path / ".env", "INTEGRITY_GROUP=dotenv\nINTEGRITY_DLQ__TOPIC=dotenv\nOTHER=1\n")
    monkeypatch.setenv("INTEGRITY_GROUP", "environment")
    settings = load_settings(config, secrets)
    assert (settings.group, settings.dlq.topic, settings.log.level, settings.http.port) == (
        "environment",
        "dotenv",
        LogLevel.ERROR,
        1234,
    )


def test_sources_are_merged_within_a_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = written(tmp_path / "c.yaml", "stores:\n  orders_db:\n    batch_size: 10\n    timeout: 500ms\n")
    monkeypatch.setenv("INTEGRITY_STORES__ORDERS_DB__URL", PG)
    store = load_settings(config).stores["orders_db"]
    assert (store.batch_size, store.timeout, store.schema_) == (10, 0.5, "integrity")


def test_rules_of_the_command_line_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTEGRITY_RULES", "a")
    assert read_settings(rules=Path("b")).settings.rules == Path("b")


def test_empty_audit_topic_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTEGRITY_AUDIT__TOPIC", "")
    assert load_settings().audit.topic == ""


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("1h", 3600), ("1d", 86400)])
def test_durations(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("INTEGRITY_STORES__A__URL", PG)
    monkeypatch.setenv("INTEGRITY_STORES__A__TIMEOUT", text)
    assert load_settings().stores["a"].timeout == seconds


@pytest.mark.parametrize("text", ["30", "s", "-1s", "0s", "2d", "1 s", "1e3s", "inf", "nans", ""])
def test_what_is_no_duration_is_a_fault(monkeypatch: pytest.MonkeyPatch, text: str, faults: Faults) -> None:
    monkeypatch.setenv("INTEGRITY_STORES__A__URL", PG)
    monkeypatch.setenv("INTEGRITY_STORES__A__TIMEOUT", text)
    assert list(faults()) == ["INTEGRITY_STORES__A__TIMEOUT"]


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("INTEGRITY_GRUOP", "Did you mean INTEGRITY_GROUP?"),
        ("INTEGRITY_KAFKA__BOOTSTRAP_SERVER", "Did you mean INTEGRITY_KAFKA__BOOTSTRAP_SERVERS?"),
        ("INTEGRITY_KAFKA_BOOTSTRAP_SERVERS", "Did you mean INTEGRITY_KAFKA__BOOTSTRAP_SERVERS?"),
        ("INTEGRITY_STORES__ORDERS_DB__BATCHSIZE", "Did you mean INTEGRITY_STORES__ORDERS_DB__BATCH_SIZE?"),
        ("INTEGRITY_STORES__ORDERS_DB", "INTEGRITY_STORES__ORDERS_DB__URL"),
        ("INTEGRITY_DLQ", "Set one of INTEGRITY_DLQ__TOPIC."),
        ("INTEGRITY_GROUP__NAME", "Set INTEGRITY_GROUP."),
        ("INTEGRITY_COMPLETELY_DIFFERENT", "docs/settings.md lists all settings."),
    ],
)
def test_unknown_variable_is_a_fault_that_names_the_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, hint: str, faults: Faults
) -> None:
    monkeypatch.setenv(name, SECRET)
    finding = faults()[name]
    assert finding.code == "unknown_setting"
    assert hint in finding.hint


@pytest.mark.parametrize("name", ["INTEGRITY_HTTP__PREFIX", "INTEGRITY_HTTP__TRACE_URL"])
def test_setting_of_a_later_version_is_refused_as_such(
    monkeypatch: pytest.MonkeyPatch, name: str, faults: Faults
) -> None:
    monkeypatch.setenv(name, "x")
    assert faults()[name].code == "not_supported_yet"


def test_one_setting_in_two_spellings_is_a_fault(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    monkeypatch.setenv("INTEGRITY_GROUP", "a")
    monkeypatch.setenv("integrity_group", "b")
    assert faults()["integrity_group"].message == "integrity_group and INTEGRITY_GROUP are the same setting"


@pytest.mark.parametrize("name", ["Orders", "1st", "a__b", "a-b", "a_", "_a"])
def test_name_of_a_store_is_checked(name: str, tmp_path: Path, faults: Faults) -> None:
    config = written(tmp_path / "c.yaml", f'stores: {{"{name}": {{url: "kafka:"}}}}\n')
    (finding,) = faults(config).values()
    assert (finding.code, finding.line) == ("conflicting_settings", 1)
    assert "is no name of a store" in finding.message


def test_all_faults_of_all_sources_come_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faults: Faults
) -> None:
    monkeypatch.setenv("INTEGRITY_HTTP__PORT", "70000")
    monkeypatch.setenv("INTEGRITY_STORES__A__BATCH_SIZE", "many")
    monkeypatch.setenv("INTEGRITY_AUDIT__HASH_KEYS", "perhaps")
    monkeypatch.setenv("INTEGRITY_KAFKA__SECURITY_PROTOCOL", "TLS")
    written(tmp_path / ".env", "\nINTEGRITY_LOG__LEVEL=LOUD\n")
    config = written(tmp_path / "c.yaml", "dlq:\n  topic: a b\ngruop: x\n")
    found = {name: (finding.message, finding.file, finding.line) for name, finding in faults(config).items()}
    assert found == {
        "INTEGRITY_HTTP__PORT": ("INTEGRITY_HTTP__PORT must be at most 65535", "", 0),
        "INTEGRITY_STORES__A__BATCH_SIZE": ("INTEGRITY_STORES__A__BATCH_SIZE must be a whole number", "", 0),
        "INTEGRITY_STORES__A__URL": ("INTEGRITY_STORES__A__URL is not set", "", 0),
        "INTEGRITY_AUDIT__HASH_KEYS": ("INTEGRITY_AUDIT__HASH_KEYS must be true or false", "", 0),
        "INTEGRITY_KAFKA__SECURITY_PROTOCOL": (
            "INTEGRITY_KAFKA__SECURITY_PROTOCOL must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'",
            "",
            0,
        ),
        "INTEGRITY_LOG__LEVEL": (
            "INTEGRITY_LOG__LEVEL must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
            ".env",
            2,
        ),
        "dlq.topic": ("dlq.topic must be letters, digits, '.', '_' and '-'", str(config), 2),
        "gruop": ("gruop is not a setting", str(config), 3),
    }


# --- the .env file ---------------------------------------------------------------------------------------------


def test_env_file_keeps_quoted_and_dollar_signs_as_they_are(tmp_path: Path) -> None:
    text = "# a comment\nexport INTEGRITY_GROUP='g.1'\nINTEGRITY_AUDIT__HMAC_KEY=\"a${HOME} #b\"\n"
    written(tmp_path / ".env", text)
    settings = load_settings()
    assert settings.group == "g.1"
    assert settings.audit.hmac_key.get_secret_value() == "a${HOME} #b"


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("OTHER=1\n\nINTEGRITY_GROUP='open\n", "bad_env_line", 3),
        ("INTEGRITY_GROUP\n", "bad_setting", 1),
        ("INTEGRITY_GROUP=a\nINTEGRITY_GROUP=b\n", "repeated_setting", 2),
    ],
)
def test_fault_of_the_env_file_names_its_line(tmp_path: Path, text: str, code: str, line: int, faults: Faults) -> None:
    written(tmp_path / ".env", text)
    (finding,) = faults().values()
    assert (finding.code, finding.file, finding.line) == (code, ".env", line)


# --- the YAML file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("group: a\ngroup: b\n", "yaml_duplicate_key", 2),
        ("group: a\n---\ngroup: b\n", "yaml_documents", 2),
        (f"audit:\n  hmac_key: !x {SECRET}\n", "yaml_tag", 2),
        (f"audit:\n  hmac_key: *{SECRET}\n", "yaml_alias", 2),
        (f"audit:\n  hmac_key: &{SECRET} x\n", "yaml_alias", 2),
        ("audit:\n  hmac_key: 0123\n", "ambiguous_scalar", 2),
        ("audit:\n  hmac_key: 12:30:45\n", "ambiguous_scalar", 2),
        ("http:\n  port: 99999999999999999999999\n", "number_range", 2),
        (f"audit:\n  hmac_key: @{SECRET}\n", "yaml_syntax", 2),
        (f"audit:\n  hmac_key: '{SECRET}\n", "yaml_syntax", 3),
        ("group: [a, b]\n", "bad_setting", 1),
        ("group:\n", "bad_setting", 1),
        ("group: null\n", "bad_setting", 1),
        ("- group\n", "bad_setting", 1),
        ("", "empty", 1),
        ("group: {a: b}\n", "unknown_setting", 1),
        ("kafka: here\n", "unknown_setting", 1),
    ],
)
def test_fault_of_the_file_names_its_line_and_no_value(tmp_path: Path, text: str, code: str, line: int) -> None:
    config = written(tmp_path / "c.yaml", text)
    with pytest.raises(SettingsError) as caught:
        load_settings(config)
    (finding,) = caught.value.findings
    assert (finding.code, finding.file, finding.line) == (code, str(config), line)
    for value in (SECRET, "0123", "12:30", "9999"):
        assert value not in repr(finding)


def test_numbers_and_booleans_of_the_file_are_read_as_in_the_environment(tmp_path: Path) -> None:
    text = "http: {port: 9000}\naudit: {hash_keys: true, hmac_key: 1234567890123456}\n"
    settings = load_settings(written(tmp_path / "c.yaml", text))
    assert (settings.http.port, settings.audit.hash_keys) == (9000, True)
    assert settings.audit.hmac_key.get_secret_value() == "1234567890123456"


def test_missing_file_and_directory_are_faults(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(tmp_path / "no.yaml", tmp_path / "none")
    assert {(finding.code, Path(finding.file).name) for finding in caught.value.findings} == {
        ("unreadable_file", "no.yaml"),
        ("unreadable_file", "none"),
    }


# --- the secrets directory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["INTEGRITY_AUDIT__HMAC_KEY", "integrity_audit__hmac_key"])
def test_secret_file_is_named_in_either_case_and_loses_one_newline(tmp_path: Path, name: str) -> None:
    written(tmp_path / name, " key \n\r\n")
    assert load_settings(secrets_dir=tmp_path).audit.hmac_key.get_secret_value() == " key \n"


def test_hidden_and_foreign_files_of_the_secrets_are_passed_over(tmp_path: Path) -> None:
    written(tmp_path / "..data", "x")
    written(tmp_path / "tls.crt", "x")
    (tmp_path / "..2026").mkdir()
    assert load_settings(secrets_dir=tmp_path) == Settings()


def test_linked_secret_is_read(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    written(tmp_path / "..data" / "INTEGRITY_GROUP", "linked")
    (tmp_path / "INTEGRITY_GROUP").symlink_to("..data/INTEGRITY_GROUP")
    assert load_settings(secrets_dir=tmp_path).group == "linked"


def test_faults_of_secret_files(tmp_path: Path) -> None:
    (tmp_path / "INTEGRITY_GROUP").mkdir()
    written(tmp_path / "INTEGRITY_AUDIT__HMAC_KEY", "x" * (SECRET_BYTES_MAX + 1))
    (tmp_path / "INTEGRITY_HTTP__TOKEN").write_bytes(b"\xff")
    os.mkfifo(tmp_path / "INTEGRITY_DLQ__TOPIC")
    written(tmp_path / "INTEGRITY_NOTHING", SECRET)
    written(tmp_path / "kafka__sasl_password", SECRET)
    (tmp_path / "INTEGRITY_RULES").symlink_to("nowhere")
    with pytest.raises(SettingsError) as caught:
        load_settings(secrets_dir=tmp_path)
    assert SECRET not in str(caught.value)
    assert {(Path(finding.file).name, finding.code) for finding in caught.value.findings} == {
        ("INTEGRITY_GROUP", "unreadable_file"),
        ("INTEGRITY_AUDIT__HMAC_KEY", "secret_too_large"),
        ("INTEGRITY_HTTP__TOKEN", "unreadable_file"),
        ("INTEGRITY_DLQ__TOPIC", "unreadable_file"),
        ("INTEGRITY_NOTHING", "unknown_setting"),
        ("kafka__sasl_password", "unknown_setting"),
        ("INTEGRITY_RULES", "unreadable_file"),
    }


def test_world_readable_secret_is_a_warning(tmp_path: Path) -> None:
    written(tmp_path / "INTEGRITY_GROUP", "a", 0o644)
    loaded = read_settings(secrets_dir=tmp_path)
    assert loaded.settings.group == "a"
    assert [(finding.code, finding.severity) for finding in loaded.warnings] == [("secret_exposed", "warning")]


# --- what does not fit together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"AUDIT__HASH_KEYS": "true"}, ["AUDIT__HMAC_KEY"]),
        ({"HTTP__HOST": "0.0.0.0"}, ["HTTP__TOKEN"]),
        ({"HTTP__HOST": "::"}, ["HTTP__TOKEN"]),
        ({"HTTP__HOST": "integrity.example"}, ["HTTP__TOKEN"]),
        ({"HTTP__READ_TOKEN": SECRET}, ["HTTP__TOKEN"]),
        ({"HTTP__READ_TOKEN": SECRET, "HTTP__TOKEN": SECRET}, ["HTTP__READ_TOKEN"]),
        ({"HTTP__HOST": ""}, ["HTTP__HOST"]),
        ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, ["KAFKA__SASL_USERNAME", "KAFKA__SASL_PASSWORD"]),
        ({"KAFKA__SASL_USERNAME": "u", "KAFKA__SASL_PASSWORD": SECRET}, ["KAFKA__SASL_PASSWORD"]),
        ({"KAFKA__SSL_CAFILE": "ca.pem"}, ["KAFKA__SSL_CAFILE"]),
        ({"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_KEYFILE": "k.pem"}, ["KAFKA__SSL_CERTFILE"]),
        ({"KAFKA__SASL_MECHANISM": "GSSAPI"}, ["KAFKA__SASL_MECHANISM"]),
        ({"KAFKA__BOOTSTRAP_SERVERS": "kafka"}, ["KAFKA__BOOTSTRAP_SERVERS"]),
        ({"KAFKA__BOOTSTRAP_SERVERS": "a:1,"}, ["KAFKA__BOOTSTRAP_SERVERS"]),
        ({"KAFKA__BOOTSTRAP_SERVERS": "a:70000"}, ["KAFKA__BOOTSTRAP_SERVERS"]),
        ({"AUDIT__TOPIC": "integrity.dlq"}, ["AUDIT__TOPIC"]),
        ({"DLQ__TOPIC": ""}, ["DLQ__TOPIC"]),
        ({"GROUP": "a b"}, ["GROUP"]),
        ({"GROUP": ""}, ["GROUP"]),
        ({"STORES__A__URL": PG, "STORES__A__SCHEMA": 'x"; drop'}, ["STORES__A__SCHEMA"]),
        ({"STORES__A__URL": PG, "STORES__A__POOL_SIZE": "0"}, ["STORES__A__POOL_SIZE"]),
        ({"SCHEMA_REGISTRY__URL": "registry:8081"}, ["SCHEMA_REGISTRY__URL"]),
        ({"SCHEMA_REGISTRY__URL": "http://a:1,http://b:1"}, ["SCHEMA_REGISTRY__URL"]),
        ({"SCHEMA_REGISTRY__URL": f"https://u:{SECRET}@registry"}, ["SCHEMA_REGISTRY__URL"]),
        ({"SCHEMA_REGISTRY__USERNAME": "u"}, ["SCHEMA_REGISTRY__USERNAME"]),
        ({"SCHEMA_REGISTRY__PASSWORD": SECRET}, ["SCHEMA_REGISTRY__PASSWORD"]),
        (
            {"SCHEMA_REGISTRY__URL": "https://r", "SCHEMA_REGISTRY__USERNAME": "u"},
            ["SCHEMA_REGISTRY__PASSWORD"],
        ),
        ({"SCHEMA_REGISTRY__URL": "http://r", "SCHEMA_REGISTRY__CAFILE": "ca.pem"}, ["SCHEMA_REGISTRY__CAFILE"]),
    ],
)
def test_settings_that_do_not_fit_are_faults(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: list[str], faults: Faults
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"INTEGRITY_{name}", value)
    assert list(faults()) == [f"INTEGRITY_{name}" for name in names]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("INTEGRITY_HTTP__HOST", host)
    assert load_settings().http.host == host


def test_any_address_is_bound_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTEGRITY_HTTP__HOST", "0.0.0.0")
    monkeypatch.setenv("INTEGRITY_HTTP__TOKEN", SECRET)
    assert load_settings().http.token.get_secret_value() == SECRET


# --- the URL of a store ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://h/db", StoreKind.POSTGRES),
        ("postgres://u:p@h:5432/db?sslmode=verify-full", StoreKind.POSTGRES),
        ("postgresql://u:p@h1:1,h2:2/db?target_session_attrs=read-write", StoreKind.POSTGRES),
        ("postgresql:///db?host=/run/postgresql", StoreKind.POSTGRES),
        ("postgresql://u@[::1]:5432/db", StoreKind.POSTGRES),
        ("postgresql://h/?dbname=db", StoreKind.POSTGRES),
        ("mongodb://h:27017/db?replicaSet=rs0", StoreKind.MONGO),
        ("mongodb://u:p@h1:1,h2:2/db", StoreKind.MONGO),
        ("mongodb+srv://h.example/db", StoreKind.MONGO),
        ("kafka:", StoreKind.TOPIC),
    ],
)
def test_url_says_what_a_store_is(url: str, kind: StoreKind) -> None:
    assert StoreSettings.model_validate({"url": url}).kind is kind


@pytest.mark.parametrize(
    "url",
    [
        *("", "mysql://h/db", "h/db", "postgresql", "postgresql:h/db", "POSTGRESQL://h/db", " postgresql://h/db"),
        *("postgresql:///db", "postgresql://h", "postgresql://h/", "postgresql://[::1/db", "postgresql://h/db\n"),
        *("mongodb://h:27017", "mongodb://h/", "mongodb:///db", "kafka://h:9092", "kafka:x"),
        f"postgresql://u:a/{SECRET}@h/db",
        f"postgresql://u:a#{SECRET}@h/db",
        f"postgresql://u:a?{SECRET}@h/db",
        f"mongodb://u:{SECRET}@h",
        f"postgresql://u:{SECRET} x@h/db",
    ],
)
def test_unusable_url_is_a_fault_without_the_url(monkeypatch: pytest.MonkeyPatch, url: str, faults: Faults) -> None:
    monkeypatch.setenv("INTEGRITY_STORES__A__URL", url)
    assert list(faults()) == ["INTEGRITY_STORES__A__URL"]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{{tenant}}{SECRET}@h/d",
        f"postgresql://u:{SECRET}@h:{{tenant}}/d",
        f"postgresql://u:{SECRET}@h:1,g:{{tenant}}/d",
        f"postgresql://u:{SECRET}@h/d?options={{tenant}}",
        f"postgresql://u:{SECRET}@h/?dbname={{tenant}}",
        f"postgresql://u:{SECRET}@h/shop_{{Tenant}}",
        f"mongodb://u:{SECRET}@h/shop_{{{{tenant}}}}",
        f"mongodb://{{user}}:{SECRET}@h/{{tenant}}",
        "kafka:{tenant}",
    ],
)
def test_tenant_in_another_place_of_a_url_is_a_fault(monkeypatch: pytest.MonkeyPatch, url: str, faults: Faults) -> None:
    monkeypatch.setenv("INTEGRITY_STORES__A__URL", url)
    (finding,) = faults().values()
    assert SECRET not in str(finding)


@pytest.mark.parametrize(
    ("url", "tenant", "of_tenant"),
    [
        ("postgresql://u:{x}@h/shop_{tenant}", "Acme-1", "postgresql://u:{x}@h/shop_Acme-1"),
        ("postgresql://{tenant}:p@h:1,g:2/{tenant}?sslmode=require", "a", "postgresql://a:p@h:1,g:2/a?sslmode=require"),
        ("postgresql://u@{tenant}.db,[::1]/d%7Btenant%7D", "a-b", "postgresql://u@a-b.db,[::1]/d%7Btenant%7D"),
        ("mongodb+srv://u@h/{tenant}?authSource=admin", "7_", "mongodb+srv://u@h/7_?authSource=admin"),
        ("postgresql://h/{tenant}", "x" * 63, f"postgresql://h/{'x' * 63}"),
    ],
)
def test_tenant_is_put_in_the_url_and_nothing_else_changes(url: str, tenant: str, of_tenant: str) -> None:
    settings = StoreSettings.model_validate({"url": url, "pool_size": 7})
    assert settings.has_tenants
    found = settings.of_tenant(tenant)
    assert (found.url.get_secret_value(), found.pool_size) == (of_tenant, 7)
    assert not found.has_tenants


@pytest.mark.parametrize(
    ("url", "tenants"),
    [
        (
            "postgresql://u:p@h/shop_{tenant}",
            ["", "a/b", "a?b", "a#b", "a@b", "a:b", "a.b", "a%2Fb", "a b", "a\n", "é", "{tenant}", "$a", "x" * 59],
        ),
        ("postgresql://{tenant}_of_shop:p@h/d", ["x" * 56]),
        ("postgresql://{tenant}.db/d", ["Acme", "a_b", "-a", "a-"]),
        ("postgresql://h/{tenant}", ["postgres", "template1", "x" * 64]),
        ("mongodb://h/{tenant}", ["admin", "local", "config"]),
    ],
)
def test_text_that_would_be_more_than_a_tenants_name_is_refused(url: str, tenants: list[str]) -> None:
    """PostgreSQL cuts off a long name, a host name has no case: two tenants would have one database."""
    settings = StoreSettings.model_validate({"url": url})
    for tenant in tenants:
        with pytest.raises(UsageError, match="tenant"):
            settings.of_tenant(tenant)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://u:{SECRET}@h:1/db?password={SECRET}", "postgresql://u@h:1/db"),
        (f"postgresql://u:x@{SECRET}@h/db", "postgresql://u@h/db"),
        (f"postgresql://u:a/{SECRET}@h/db", "postgresql://…"),
        (f"postgresql://u:a#{SECRET}@h/db", "postgresql://…"),
        (f"postgresql://u:a?{SECRET}@h/db", "postgresql://…"),
        (f"{SECRET}", "…"),
        ("mongodb://h1:1,h2:2/db?replicaSet=rs0", "mongodb://h1:1,h2:2/db"),
        ("kafka:", "kafka:"),
        (f"postgresql://u:{SECRET}@{{tenant}}.h/d_{{tenant}}", "postgresql://u@{tenant}.h/d_{tenant}"),
    ],
)
def test_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_no_secret_is_in_the_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTEGRITY_STORES__A__URL", f"postgresql://u:{SECRET}@h/db")
    monkeypatch.setenv("INTEGRITY_KAFKA__SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("INTEGRITY_KAFKA__SASL_USERNAME", "u")
    monkeypatch.setenv("INTEGRITY_SCHEMA_REGISTRY__URL", "https://registry:8081")
    monkeypatch.setenv("INTEGRITY_SCHEMA_REGISTRY__USERNAME", "u")
    for name in (
        "KAFKA__SASL_PASSWORD",
        "SCHEMA_REGISTRY__PASSWORD",
        "HTTP__TOKEN",
        "HTTP__READ_TOKEN",
        "AUDIT__HMAC_KEY",
    ):
        monkeypatch.setenv(f"INTEGRITY_{name}", f"{SECRET}{name}")
    settings = load_settings()
    assert SECRET not in f"{settings!r}{settings}{settings.model_dump_json()}"


# --- Kafka -----------------------------------------------------------------------------------------------------


def test_client_arguments_of_a_plain_connection() -> None:
    assert KafkaSettings(bootstrap_servers="a:1, b:2").client == {
        "bootstrap_servers": "a:1,b:2",
        "security_protocol": "PLAINTEXT",
    }


def test_client_arguments_of_a_safe_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BOOTSTRAP_SERVERS": "a:1",
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_USERNAME": "u",
        "SASL_PASSWORD": "p",
    }.items():
        monkeypatch.setenv(f"INTEGRITY_KAFKA__{name}", value)
    client = dict(load_settings().kafka.client)
    context = client.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert client == {
        "bootstrap_servers": "a:1",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }


def test_the_registry_s_certificate_is_checked_by_the_file_that_is_named(tmp_path: Path) -> None:
    context = SchemaRegistrySettings(url="https://registry").tls
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    with pytest.raises(SettingsError, match="INTEGRITY_SCHEMA_REGISTRY__CAFILE"):
        _ = SchemaRegistrySettings(url="https://registry", cafile=broken).tls


def test_no_broker_is_a_fault_where_one_is_needed() -> None:
    with pytest.raises(SettingsError, match="INTEGRITY_KAFKA__BOOTSTRAP_SERVERS is not set"):
        _ = load_settings().kafka.client


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unusable_certificate_file_is_a_fault(monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    if content is not None:
        Path("ca.pem").write_text(content)
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", "a:1")
    monkeypatch.setenv("INTEGRITY_KAFKA__SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("INTEGRITY_KAFKA__SSL_CAFILE", "ca.pem")
    with pytest.raises(SettingsError, match=r"INTEGRITY_KAFKA__SSL_CAFILE: ca\.pem can't be used"):
        _ = load_settings().kafka.client


def test_setting_names_are_those_of_the_model() -> None:
    names = list(setting_names())
    assert len(names) == len(set(names))
    assert {"INTEGRITY_RULES", "INTEGRITY_STORES__<NAME>__SCHEMA", "INTEGRITY_KAFKA__SSL_KEYFILE"} <= set(names)
