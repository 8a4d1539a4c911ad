from __future__ import annotations

import pickle
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from PIL import Image

from pixelkit.cli import main
from pixelkit.dataset import spread
from pixelkit.dataset.build import Wish, plan_set
from pixelkit.dataset.prepare import prepare
from pixelkit.dataset.spread import connected, end_work
from pixelkit.errors import EngineError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def refused(address: str) -> str:
    with pytest.raises(EngineError) as caught, connected(address):
        pass
    return str(caught.value)


def test_without_ray_one_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "a.png")
    words = ["data", "prepare", str(tmp_path), "--base", "sd15", "--out", str(tmp_path) + "-set", "--ray", "auto"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == EngineError.exit_code
    assert "pip install 'pixelkit[ray]'" in result.output
    assert not Path(f"{tmp_path}-set").exists()


@pytest.mark.parametrize("address", ["", "here", "ray://host:10001", "host:", ":6379", "host:port"])
def test_what_is_no_address(address: str) -> None:
    pytest.importorskip("ray")
    assert "is no address" in refused(address)


def test_nobody_answers() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "no Ray cluster answers" in refused(f"127.0.0.1:{port}")


def sight(**changes: object) -> spread._Sight:
    defaults = {"cwd": str(Path.cwd()), "versions": spread._versions(), "marker": Path(__file__), "sizes": {}}
    return spread._Sight(**{**defaults, **changes})  # type: ignore[arg-type]


def test_a_node_must_see_the_same_files_by_the_same_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "sprite.png"
    file.write_bytes(b"12345")
    sight(sizes={file: 5, Path("sprite.png"): 5}).check()
    with pytest.raises(StorageError, match=r"sees another .*sprite"):
        sight(sizes={file: 4}).check()
    with pytest.raises(StorageError, match=r"does not see .*missing"):
        sight(sizes={tmp_path / "missing.png": 1}).check()
    with pytest.raises(StorageError, match=r"does not see .*nowhere"):
        sight(cwd=str(tmp_path / "nowhere")).check()


def test_a_node_must_have_the_same_pixelkit(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sight()
    monkeypatch.setattr(spread, "__version__", "0.0.1")
    with pytest.raises(EngineError, match=r"pixelkit 0\.0\.1, not"):
        here.check()


def test_what_a_node_raises_comes_back_as_it_was() -> None:
    def fail(item: object) -> object:
        raise StorageError("disk full", hint="empty it")

    error = spread._work(fail, [1], sight())
    assert isinstance(error, StorageError)
    assert str(pickle.loads(pickle.dumps(error))) == "disk full\nempty it"


def test_work_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    """The command was killed, and another one has begun: what it makes must not be overwritten by what is still under way."""
    marker = tmp_path / "images.jsonl.0123abcd"
    marker.touch()
    (tmp_path / "images.jsonl.part").touch()
    made = []

    def work(item: int) -> int:
        made.append(item)
        if item == 2:
            end_work(tmp_path)
        return item

    assert isinstance(spread._work(work, [1, 2, 3], sight(marker=marker)), StorageError)
    assert made == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["images.jsonl.part"]


def test_what_was_made_ahead_of_an_interruption_is_not_taken_for_somebodys_edit(tmp_path: Path) -> None:
    """Nodes are ahead of the journal by some batches: their captions stand there, and no record of them."""

    def far_ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        yield from [function(item) for item in items]

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    for number in range(5):
        Image.new("RGBA", (8, 8), (number, 0, 0, 255)).save(tmp_path / f"{number}.png")
    out = tmp_path.with_name(f"{tmp_path.name}-set")
    first = plan_set(tmp_path, Wish(base="sd15", resolution=128, trigger="old")).sprites
    with pytest.raises(KeyboardInterrupt):
        prepare(first, out, on_progress=stop, mapper=far_ahead)
    assert (out / "images" / "4.txt").read_text() == "old, 4\n"
    (out / "images" / "0.txt").write_text("what the artist wrote\n")
    (out / "images" / ".3.png.a1b2c3_4").touch()  # a node without power
    second = plan_set(tmp_path, Wish(base="sd15", resolution=128, trigger="new")).sprites
    prepare(second, out)
    captions = {path.stem: path.read_text().strip() for path in (out / "images").glob("*.txt")}
    assert captions == {"0": "what the artist wrote", **{str(n): f"new, {n}" for n in range(1, 5)}}
    assert not list(out.rglob(".*"))
