"""What several modules here share; a module that means something else by `bench` or `toy` has its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kohya_bases
import pytest
from fake_engine import install
from fake_runs import Runs
from kohya_bench import open_bench

from pixelkit import training

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kohya_bench import Bench


@pytest.fixture
def bench(sd_scripts: Path, tmp_path: Path) -> Iterator[Bench]:
    yield from open_bench(sd_scripts, tmp_path)


@pytest.fixture(scope="session")
def toy(sd_scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kohya_bases.make_toy(tmp_path_factory.mktemp("bases") / "toy")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    here = Runs(tmp_path, install(tmp_path, monkeypatch))
    yield here
    assert not training.find_started(str(here.root)), "no trainer is left"
