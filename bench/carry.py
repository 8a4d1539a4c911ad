"""What a bare CUDA machine lacks, carried to it: wheels and sd-scripts in parts, for a machine that reaches no registry.

    python -m bench.carry pack FOLDER [--part-mib 40] [--python 3.12]      where PyPI is, in this project's environment
    python3 bench/carry.py unpack FOLDER --to PLACE                        there, as often as parts arrive
    PYTHONPATH=PLACE/site python3 -m bench.train --sd-scripts PLACE/sd-scripts ...

`pack` takes the packages of the `train` extra as they are installed here, with all that they need, but for what such a
machine has: PyTorch and what belongs to it (`--without` names more). FOLDER then holds parts that are no larger than
`--part-mib`, so that they can travel one at a time; `unpack` keeps those it is given, and installs once all are there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

MIB = 2**20
ROOT = Path(__file__).parents[1]
PARTS, ABOUT = "parts", "carried.json"
THERE = ("torch", "torchvision", "triton", "numpy", "setuptools", "pip", "nvidia-", "cuda-", "jax")
LEFT_OUT = (".git", "docs", "tests", "__pycache__")


def list_needs(extra: str, without: tuple[str, ...]) -> dict[str, str]:
    """Names and versions of pixelkit's extra and of everything below it, as installed here."""
    found: dict[str, str] = {}
    open_ends: list[str] = importlib.metadata.requires("pixelkit") or []
    wanted = [
        parse(line) for line in open_ends if "extra ==" not in line or f"extra == '{extra}'" in line.replace('"', "'")
    ]
    while wanted:
        name = wanted.pop()
        if name in found or name.startswith(without):
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or an extra of it
        needs = importlib.metadata.requires(name) or []
        wanted += [parse(line) for line in needs if "extra ==" not in line]
    return found


def parse(requirement: str) -> str:
    """The name in a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found[0].lower().replace("_", "-")


def pack(folder: Path, sd_scripts: Path, *, python: str, part: int, without: tuple[str, ...]) -> None:
    """Download the wheels for x86-64 Linux, and cut them and sd-scripts into parts."""
    needs = list_needs("train", without)
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)] + [
        "manylinux2014_x86_64",
        "manylinux1_x86_64",
    ]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [word for name in platforms for word in ("--platform", name)]
    with tempfile.TemporaryDirectory() as place:
        wheels = Path(place) / "wheels"
        pip = [find_pip(), "-m", "pip"]
        for name, version in sorted(needs.items()):
            named = ["--no-deps", "-q", f"{name}=={version}"]
            if subprocess.run(
                [*pip, "download", *target, "-d", str(wheels), *named], capture_output=True, check=False
            ).returncode:
                # There is only source: what is built here is good there where it is pure Python.
                subprocess.run([*pip, "wheel", "-w", str(wheels), *named], check=True)
        archive = Path(place) / "carried.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            if bound := [path.name for path in wheels.iterdir() if "aarch64" in path.name]:
                sys.exit(f"only for another processor: {', '.join(bound)}")
            tar.add(wheels, "wheels")
            tar.add(
                sd_scripts, "sd-scripts", filter=lambda member: None if Path(member.name).name in LEFT_OUT else member
            )
        data = archive.read_bytes()
        sizes = sorted(((path.stat().st_size, path.name) for path in wheels.iterdir()), reverse=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pieces = [data[start : start + part] for start in range(0, len(data), part)]
    about = {"parts": len(pieces), "sha256": hashlib.sha256(data).hexdigest(), "python": python, "packages": needs}
    for number, piece in enumerate(pieces):
        place_of_part = folder / f"{number:02d}"
        place_of_part.mkdir()
        (place_of_part / f"carried.{number:02d}").write_bytes(piece)
        (place_of_part / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
    for size, name in sizes[:5]:
        print(f"{size / MIB:6.1f} MiB  {name}")
    print(f"{len(needs)} packages and sd-scripts: {len(data) / MIB:.1f} MiB in {len(pieces)} parts below {folder}")


def find_pip() -> str:
    """A Python that has pip: this one, else the system's."""
    for python in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or ""):
        if (
            python
            and subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
        ):
            return python
    sys.exit("there is no pip here: install it, for instance with `python -m ensurepip`")


def unpack(folder: Path, place: Path) -> bool:
    """Keep the parts below `folder`; once all are there, install them to PLACE/site and PLACE/sd-scripts. Whether it did."""
    kept = place / PARTS
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("carried.*")):
        shutil.copy(path, kept / path.name)
    about = json.loads((kept / ABOUT).read_text("utf-8"))
    parts = sorted(kept.glob("carried.[0-9]*"))
    if len(parts) < about["parts"]:
        print(f"{len(parts)} of {about['parts']} parts are here")
        return False
    data = b"".join(path.read_bytes() for path in parts)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        sys.exit("the parts do not belong together: pack again, and carry all of them")
    archive = place / "carried.tar.gz"
    archive.write_bytes(data)
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    wheels = sorted(map(str, (place / "wheels").glob("*.whl")))
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "-q"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(place / "site"), *wheels], check=True
    )
    print(f"{len(wheels)} packages are in {place / 'site'}, sd-scripts in {place / 'sd-scripts'}")
    return True


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--part-mib", type=int, default=40)
    packing.add_argument("--python", default="3.12", help="the Python there")
    packing.add_argument("--without", nargs="*", default=[], metavar="NAME", help="what else such a machine has")
    packing.add_argument("--sd-scripts", type=Path)
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "unpack":
        unpack(arguments.folder, arguments.to)
        return
    from pixelkit.paths import locate_sd_scripts  # noqa: PLC0415 - pixelkit's own needs are not there before `unpack`

    found = locate_sd_scripts(arguments.sd_scripts)
    if found is None:
        sys.exit("sd-scripts is not found: --sd-scripts PATH")
    without = (*THERE, *arguments.without)
    pack(arguments.folder, found.path, python=arguments.python, part=arguments.part_mib * MIB, without=without)


if __name__ == "__main__":
    main()
