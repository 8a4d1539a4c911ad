"""What `pixelkit run` costs beside the same `accelerate launch` by hand: uv run python bench/overhead.py [--pairs 3] [PRESET]

For each pair, in turns: the preset through `pixelkit run`, then the very command line that its run directory recorded
(command.txt), its output thrown away. The trainer's work is the same in both, so the difference is pixelkit's own:
imports, checks, preparing the sprites, watching, shipping. Printed: seconds of each, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(arguments: argparse.Namespace) -> None:
    """Run the pairs and print the medians."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        command = [
            sys.executable,
            "-m",
            "pixelkit",
            "run",
            arguments.preset,
            "--runs",
            str(runs),
            "--set",
            f"train.steps={arguments.steps}",
        ]
        ours, by_hand = [], []
        for pair in range(arguments.pairs):
            started = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            ours.append(time.perf_counter() - started)
            run = Path(done.stdout.splitlines()[-1]).parent.parent
            shutil.rmtree(run / "output")
            started = time.perf_counter()
            subprocess.run(
                ["sh", "-c", (run / "command.txt").read_text()],
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )
            by_hand.append(time.perf_counter() - started)
            print(f"pair {pair + 1}: pixelkit run {ours[-1]:.1f} s, by hand {by_hand[-1]:.1f} s", flush=True)
        median, floor = statistics.median(ours), statistics.median(by_hand)
        print(
            f"median: pixelkit run {median:.1f} s, by hand {floor:.1f} s: {median - floor:+.1f} s, ratio {median / floor:.3f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="quickstart")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    measure(parser.parse_args())
