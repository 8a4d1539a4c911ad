"""The real package wandb, offline: a run and its resumption, read back from the files that `wandb sync` would send."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WORKER = """
import json, sys
from pathlib import Path
from pixelkit.progress import read_event
from pixelkit.track import Tracker, Wandb

folder, first, last, picture = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
tell = lambda event: print(event.text)
curves = Wandb(folder, project="sprites", mode="offline", config={"train.steps": 6}, tell=tell)
tracker = Tracker(curves, read_metrics=lambda: (), steps_per_epoch=4, tell=tell)
events = [{"event": "begin", "total": 6, "step": first}]
events += [{"event": "step", "step": n, "loss": 1 / n, "lr": 1e-4, "seconds": 0.5} for n in range(first + 1, last + 1)]
events += [{"event": "sample", "step": last, "index": 0, "prompt": "a knight", "path": picture}]
for event in events:
    tracker.take(read_event(json.dumps(event).encode()))
tracker.close("done")
"""


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, a header of 7 bytes, then blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, kept = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            return
        kept += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield Record.FromString(kept)
            kept = b""


def test_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run, picture = tmp_path / "hero-1", tmp_path / "a.png"
    run.mkdir()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(picture)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    for first, last in ((0, 4), (4, 6)):
        command = [sys.executable, "-c", WORKER, str(run), str(first), str(last), str(picture)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr

    curve: dict[int, float] = {}
    pictures, runs = [], []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        for record in read_records(file):
            if record.HasField("run"):
                runs.append((record.run.run_id, record.run.display_name, record.run.project))
            if record.HasField("history"):
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                number = record.history.step.num
                if "loss/current" in items:
                    curve[number] = items["loss/current"]
                pictures += [(number, items["sample/0/caption"])] if "sample/0/caption" in items else []
    assert runs == [("hero-1", "hero-1", "sprites")] * 2
    assert curve == {number: 1 / number for number in range(1, 7)}
    assert pictures == [(4, "a knight"), (6, "a knight")]
