"""The floors of the house: imports point strictly down, siblings do not import each other, and the CLI loads no torch."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import pixelkit

ROOT = Path(pixelkit.__file__).parent
FLOORS = (
    ("errors", "locks", "paths", "progress", "toml_lines", "toml_text"),
    ("rundir", "process", "diagnosis", "canvas", "symptoms", "pixelgrid", "words", "notify", "memory"),
    ("preset", "preset_file", "catalog", "hardware", "sources", "tiny"),
    ("plan",),
    ("engines", "render", "launch", "display", "measures", "track", "remedies"),
    ("dataset", "evaluate", "ship", "start", "registry"),
    ("ready", "tuned"),
    ("training",),
    ("pipeline",),
    ("queue", "tune"),
    ("cli", "__main__"),
)
# Within a floor, who may lean on whom: written down, so that it stays a list and does not become a habit.
LEANS = {
    ("paths", "errors"), ("progress", "errors"), ("toml_text", "errors"), ("process", "rundir"), ("diagnosis", "symptoms"),
    ("pixelgrid", "words"), ("ready", "tuned"),
    ("preset_file", "preset"), ("catalog", "preset"), ("hardware", "catalog"), ("ship", "evaluate"), ("dataset", "evaluate"),
    ("__main__", "cli"),
}  # fmt: skip
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate"}


def floor_of(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    pytest.fail(f"pixelkit/{room} stands on no floor: add it to FLOORS and to docs/architecture.md")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= (
                {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                if node.module == "pixelkit"
                else {node.module}
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def rooms(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("pixelkit.")}
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}


MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for room in rooms(path) - {own}:
        below = floor_of(room) < floor_of(own)
        assert below or (own, room) in LEANS, f"{path.relative_to(ROOT)} imports pixelkit.{room}, which is not below it"


def test_converters_know_nothing_of_pixelkit() -> None:
    for path in (ROOT.parent / "converters").rglob("*.py"):
        assert not [name for name in imports(path) if name.split(".")[0] == "pixelkit"], path


def test_the_command_line_loads_no_torch() -> None:
    before = set(sys.modules)
    import pixelkit.cli
    import pixelkit.pipeline  # noqa: F401

    new = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not new & HEAVY


def test_packages_of_the_wheel_are_complete() -> None:
    import tomllib

    packages = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join(path.parent.relative_to(ROOT.parent).parts)
        for top in ("pixelkit", "converters")
        for path in (ROOT.parent / top).rglob("__init__.py")
    }
    assert on_disk <= set(packages), sorted(on_disk - set(packages))
