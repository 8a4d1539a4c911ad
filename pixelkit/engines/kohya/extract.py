"""The option tables of sd-scripts, read out of a checkout without its dependencies.

    python -m pixelkit.engines.kohya.extract SD_SCRIPTS [--commit HASH] [--out FILE]

Each script's own `setup_parser()` is run, with inert stand-ins for torch and everything else that is neither in the
standard library nor in the checkout; so nothing needs to be installed and it takes well under a second. The schema of
the dataset file comes from `ConfigSanitizer` in the same way, with a voluptuous that only takes notes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import logging
import re
import sys
import warnings
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pixelkit.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCRIPTS = (
    "train_network",
    "sdxl_train_network",
    "flux_train_network",
    "sd3_train_network",
    "train_db",
    "fine_tune",
    "sdxl_train",
    "flux_train",
    "sd3_train",
    "train_textual_inversion",
    "sdxl_train_textual_inversion",
)
_LIBRARY = (
    "config_util",
    "custom_train_functions",
    "deepspeed_utils",
    "flux_train_utils",
    "sd3_train_utils",
    "sdxl_train_util",
    "strategy_base",
    "train_util",
    "utils",
)
KEY_FILES = (
    *(f"{script}.py" for script in SCRIPTS),
    *(f"library/{name}.py" for name in _LIBRARY),
    *(f"networks/{name}.py" for name in ("lora", "lora_flux", "lora_sd3")),
)
HELP_LENGTH = 100
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


class _InertMeta(type):
    """Classes whose every attribute is another inert class, so that any third-party expression evaluates."""

    def __getattr__(cls, name: str) -> _InertMeta:
        if name.startswith("__"):
            raise AttributeError(name)
        return _inert(name)

    def __bool__(cls) -> bool:
        return False

    def __iter__(cls) -> Iterator[object]:
        return iter(())


class _Inert(metaclass=_InertMeta):
    """Stands for any third-party object: callable, subscriptable, empty, false."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __init_subclass__(cls, **kwargs: object) -> None:
        pass

    def __class_getitem__(cls, item: object) -> type[_Inert]:
        return cls

    def __getattr__(self, name: str) -> _InertMeta:
        if name.startswith("__"):
            raise AttributeError(name)
        return _inert(name)

    def __call__(self, *_: object, **__: object) -> _Inert:
        return self

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[object]:
        return iter(())


def _inert(name: str) -> _InertMeta:
    return _InertMeta(name, (_Inert,), {})


class _InertModule(ModuleType):
    """A module that holds whatever is asked of it."""

    __path__: list[str]

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _inert(name)
        setattr(self, name, value)
        return value


class _Finder:
    """Imports an inert module for every name outside the standard library and the checkout."""

    def __init__(self, checkout: Path) -> None:
        self.own = {path.stem for path in checkout.iterdir() if path.suffix == ".py" or path.is_dir()}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in self.own:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _InertModule(spec.name)
        if spec.name == "voluptuous":
            _take_notes(module)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []


def _take_notes(voluptuous: ModuleType) -> None:
    """The parts of voluptuous that config_util uses, each keeping what it was given."""
    notes = {
        "Any": lambda *kinds: ("any", *kinds),
        "ExactSequence": lambda kinds: ("exact", *kinds),
        "Required": lambda key: ("required", key),
        "Object": lambda schema: schema,
        "Schema": lambda schema, **_: schema,
    }
    for name, note in notes.items():
        setattr(voluptuous, name, note)


@contextmanager
def _stubbed_imports(checkout: Path) -> Iterator[None]:
    """Inside, `import` sees the standard library, the checkout, and inert stand-ins; afterwards all is as before."""
    modules, path, meta_path = dict(sys.modules), list(sys.path), list(sys.meta_path)
    handlers, level = list(logging.root.handlers), logging.root.level
    for name in [name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names]:
        if name != "__main__":
            del sys.modules[name]
    sys.path.insert(0, str(checkout))
    sys.meta_path.insert(0, _Finder(checkout))
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the engine's own
            yield
    finally:
        sys.dont_write_bytecode = write_bytecode
        sys.path[:], sys.meta_path[:] = path, meta_path
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        for name in set(sys.modules) - set(modules):
            del sys.modules[name]
        sys.modules.update(modules)


def extract_table(checkout: Path, *, commit: str) -> dict[str, Any]:
    """The whole table, as kohya_options.json holds it. Raises EngineError where the checkout is none of sd-scripts.

    Swaps sys.modules while it runs: not for a process whose other threads import.
    """
    if missing := [name for name in KEY_FILES if not (checkout / name).is_file()]:
        raise EngineError(f"{checkout} is no sd-scripts checkout that pixelkit knows: {missing[0]} is missing")
    with _stubbed_imports(checkout):
        parsers = {script: importlib.import_module(script).setup_parser() for script in SCRIPTS}
        sanitizer = importlib.import_module("library.config_util").ConfigSanitizer
        dataset = _describe_dataset(sanitizer)
    release = re.search(r"\*\*Version (\d[\d.]*\d)", (checkout / "README.md").read_text("utf-8"))
    return {
        "commit": commit,
        "version": release[1] if release else "",
        "files": {name: hash_source(checkout / name) for name in KEY_FILES},
        "scripts": {script: _describe_script(checkout, script, parser) for script, parser in parsers.items()},
        "dataset": dataset,
        "options": _merge_options({script: _describe_options(parser) for script, parser in parsers.items()}),
    }


def hash_source(path: Path) -> str:
    """SHA-256 of a text file, whatever line ends git gave it."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def read_git_head(checkout: Path) -> str:
    """The commit that is checked out, from .git (a folder, or the file of a submodule or worktree); "" without one."""
    git = checkout / ".git"
    try:
        if git.is_file():
            git = (checkout / git.read_text("utf-8").partition("gitdir:")[2].strip()).resolve()
        head = (git / "HEAD").read_text("utf-8").strip()
        reference = head.partition("ref:")[2].strip()
        if not reference:
            return head if _COMMIT.fullmatch(head) else ""
        common = git / "commondir"
        shared = (git / common.read_text("utf-8").strip()).resolve() if common.is_file() else git
        for folder in (git, shared):
            if (folder / reference).is_file():
                return (folder / reference).read_text("utf-8").strip()
        packed = (shared / "packed-refs").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.search(rf"^([0-9a-f]{{40,64}}) {re.escape(reference)}$", packed, re.MULTILINE)
    return found[1] if found else ""


def _describe_options(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """dest -> its entry; fields at their usual value (no choices, default None, one value) are left out."""
    found = {}
    for action in parser._actions:  # noqa: SLF001  (argparse offers no other way to list them)
        if action.dest == "help":
            continue
        names = [name.removeprefix("--") for name in action.option_strings]
        entry: dict[str, Any] = {"type": _type_name(action)}
        if names != [action.dest]:
            entry["flags"] = names
        if action.choices is not None:
            entry["choices"] = list(action.choices)
        if action.default is not None and entry["type"] != "bool":
            entry["default"] = action.default
        if action.nargs not in {None, 0}:
            entry["nargs"] = action.nargs
        if summary := _summarise(action.help or ""):
            entry["help"] = summary
        found[action.dest] = entry
    return found


def _type_name(action: argparse.Action) -> str:
    if action.nargs == 0:
        if action.const is not True or action.default is not False:
            raise EngineError(f"--{action.dest} is a flag of a kind that pixelkit does not know")
        return "bool"
    kind = action.type
    name = getattr(kind, "__name__", "") if kind is not None else "str"
    return "str" if name == "Path" else name


def _summarise(text: str) -> str:
    """The English part of a help text, one line, shortened at a word."""
    english = re.split(r"\s+/\s+(?=[^\n]*[^\x00-\x7f])", " ".join(text.split()), maxsplit=1)[0]
    if len(english) <= HELP_LENGTH:
        return english
    return english[: HELP_LENGTH - 3].rpartition(" ")[0] + "..."


def _merge_options(tables: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """option -> its variants, each with the scripts that have it so; "*" stands for all scripts."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for script, table in tables.items():
        for name, entry in table.items():
            for variant in merged.setdefault(name, []):
                if {key: value for key, value in variant.items() if key != "scripts"} == entry:
                    variant["scripts"].append(script)
                    break
            else:
                merged[name].append({**entry, "scripts": [script]})
    for variants in merged.values():
        for variant in variants:
            if len(variant["scripts"]) == len(tables):
                variant["scripts"] = ["*"]
    return dict(sorted(merged.items()))


def _describe_script(checkout: Path, script: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """How many options it has, and what its dataset file may be, from its `ConfigSanitizer(db, ft, cn, dropout)`."""
    source = (checkout / f"{script}.py").read_text("utf-8")
    call = re.search(r"ConfigSanitizer\((\w+), (\w+), ([\w.]+), (\w+)\)", source)
    if not call:  # a subclass of another script's trainer
        parent = re.search(r"^import (train_\w+)$", source, re.MULTILINE)
        if not parent:
            raise EngineError(f"{script}.py reads its dataset file in a way that pixelkit does not know")
        return _describe_script(checkout, parent[1], parser)
    return {
        "options": len(parser._actions) - 1,  # noqa: SLF001
        "dreambooth": call[1] == "True",
        "finetuning": call[2] == "True",
        "dropout": call[4] == "True",
    }


def _describe_dataset(sanitizer: Any) -> dict[str, Any]:
    """Key of a dataset file -> its type, the levels that take it, whether it is required or needs dropout support.

    For DreamBooth-style subsets, the ones that `image_dir` and caption files make.
    """
    full, bare = sanitizer(True, True, False, True), sanitizer(True, True, False, False)  # noqa: FBT003
    levels = {"general": "general_schema", "datasets": "db_dataset_schema", "subsets": "db_subset_schema"}
    found: dict[str, dict[str, Any]] = {}
    for level, name in levels.items():
        for marked, kind in getattr(full, name).items():
            key = marked[1] if isinstance(marked, tuple) else marked
            if key == "subsets":
                continue
            entry = found.setdefault(key, {"type": _kind_name(kind), "levels": []})
            entry["levels"].append(level)
            if isinstance(marked, tuple):
                entry["required"] = True
            if marked not in getattr(bare, name):
                entry["dropout"] = True
    return dict(sorted(found.items()))


def _kind_name(kind: Any) -> str:
    """`float` accepts no int and `int or pair of int` a list of two: voluptuous is strict."""
    if isinstance(kind, functools.partial):
        pair = f"pair of {kind.args[0].__name__}"
        return f"{kind.args[0].__name__} or {pair}" if "scalar_or" in kind.func.__name__ else pair
    if isinstance(kind, tuple):
        return " or ".join(part.__name__ for part in kind[1:])
    return str(kind.__name__)


def dump_table(table: Mapping[str, Any]) -> str:
    """JSON with one option, file or level to a line, so that a new commit's differences can be read."""
    lines = []
    for section, content in table.items():
        if isinstance(content, dict):
            rows = [f"    {_compact(key)}: {_compact(value)}" for key, value in content.items()]
            lines.append(f"  {_compact(section)}: {{\n" + ",\n".join(rows) + "\n  }")
        else:
            lines.append(f"  {_compact(section)}: {_compact(content)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table of a checkout to --out, or to standard output."""
    parser = argparse.ArgumentParser(prog="python -m pixelkit.engines.kohya.extract", description=__doc__)
    parser.add_argument("sd_scripts", type=Path, help="the checkout")
    parser.add_argument("--commit", default="", help="its commit, where the checkout holds no .git")
    parser.add_argument("--out", type=Path, help="file to write")
    given = parser.parse_args(arguments)
    commit = given.commit or read_git_head(given.sd_scripts)
    if not commit:
        parser.error(f"{given.sd_scripts} holds no .git to read the commit from: give it with --commit")
    try:
        text = dump_table(extract_table(given.sd_scripts.resolve(), commit=commit))
    except EngineError as error:
        parser.error(str(error))
    if given.out:
        given.out.write_text(text, encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
