from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pixelkit.errors import EngineError
from pixelkit.queue.book import Book, Job
from pixelkit.queue.changes import NewJob, add
from pixelkit.queue.devices import choose_devices
from pixelkit.queue.ray import ask_for, list_cluster, name_nodes

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


def cluster(*nodes: dict[str, Any]) -> Any:
    rows = [
        {
            "Alive": node.pop("alive", True),
            "NodeID": node.pop("key", f"{number}abcdef0"),
            "NodeManagerHostname": node.pop("host", f"host{number}"),
            "Resources": node,
        }
        for number, node in enumerate(nodes)
    ]
    return SimpleNamespace(nodes=lambda: rows)


def job(folder: Path, **fields: Any) -> Job:
    with Book(folder / "queue.sqlite") as book:
        return add(book, [NewJob(name="a", preset="a", stored="a", **fields)])[0]


def test_each_gpu_of_the_living_takes_one_job() -> None:
    ray = cluster({"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}, {"GPU": 4.0, "alive": False}, {"GPU": 1.0})
    assert [(device.name, device.slots, device.is_gpu) for device in list_cluster(ray)] == [
        ("host0/0", 1, True),
        ("host0/1", 1, True),
        ("host3/0", 1, True),
    ]


def test_without_gpus_each_node_takes_one_job() -> None:
    ray = cluster({"CPU": 16.0, "memory": 32.0 * GIB}, {"memory": 8.0 * GIB}, {"CPU": 8.0, "memory": 4.0 * GIB})
    assert [(one.name, one.total_gib, one.is_gpu) for one in list_cluster(ray)] == [
        ("host0", 32.0, False),
        ("host2", 4.0, False),
    ]


def test_nodes_of_one_host_are_told_apart() -> None:
    ray = cluster({"host": "box", "key": "a" * 20}, {"host": "box", "key": "b" * 20}, {"host": "other"})
    assert [node.name for node in name_nodes(ray)] == ["box-aaaaaa", "box-bbbbbb", "other"]


def test_what_is_asked_of_a_node(tmp_path: Path) -> None:
    nodes = name_nodes(cluster({"CPU": 16.0, "GPU": 2.0, "gpu_memory_gib": 48.0}, {"CPU": 8.0}))
    assert ask_for(job(tmp_path), nodes) == {"num_gpus": 1, "num_cpus": 0}
    assert ask_for(job(tmp_path, gpus=2, memory_gib=19.5), nodes) == {
        "num_gpus": 2,
        "num_cpus": 0,
        "resources": {"gpu_memory_gib": 39},
    }
    with pytest.raises(EngineError, match="needs 3 GPUs of one node; the largest has 2"):
        ask_for(job(tmp_path, gpus=3), nodes)
    processors = name_nodes(cluster({"CPU": 16.0}, {"CPU": 8.0}, {}))
    assert ask_for(job(tmp_path, memory_gib=2.0), processors) == {"num_cpus": 8.0, "memory": 2 * GIB}


def test_memory_is_a_condition_where_a_node_declares_it(tmp_path: Path) -> None:
    declared, silent = {"GPU": 2.0, "gpu_memory_gib": 48.0}, {"GPU": 1.0}
    large = job(tmp_path, memory_gib=30.0)
    assert choose_devices(large, [], list_cluster(cluster(dict(declared))), "runner") is None
    assert choose_devices(large, [], list_cluster(cluster(dict(declared), silent)), "runner") is None
    assert choose_devices(large, [], list_cluster(cluster({**declared, "GPU": 1.0})), "runner") == ("host0/0",)
    assert list_cluster(cluster({"GPU": 1.0}))[0].total_gib == math.inf
