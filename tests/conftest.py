"""What every test shares: where the engine is, and that unit tests start no process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from pixelkit import paths

TESTS = Path(__file__).parent
BYTECODE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Where Python may write no bytecode, every trainer that a test starts would compile torch anew, for half a minute."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        config.stash[BYTECODE] = os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="bytecode-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if folder := config.stash.get(BYTECODE, ""):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the settings of the person who runs it."""
    folder = tmp_path_factory.mktemp("settings")
    monkeypatch.setattr(paths, "settings_file", lambda: folder / "config.toml")


@pytest.fixture(autouse=True)
def _no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside tests/slow nothing may start a process."""
    if "slow" in request.path.relative_to(TESTS).parts:
        return

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"a unit test started a process: {args} {kwargs}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(scope="session")
def sd_scripts() -> Path:
    """The engine's checkout; tests that need it are skipped where there is none."""
    found = paths.locate_sd_scripts()
    if found is None or not (found.path / "train_network.py").is_file():
        pytest.skip("sd-scripts not found (PIXELKIT_SD_SCRIPTS or third_party/sd-scripts)")
    return found.path


@pytest.fixture(scope="session")
def crawl_tiles() -> Path:
    """Thousands of real sprites; not needed, used where found."""
    folder = os.environ.get("PIXELKIT_TILES") or TESTS.parent.parent / "shared" / "data" / "crawl-tiles"
    if not Path(folder).is_dir():
        pytest.skip("no folder of real sprites (PIXELKIT_TILES)")
    return Path(folder)
