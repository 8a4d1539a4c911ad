"""Preparing sprites, against the loop that the documents give (convert, resize with Lanczos, save), and its memory.

    python bench/data.py FOLDER_OF_SPRITES [--images 200] [--memory 1000 100000]

Prints images per second at 1024x1024 on one core and on all of them, as ratios to that loop within the same run, and the
peak memory of preparing so many images (the folder's sprites, over and over, each a file of its own).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import psutil
from PIL import Image

from pixelkit.dataset import ahead
from pixelkit.dataset.build import Wish, plan_set
from pixelkit.dataset.prepare import prepare

SIDE = 1024


def loop_of_the_documents(files: list[Path], out: Path) -> None:
    """Centre on a transparent square, resize to 1024 with Lanczos, save as PNG."""
    for number, file in enumerate(files):
        image = Image.open(file).convert("RGBA")
        side = max(image.size)
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(out / f"{number}.png")


def nearest_loop(files: list[Path], out: Path) -> None:
    """The same loop with nearest neighbour and as RGB: what one would write by hand."""
    for number, file in enumerate(files):
        image = Image.open(file).convert("RGBA")
        flat = Image.new("RGB", image.size, (128, 128, 128))
        flat.paste(image, mask=image.getchannel("A"))
        flat.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(out / f"{number}.png")


def measure(files: list[Path], folder: Path) -> None:
    """Images per second of each way, twice in turn, the better one counts."""
    source = folder / "source"
    source.mkdir()
    for number, file in enumerate(files):
        shutil.copyfile(file, source / f"{number:06}.png")
    planned = plan_set(source, Wish(base="sdxl")).sprites
    best: dict[str, float] = {}
    sizes: dict[str, int] = {}

    def timed(name: str, work: object, out: Path) -> None:
        out.mkdir(parents=True)
        started = time.perf_counter()
        work()  # type: ignore[operator]
        best[name] = max(best.get(name, 0.0), len(files) / (time.perf_counter() - started))
        sizes[name] = sum(path.stat().st_size for path in out.rglob("*.png")) // len(files)
        shutil.rmtree(out)

    out = folder / "out"
    for _ in range(2):
        timed("the documents' loop", lambda: loop_of_the_documents(files, out), out)
        timed("by hand, nearest, RGB", lambda: nearest_loop(files, out), out)
        with cores(1):
            timed("pixelkit, one core", lambda: prepare(planned, out / "set"), out)
        timed(f"pixelkit, {os.cpu_count()} cores", lambda: prepare(planned, out / "set"), out)
    floor = best["the documents' loop"]
    print(f"{len(files)} sprites to {SIDE}x{SIDE}")
    for name, rate in best.items():
        print(f"  {name:24} {rate:8.1f} images/s  {rate / floor:6.2f} x  {sizes[name] / 1000:7.1f} kB each")


class cores:  # noqa: N801 - reads as a word
    """So many threads for a while."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        self._count = ahead.os.cpu_count
        ahead.os.cpu_count = lambda: self.number

    def __exit__(self, *_: object) -> None:
        ahead.os.cpu_count = self._count


def measure_memory(files: list[Path], number: int, folder: Path) -> None:
    """Peak resident memory of `pixelkit data prepare` of so many images at 256x256 (the disk holds no more)."""
    source = folder / f"many{number}"
    for place, file in enumerate(islice(cycle(files), number)):
        target = source / f"{place // 1000:03}" / f"{place:06}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target) if file.stat().st_dev == folder.stat().st_dev else shutil.copyfile(file, target)
    command = [
        sys.executable,
        "-m",
        "pixelkit",
        "data",
        "prepare",
        str(source),
        "--base",
        "sdxl",
        "--resolution",
        "256",
    ]
    command += ["--out", str(folder / f"set{number}")]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    print(
        f"  {number:7} images: {peak / 2**20:7.0f} MiB at the peak, {number / seconds:6.1f} images/s, exit {process.wait()}"
    )
    shutil.rmtree(source)
    shutil.rmtree(folder / f"set{number}", ignore_errors=True)


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--memory", type=int, nargs="*", default=[1000, 10000])
    given = parser.parse_args()
    files = sorted(given.folder.rglob("*.png"))
    with tempfile.TemporaryDirectory() as folder:
        measure(list(islice(cycle(files[:: max(1, len(files) // given.images)]), given.images)), Path(folder))
        print("memory of `data prepare`")
        for number in given.memory:
            measure_memory(files, number, Path(folder))


if __name__ == "__main__":
    main()
