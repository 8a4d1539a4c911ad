"""How fast LoRA trainings are: the documents' flags, sd-scripts' defaults, pixelkit's profile, what `tune` finds.

    python -m bench.train [--out bench] [--cases sd15 sdxl] [--rows documents defaults profile tuned diffusers]
    python -m bench.train --reduced                                   on a processor: small, to see that it works

SD 1.5 at 512 px and SDXL at 1024 px with random weights, which take as long as trained ones; rank 32, UNet only, 40 sprites,
the same images and seed, 8 images per optimizer step in every row. Each row is a training in a process of its own with a
time limit (`--limit`), timed from outside by its steps' clock times, the first quarter left out. What is measured is written
to OUT/train.json and OUT/train.md after each row; a second call goes on with the rows that are missing (`--again`: all).

Bases, sprites and tokenizers are made into `--work` once (SD 1.5 2 GB, SDXL 7 GB). Nothing is downloaded. A machine that
reaches no registry gets its packages by bench/carry.py, which says how.

"share of peak" is the work that the images themselves need, 1.85 TFLOP each for SD 1.5 and 15.5 for SDXL (computed; what
checkpointing repeats is not counted), over the device's dense bf16 peak as its maker gives it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.train_material import CASES, EFFECTIVE_BATCH, Material
from bench.train_rows import TITLES, Bench, as_record, measure
from pixelkit.hardware import detect_machine
from pixelkit.paths import locate_sd_scripts, write_atomically

BF16_PEAK = {"H200": 989, "H100": 989, "A100": 312, "4090": 165, "GB10": 125}  # TFLOP/s, dense
PACKAGES = ("pixelkit", "torch", "accelerate", "diffusers", "transformers", "bitsandbytes", "xformers", "triton")
GRACE = 60  # seconds for a row to end after its limit


def main() -> None:
    """All rows that are missing, then the tables."""
    arguments = read_arguments()
    sd_scripts = locate_sd_scripts(arguments.sd_scripts)
    bench = {
        "work": str(arguments.work.resolve()),
        "steps": arguments.steps,
        "engine": arguments.engine or ("kohya" if sd_scripts else "diffusers"),
        "sd_scripts": str(sd_scripts.path) if sd_scripts else None,
        "tune_minutes": arguments.tune_minutes,
        "tune_steps": arguments.tune_steps,
    }
    if arguments.only:
        run_here(arguments.only, bench, arguments.result)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    file = arguments.out / "train.json"
    about = {"machine": describe_machine(), "date": datetime.now(UTC).date().isoformat(), "versions": read_versions()}
    report = {**about, "bench": {key: bench[key] for key in ("steps", "engine")}, "rows": read_rows(file, about)}
    for case in arguments.cases:
        for row in arguments.rows:
            known = find(report["rows"], case, row)
            if known and not arguments.again and not known["failed"]:
                continue
            print(f"{CASES[case].title}: {TITLES[row]} ...", flush=True)
            found = run_apart(case, row, arguments)
            report["rows"] = [old for old in report["rows"] if (old["case"], old["row"]) != (case, row)] + [found]
            write_atomically(file, json.dumps(report, indent=2) + "\n")
            write_atomically(arguments.out / "train.md", write_markdown(report))
            print(f"    {tell(found)}", flush=True)
    print(write_markdown(report))


def read_arguments() -> argparse.Namespace:
    """The command line; `--reduced` changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="where train.json and train.md go")
    parser.add_argument("--work", type=Path, help="where bases and runs go; default: OUT/work")
    parser.add_argument("--cases", nargs="+", choices=list(CASES))
    parser.add_argument("--rows", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--steps", type=int, help="optimizer steps of 8 images; default 40, reduced 4")
    parser.add_argument("--limit", type=float, default=1200, help="seconds that a row may take")
    parser.add_argument("--tune-minutes", type=float, default=10.0)
    parser.add_argument("--tune-steps", type=int, help="steps of a probe; default 6, reduced 2")
    parser.add_argument("--engine", choices=["kohya", "diffusers"], help="pixelkit's engine; default kohya where it is")
    parser.add_argument("--sd-scripts", type=Path)
    parser.add_argument("--reduced", action="store_true", help="a toy and SD 1.5 at 64 px, few steps")
    parser.add_argument("--again", action="store_true", help="measure also what is measured")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work = arguments.work or arguments.out / "work"
    arguments.cases = arguments.cases or (["toy", "sd15-64"] if arguments.reduced else ["sd15", "sdxl"])
    arguments.steps = arguments.steps or (4 if arguments.reduced else 40)
    arguments.tune_steps = arguments.tune_steps or (2 if arguments.reduced else 6)
    return arguments


def run_apart(case: str, row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row in a process group of its own, ended at the limit with all that it started."""
    result = arguments.work.resolve() / f"{case}-{row}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "bench.train", *sys.argv[1:], "--only", f"{case}:{row}", "--result", str(result)]
    process = subprocess.Popen(argv, start_new_session=True)
    failed = ""
    try:
        process.wait(arguments.limit)
    except subprocess.TimeoutExpired:
        failed = f"not done in {arguments.limit:g} s"
    finally:  # also when this process is asked to end: nothing of the row is left
        end(process)
    if result.is_file() and not failed:
        found: dict[str, Any] = json.loads(result.read_text("utf-8"))
        return found
    return {"case": case, "row": row, "failed": failed or f"ended with {process.returncode}"}


def end(process: subprocess.Popen[bytes]) -> None:
    """The whole group: asked first, then killed."""
    for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        if process.poll() is not None and number == signal.SIGTERM:
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)


def run_here(only: str, bench: dict[str, Any], result: Path) -> None:
    """The row itself: what it needs is made, then it is measured."""
    case, _, row = only.partition(":")
    material = Material(folder=Path(bench["work"]), case=CASES[case])
    sd_scripts = Path(bench["sd_scripts"]) if bench["sd_scripts"] else None
    if row != "diffusers":
        material.make(sd_scripts)
    settings = {key: bench[key] for key in ("steps", "engine", "tune_minutes", "tune_steps")}
    found = measure(Bench(material=material, sd_scripts=sd_scripts, **settings), row)
    write_atomically(result, json.dumps(as_record(found)))


def read_rows(file: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier call on this machine with these versions."""
    if not file.is_file():
        return []
    report = json.loads(file.read_text("utf-8"))
    same = all(report[key] == about[key] for key in ("machine", "versions"))
    rows: list[dict[str, Any]] = report["rows"] if same else []
    return rows


def find(rows: list[dict[str, Any]], case: str, row: str) -> dict[str, Any] | None:
    """A row of the report."""
    return next((found for found in rows if (found["case"], found["row"]) == (case, row)), None)


def describe_machine() -> str:
    """The device with its whole memory: how much is free changes."""
    machine = detect_machine()
    return f"{machine.device}, {machine.memory_gib:.0f} GiB, {machine.cores} cores"


def read_versions() -> dict[str, str]:
    """Of what counts for speed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def tell(row: dict[str, Any]) -> str:
    """One row in a line."""
    if row["failed"]:
        return row["failed"]
    return f"{row['seconds_per_step']} s/step, {row['images_per_second']} images/s, {row['peak_memory_gib']} GiB"


def share_of_peak(row: dict[str, Any], machine: str) -> float | None:
    """Useful work over the device's dense bf16 peak; None where either is unknown."""
    peak = next((peak for name, peak in BF16_PEAK.items() if name in machine), None)
    work = CASES[row["case"]].teraflop
    return row["images_per_second"] * work / peak if peak and work else None


def write_markdown(report: dict[str, Any]) -> str:
    """A table for each case: pace, ratio to the documents' flags, memory, share of the peak, losses."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"# LoRA training, measured on {report['date']}", "", f"{report['machine']}. {versions}.", ""]
    lines += [
        f"{report['bench']['steps']} optimizer steps of {EFFECTIVE_BATCH} images, random weights. By bench/train.py.",
        "",
    ]
    for name, case in CASES.items():
        rows = [row for row in report["rows"] if row["case"] == name]
        if not rows:
            continue
        documents = find(rows, name, "documents") or {"failed": "not measured"}
        lines += [f"## {case.title}", ""]
        lines += ["| | s/step | images/s | x documents | peak memory, GiB | share of peak | mean loss | by quarter |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        notes = []
        for row in sorted(rows, key=lambda row: list(TITLES).index(row["row"])):
            title = TITLES[row["row"]]
            if row["failed"]:
                notes.append(f"- {title}: not measured: {row['failed']}")
                continue
            ratio = "" if documents["failed"] else f"{row['images_per_second'] / documents['images_per_second']:.2f}"
            share = share_of_peak(row, report["machine"])
            cells = [title, row["seconds_per_step"], row["images_per_second"], ratio, row["peak_memory_gib"]]
            cells += [f"{share:.1%}" if share else "", row["mean_loss"], " ".join(map(str, row["losses"]))]
            lines.append(f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
            notes.append(f"- {title}: {'; '.join([row['settings'], *row['notes']])}")
        lines += ["", *notes, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
