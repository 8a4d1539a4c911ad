"""verify finds what is wrong and says what to do; --rebuild makes the index from the files."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from made_registries import list_models, make_file, make_finished_run, make_registry

from pixelkit.errors import StorageError
from pixelkit.registry import store
from pixelkit.registry.adding import Wish, add_model
from pixelkit.registry.checking import rebuild, verify
from pixelkit.registry.facts import find_shipped
from pixelkit.registry.index import Change, Index
from pixelkit.registry.lock import hold_lock
from pixelkit.registry.rollout import Rollout, read_deployment
from pixelkit.registry.stages import Permit, promote, roll_out, rollback
from pixelkit.registry.steps import Move, Write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pixelkit.registry.store import Registry


def troubles(registry: Registry) -> list[str]:
    return [f"{problem.where} {problem.what}" for problem in verify(registry).problems]


def make_busy(tmp_path: Path) -> Registry:
    registry = make_registry(tmp_path, "1.0", "1.1", "1.2", promoted=2)
    roll_out(registry, "hero", "1.2", Rollout(model="", percent=10, segment="beta"), Permit())
    add_model(registry, find_shipped(make_finished_run(tmp_path / "runs", seed=9)), Wish(candidate=True))
    return registry


def spoil_same_size(registry: Registry) -> None:
    path = registry.folder / "production" / "hero_v1.0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Registry], object], str]] = {
    "a bit of a model": (spoil_same_size, "production/hero_v1.0.safetensors is not what was added: its sha256 differs"),
    "a model cut short": (
        lambda r: (r.folder / "production/hero_v1.0.safetensors").write_bytes(b"x"),
        "production/hero_v1.0.safetensors has 1 bytes, not",
    ),
    "a model gone": (
        lambda r: (r.folder / "production/hero_v1.0.safetensors").unlink(),
        "production/hero_v1.0.safetensors is gone",
    ),
    "a sheet gone": (
        lambda r: (r.folder / "staging/hero_v1.3_rc1/hero-sheet.png").unlink(),
        "staging/hero_v1.3_rc1/hero-sheet.png is gone",
    ),
    "metadata gone": (
        lambda r: (r.folder / "production/hero_v1.0.pixelkit.json").unlink(),
        "hero_v1.0.pixelkit.json is gone",
    ),
    "metadata broken": (lambda r: (r.folder / "production/hero_v1.0.pixelkit.json").write_text("{"), "cannot be read"),
    "metadata edited": (
        lambda r: (r.folder / "production/hero_v1.0.pixelkit.json").write_text("{}"),
        "hero_v1.0.pixelkit.json differs from the index",
    ),
    "link gone": (lambda r: r.find_link("hero").unlink(), "current/hero.safetensors is gone"),
    "link elsewhere": (
        lambda r: (r.find_link("hero").unlink(), r.find_link("hero").symlink_to("../production/hero_v1.0.safetensors")),
        "current/hero.safetensors leads to production/hero_v1.0.safetensors, not to production/hero_v1.1.safetensors",
    ),
    "link replaced by a file": (
        lambda r: (r.find_link("hero").unlink(), r.find_link("hero").write_bytes(b"x")),
        "current/hero.safetensors is no copy of production/hero_v1.1.safetensors",
    ),
    "who gets what": (lambda r: (r.folder / "current/hero.json").write_text("[]"), "is broken"),
    "a stranger": (
        lambda r: (r.folder / "staging/other_v1.0.safetensors").touch(),
        "staging/other_v1.0.safetensors is not in the index",
    ),
    "a stranger's link": (
        lambda r: (r.folder / "current/x.safetensors").touch(),
        "current/x.safetensors is of no style",
    ),
    "left-overs": (
        lambda r: (r.folder / "archive/x_v1.0.pixelkit.json").touch(),
        "archive/x_v1.0.pixelkit.json belongs to no model",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found(tmp_path: Path, damage: str) -> None:
    registry = make_busy(tmp_path)
    assert troubles(registry) == []
    (registry.folder / "staging" / "notes.txt").write_text("somebody's own notes are no trouble")
    do, expected = DAMAGES[damage]
    do(registry)
    found = verify(registry).problems
    assert any(expected in f"{problem.where} {problem.what}" for problem in found), [str(one) for one in found]
    assert all(problem.hint for problem in found)


def test_quick_reads_no_file(tmp_path: Path) -> None:
    registry = make_busy(tmp_path)
    spoil_same_size(registry)
    assert verify(registry, hashes=False).problems == ()
    seen: list[tuple[int, int]] = []
    assert len(verify(registry, on_progress=lambda done, total: seen.append((done, total))).problems) == 1
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize(
    "damage", ["link gone", "link elsewhere", "link replaced by a file", "metadata gone", "metadata broken"]
)
def test_rebuild_mends(tmp_path: Path, damage: str) -> None:
    registry = make_busy(tmp_path)
    DAMAGES[damage][0](registry)
    assert rebuild(registry)
    assert troubles(registry) == []
    assert registry.find_link("hero").resolve().name == "hero_v1.1.safetensors"


def test_rebuild_does_not_bless_a_changed_model(tmp_path: Path) -> None:
    registry = make_busy(tmp_path)
    spoil_same_size(registry)
    rebuild(registry)
    assert troubles(registry) == ["production/hero_v1.0.safetensors is not what was added: its sha256 differs"]


def test_the_index_comes_back_from_the_files(tmp_path: Path) -> None:
    registry = make_busy(tmp_path)
    models, deployment = list_models(registry), read_deployment(registry.folder, "hero")
    for path in registry.folder.glob("registry.sqlite*"):
        path.unlink()
    with pytest.raises(StorageError, match="holds 4 models, but no index") as caught, registry.reading():
        pass
    assert "--rebuild" in caught.value.hint
    with pytest.raises(StorageError, match="but no index"):
        promote(registry, "hero_v1.2", Permit())
    rebuild(registry, reason="disk died")
    assert list_models(registry) == models
    with registry.reading() as index:
        assert index.deployments() == {"hero": deployment}
        assert [(row["event"], row["reason"]) for row in index.log()] == [("rebuild", "disk died")]
    assert rollback(registry, "hero").details["ended_rollouts"] == ["hero_v1.2 10% of beta"]
    assert rollback(registry, "hero").target == "hero_v1.0"


def test_a_broken_index_is_kept(tmp_path: Path) -> None:
    registry = make_busy(tmp_path)
    models = list_models(registry)
    registry.index_file.write_bytes(b"this is no database at all, though long enough to be one" * 40)
    with pytest.raises(StorageError) as caught, registry.reading():
        pass
    assert "--rebuild" in caught.value.hint
    done = rebuild(registry)
    assert any("broken" in line for line in done)
    assert list(registry.folder.glob("registry.sqlite.broken-*"))
    assert list_models(registry) == models
    assert troubles(registry) == []


def test_rebuild_keeps_the_log(tmp_path: Path) -> None:
    registry = make_busy(tmp_path)
    with registry.reading() as index:
        before = index.log()
    rebuild(registry)
    with registry.reading() as index:
        assert index.log()[:-1] == before


def test_a_model_in_two_stages_is_an_error(tmp_path: Path) -> None:
    registry = make_busy(tmp_path)
    shutil.copy(registry.folder / "production/hero_v1.0.safetensors", registry.folder / "archive")
    with pytest.raises(StorageError, match="lies in production and in archive"):
        rebuild(registry)


def interrupt(registry: Registry, change: Change) -> None:
    index = Index(registry.index_file)
    index.begin(change)
    index.close()


def make_change(*steps: Move | Write) -> Change:
    return Change(
        event="archive", style="hero", model="hero_v1.2", source="a", target="b", time="t", who="w", steps=steps
    )


def test_what_cannot_be_ended_is_taken_back(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0")
    file = registry.folder / "staging" / "hero_v1.0.safetensors"
    interrupt(
        registry,
        make_change(
            Move(source="staging/hero_v1.0.safetensors", target="archive/hero_v1.0.safetensors"),
            Move(source="staging/gone", target="archive/gone"),
        ),
    )
    assert troubles(registry) == []
    assert file.is_file()
    assert registry.find_interrupted() is None


def test_what_can_neither_be_ended_nor_taken_back_is_told(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0")
    (registry.folder / "in the way").mkdir()
    (registry.folder / "in the way" / "x").touch()
    interrupt(
        registry, make_change(Write(path="in the way", new="a", old="b"), Move(source="nothing", target="nowhere"))
    )
    with pytest.raises(StorageError, match="was interrupted and cannot be ended"):
        promote(registry, "hero_v1.0", Permit())
    with registry.reading() as index:
        assert len(index.models()) == 1, "looking is still possible"
    rebuild(registry)
    promote(registry, "hero_v1.0", Permit())
    assert troubles(registry) == []


def test_left_overs_of_killed_processes_go_away(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0")
    host = store.platform.node() or "host"
    dead = registry.folder / ".incoming" / f"{host}~999999999~1~abcd"
    other = registry.folder / ".incoming" / "other-host~1~1~abcd"
    for folder in (dead, other):
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(b"half")
    assert verify(registry).remarks == (f"removed what a killed `add` had copied: {dead.name}",)
    assert not dead.exists() and other.exists()


def test_a_busy_registry_says_who_is_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_registry(tmp_path, "1.0")
    with hold_lock(registry.folder / ".lock", "`models rollout` by ada@render3"):
        with (
            pytest.raises(StorageError, match=r"is busy: process .*, `models rollout` by ada@render3"),
            hold_lock(registry.folder / ".lock", "mine", wait=0.05),
        ):
            pass
        with registry.reading() as index:
            assert index.models(), "reading waits for nobody"


def test_metadata_made_anew_from_a_file_alone(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0")
    shutil.copy(
        make_file(tmp_path / "x.safetensors", seed=5), registry.folder / "staging" / "knight_v2.0_rc1.safetensors"
    )
    rebuild(registry)
    assert troubles(registry) == []
    about = json.loads((registry.folder / "staging" / "knight_v2.0_rc1.pixelkit.json").read_text())
    assert (about["model_name"], about["style"], about["status"]) == ("knight_v2.0_rc1", "knight", "staging")
    promote(registry, "knight", Permit())
