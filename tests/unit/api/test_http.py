"""The routes, asked without a socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from integrity.api.http import HttpAddress, HttpServer, application
from integrity.errors import SettingsError
from integrity.settings import is_loopback
from integrity.telemetry import Metrics


class Lanes:
    def __init__(self, problems: Mapping[str, str]) -> None:
        self._problems = problems

    def ready(self) -> Mapping[str, str]:
        return self._problems


async def ask(path: str, problems: Mapping[str, str] | None = None, method: str = "GET", **headers: str) -> Any:
    app = application(Lanes(problems or {}), Metrics(version="1.2.3", rules="abc"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.request(method, path, headers=headers)


async def test_a_running_loop_is_alive_even_when_no_lane_is_ready() -> None:
    answer = await ask("/livez", {"orders_db": "its store does not answer"})
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


async def test_ready_when_no_lane_has_a_problem() -> None:
    answer = await ask("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_not_ready_names_the_lanes_and_what_is_not() -> None:
    answer = await ask("/readyz", {"orders_db": "its store does not answer"})
    assert answer.status_code == 503
    assert answer.json() == {"status": "not_ready", "lanes": {"orders_db": "its store does not answer"}}


async def test_metrics_are_prometheus_text_and_openmetrics_when_asked() -> None:
    plain = await ask("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert 'integrity_build_info{rules="abc",version="1.2.3"} 1.0' in plain.text
    openmetrics = await ask("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/", 404, "Not Found"),
        ("GET", "/v1/status", 404, "Not Found"),
        ("POST", "/livez", 405, "Method Not Allowed"),
    ],
)
async def test_anything_else_is_a_problem_document(method: str, path: str, status: int, title: str) -> None:
    answer = await ask(path, method=method)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {"type": "about:blank", "title": title, "status": status}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    HttpServer(application(Lanes({}), Metrics(version="1", rules="r")), HttpAddress(host, 0, has_token=False))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "service.example", "127.0.0.1.example"])
def test_any_other_address_without_a_token_is_refused(host: str) -> None:
    app = application(Lanes({}), Metrics(version="1", rules="r"))
    with pytest.raises(SettingsError, match="reachable from elsewhere"):
        HttpServer(app, HttpAddress(host, 0, has_token=False))
    HttpServer(app, HttpAddress(host, 0, has_token=True))
