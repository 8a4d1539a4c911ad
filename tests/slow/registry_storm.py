"""Many processes at one registry, and processes that are killed at every single step. Prints what happened as JSON.

python registry_storm.py storm FOLDER | python registry_storm.py kills FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from made_registries import make_file, make_registry

from pixelkit.errors import PixelkitError
from pixelkit.registry.adding import Wish, add_model
from pixelkit.registry.checking import verify
from pixelkit.registry.index import Index
from pixelkit.registry.rollout import Rollout, pick_model, read_deployment
from pixelkit.registry.stages import Permit, archive, promote, roll_out, rollback
from pixelkit.registry.store import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

FREE = Permit()


def fork(work: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


PROMOTIONS = 30


def storm(folder: Path, processes: int = 200) -> dict[str, Any]:
    """Promotions, rollbacks and picks, all at once; one more process looks at the link all the time."""
    registry = make_registry(folder, *(f"1.{number}" for number in range(PROMOTIONS + 2)), promoted=2)
    known = {path.read_bytes() for path in registry.folder.glob("*/*.safetensors")}
    ready, go, answers, looks, stop = (os.pipe() for _ in range(5))

    def work(number: int) -> None:
        os.close(go[1])
        os.write(ready[1], b".")
        os.read(go[0], 1)  # returns when the parent closes its end
        os.write(answers[1], json.dumps(do_one(registry, number)).encode() + b"\n")

    def watch() -> None:
        for end in (stop[1], go[1], answers[1]):
            os.close(end)
        os.write(looks[1], json.dumps(watch_link(registry, known, stop[0])).encode())

    watcher = fork(watch)
    children = [fork(lambda number=number: work(number)) for number in range(processes)]
    for _ in children:
        os.read(ready[0], 1)
    for end in (go[0], go[1], answers[1]):
        os.close(end)
    with os.fdopen(answers[0]) as stream:
        said = [json.loads(line) for line in stream]
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    os.close(stop[1])
    looked = json.loads(os.read(looks[0], 4096))
    os.waitpid(watcher, 0)
    with registry.reading() as index:
        log = index.log()
    return {
        "said": Counter(f"{what}: {how}" for what, how in said),
        "codes": Counter(codes),
        "watcher": looked,
        "log": [(row["event"], row["details"].get("current")) for row in log if row["event"] != "add"],
        "link": registry.find_link("hero").resolve().stem,
        "problems": [str(problem) for problem in verify(registry).problems],
    }


def do_one(registry: Registry, number: int) -> tuple[str, str]:
    """What process `number` does, and how it went."""
    what = "promote" if number < PROMOTIONS else ("rollback", "pick")[number % 2]
    try:
        if what == "promote":
            promote(registry, f"hero_v1.{number + 2}", FREE, reason=str(number))
        elif what == "rollback":
            rollback(registry, "hero", reason=str(number))
        else:
            pick_model(registry.folder, "hero", f"user {number}")
    except PixelkitError as error:
        return what, error.message
    except BaseException as error:
        return what, f"crash: {error!r}"
    return what, "done"


def watch_link(registry: Registry, known: set[bytes], stop: int) -> dict[str, Any]:
    """Look at the link and at the file beside it until the other end of `stop` closes."""
    link, seen, bad = registry.find_link("hero"), 0, Counter[str]()
    os.set_blocking(stop, False)
    while True:
        seen += 1
        try:
            if link.read_bytes() not in known:
                bad["other content"] += 1
            read_deployment(registry.folder, "hero")
        except (OSError, PixelkitError) as error:
            bad[repr(error)] += 1
        with contextlib.suppress(BlockingIOError):
            if os.read(stop, 1) == b"":
                return {"seen": seen, "bad": bad}
        time.sleep(0.0002)


def kills(folder: Path) -> dict[str, Any]:
    """Each kind of change, killed before its first step on disk or in the index, before its second, and so on."""
    template = make_registry(folder / "template", "1.0", "1.1", "1.2_rc1", "0.9", promoted=2)
    archive(template, "hero_v0.9")
    archive(template, "hero_v1.0")
    new = make_file(folder / "new.safetensors", seed=77)
    new.with_suffix(".json").write_text("{}")
    changes: dict[str, Callable[[Registry], Any]] = {
        "add": lambda registry: add_model(registry, new, Wish(style="hero")),
        "promote": lambda registry: promote(registry, "hero_v1.2_rc1", FREE),
        "rollback": lambda registry: rollback(registry, "hero", to="1.0"),
        "rollout": lambda registry: roll_out(registry, "hero", "1.2_rc1", Rollout(model="", percent=10), FREE),
        "archive": lambda registry: archive(registry, "hero_v1.2_rc1"),
    }
    return {name: kill_everywhere(folder / name, template, change) for name, change in changes.items()}


def kill_everywhere(folder: Path, template: Registry, change: Callable[[Registry], Any]) -> dict[str, Any]:
    links = {path.read_bytes() for path in template.folder.glob("*/*.safetensors")}
    before = describe(template)
    whole = copy(template, folder / "whole")
    change(whole)
    after = describe(whole)
    outcomes, faults, step = Counter[str](), list[str](), 0
    while True:
        registry = copy(template, folder / str(step))
        pid = fork(lambda step=step, registry=registry: die_before(step, lambda: change(registry)))
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            faults += [] if status == 0 else [f"step {step}: status {status}"]
            break
        if registry.find_link("hero").read_bytes() not in links:
            faults.append(f"step {step}: the link is wrong")
        problems = verify(registry).problems
        state = describe(registry)
        if problems or state not in (before, after):
            faults.append(f"step {step}: {[str(problem) for problem in problems]} {state}")
        outcomes["after" if state == after else "before"] += 1
        shutil.rmtree(registry.folder)
        step += 1
    return {"kills": step, "outcomes": outcomes, "faults": faults}


def die_before(step: int, work: Callable[[], Any]) -> None:
    """Do the work, but kill -9 this process right before its step number `step`."""
    count = 0

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*args, **kwargs)

        setattr(owner, name, counted)

    for name in ("replace", "symlink", "unlink", "mkdir"):
        wrap(os, name)
    for name in ("begin", "end", "close"):
        wrap(Index, name)
    work()


def copy(template: Registry, folder: Path) -> Registry:
    shutil.copytree(template.folder, folder / "models", symlinks=True)
    return Registry(folder=folder / "models")


def describe(registry: Registry) -> list[Any]:
    """What is on disk and what the log says, without times."""
    files = []
    for path in sorted(registry.folder.rglob("*")):
        name = path.relative_to(registry.folder).as_posix()
        if path.is_symlink():
            files.append([name, str(path.readlink())])
        elif path.is_file() and "sqlite" not in name and name != ".lock":
            content = path.read_bytes()
            files.append([name, hash(without_times(content) if path.suffix == ".json" else content)])
    with registry.reading() as index:
        return [files, [(row["event"], row["from"], row["to"]) for row in index.log()]]


def without_times(text: bytes) -> str:
    return json.dumps({key: value for key, value in json.loads(text).items() if key != "added"})


if __name__ == "__main__":
    result = {"storm": storm, "kills": kills}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(result))
