"""Runs every test that takes `harness` once a store; finds the stores by their harness modules."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.harness import Feature, Harness

NAMES = sorted(path.stem.removeprefix("harness_") for path in Path(__file__).parent.glob("harness_*.py"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*features): runs only over stores that have these features.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "harness" not in metafunc.fixturenames:
        return
    needed: set[Feature] = {feature for mark in metafunc.definition.iter_markers("needs") for feature in mark.args}
    fit = [name for name in NAMES if needed <= _module(name).FEATURES]
    marks = {name: [] if name == "memory" else [pytest.mark.servers] for name in fit}
    metafunc.parametrize("harness", [pytest.param(name, marks=marks[name]) for name in fit], indirect=True)


@pytest_asyncio.fixture
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    made: Harness = _module(request.param).HARNESS(request)
    yield made
    await made.close()


def _module(name: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"tests.contract.harness_{name}")
