"""Sets that are made on a cluster of two nodes: the same bytes, whatever becomes of the nodes or of the command."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.slow.ray_nodes import PATIENCE, Nodes, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("ray")
OPTIONS = ("--base", "sd15", "--masks", "--mirror", "--trigger", "pix", "--keep-going")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(folder=Path(folder))
        try:
            nodes.start(2)
            yield nodes
        finally:
            nodes.stop()


@pytest.fixture
def sprites(tmp_path: Path) -> Path:
    """Enough for some forty batches, and one that cannot be read whole."""
    folder = tmp_path / "sprites"
    folder.mkdir()
    for number in range(640):
        generator = np.random.default_rng(number)
        table = generator.integers(0, 256, (6, 4), dtype=np.uint8)
        table[:, 3] = np.where(np.arange(6) == 0, 0, 255)
        Image.fromarray(table[generator.integers(0, 6, (16, 16))]).save(folder / f"{number:04}.png")
    torn = folder / "0321.png"
    torn.write_bytes(torn.read_bytes()[:-40])
    return folder


def start(source: Path, out: str, *options: str) -> subprocess.Popen[str]:
    """The command, in the folder above the source: relative paths must do."""
    return subprocess.Popen(
        [sys.executable, "-m", "pixelkit", "data", "prepare", source.name, "--out", out, *OPTIONS, *options],
        cwd=source.parent,
        env={**environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out + err


def hash_files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_for_images(folder: Path, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(list(folder.glob("images/[0-9]*.png"))) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_same_set_with_and_without_nodes(nodes: Nodes, sprites: Path) -> None:
    finish(start(sprites, "alone"))
    said = finish(start(sprites, "spread", "--ray", nodes.address))
    alone, spread = hash_files(sprites.parent / "alone"), hash_files(sprites.parent / "spread")
    assert alone == spread and len(alone) == 639 * 2 * 3 + 3, (
        "picture, caption, mask; mirrored; records, palette, manifest"
    )
    assert "0321.png" in said
    again = finish(start(sprites, "spread", "--ray", nodes.address))
    assert "639 sprites were there already" in again and hash_files(sprites.parent / "spread") == alone


def test_a_lost_nodes_images_are_made_again(nodes: Nodes, sprites: Path) -> None:
    finish(start(sprites, "alone"))
    working = start(sprites, "spread", "--ray", nodes.address)
    wait_for_images(sprites.parent / "spread", 100)
    nodes.kill(nodes.started[-1])
    nodes.add()  # for the tests that follow
    assert len(list((sprites.parent / "spread" / "images").glob("[0-9]*.png"))) < 1000, "killed in the middle"
    finish(working)
    assert hash_files(sprites.parent / "spread") == hash_files(sprites.parent / "alone")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_command_goes_on_with_or_without_nodes(nodes: Nodes, sprites: Path, how: signal.Signals) -> None:
    finish(start(sprites, "alone"))
    for others in ((), ("--ray", nodes.address)):
        name = f"stopped{len(others)}"
        working = start(sprites, name, "--trigger", "other", "--ray", nodes.address)
        wait_for_images(sprites.parent / name, 200)
        working.send_signal(how)
        assert working.wait(timeout=PATIENCE) != 0
        folder = sprites.parent / name
        assert not (folder / "pixelkit-dataset.json").exists(), "a half-made set is none"
        time.sleep(2)  # the nodes end what they have begun
        finish(start(sprites, name, *others))
        assert hash_files(folder) == hash_files(sprites.parent / "alone")


def test_nodes_must_see_the_folders(nodes: Nodes, sprites: Path, tmp_path: Path) -> None:
    """A node that stands in another root sees other files: here, one that is sent a path of another size."""
    code = (
        "import sys; from pathlib import Path; from pixelkit.dataset import spread\n"
        "spread._file_of = lambda path: Path('/proc/self/status')\n"
        "real = Path.stat\n"
        "with spread.spread_over(sys.argv[1], folder=Path(sys.argv[2]), source=Path('x')) as mapper:\n"
        "    Path.stat = lambda self, **k: real(Path(sys.argv[2]), **k) if 'proc' in str(self) else real(self, **k)\n"
        "    list(mapper(len, ['a', 'bc']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, nodes.address, str(tmp_path)],
        env={**environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "StorageError" in done.stderr and "sees another /proc/self/status" in done.stderr
    assert not list(tmp_path.glob("images.jsonl*")), "no marker is left"
