"""Two hundred processes at one registry; and kill -9 before every single step of every kind of change."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "registry_storm.py"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def run(what: str, folder: Path) -> dict[str, Any]:
    tests = SCRIPT.parent.parent
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    done = subprocess.run(
        [sys.executable, SCRIPT, what, folder],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_two_hundred_processes_at_once(tmp_path: Path) -> None:
    found = run("storm", tmp_path)
    said, log = found["said"], found["log"]
    assert sum(said.values()) == 200 and found["codes"] == {"0": 200}, said
    assert said["promote: done"] == 30 and said["pick: done"] == 85, said
    refused = [key for key in said if not key.endswith(": done")]
    assert all(key.startswith("rollback: there is no model of hero before") for key in refused), refused
    assert found["watcher"]["seen"] > 200 and not found["watcher"]["bad"], found["watcher"]
    count = {event: sum(row[0] == event for row in log) for event in ("promote", "rollback")}
    assert count == {"promote": 32, "rollback": said.get("rollback: done", 0)}
    assert said["rollback: done"] > 0
    for (_, (_, left)), (_, (found_there, _)) in itertools.pairwise(log):
        assert found_there == left, "each change begins where the one before it ended"
    assert found["link"] == log[-1][1][1]
    assert not found["problems"]


def test_killed_before_every_step(tmp_path: Path) -> None:
    found = run("kills", tmp_path)
    assert set(found) == {"add", "promote", "rollback", "rollout", "archive"}
    for change, result in found.items():
        assert not result["faults"], (change, result["faults"])
        assert result["kills"] >= 7, (change, result)
        assert set(result["outcomes"]) == {"before", "after"}, (change, result)
