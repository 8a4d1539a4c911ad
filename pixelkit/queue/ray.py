"""Jobs on a Ray cluster: `python -m pixelkit.queue.ray ADDRESS BOOK ID ATTEMPT` in place of a job's process.

The book stays on this machine, and so does, for each job that runs, one light process: it asks Ray for a node, has the job
trained there, and writes into the book what it is told. A runner cannot tell it from a job's own process, so that all
that holds of those holds here: it may be killed, watched over by the next runner, asked to stop. When it is gone, Ray ends its
actor, and the training saves and stops.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixelkit.dataset.spread import connected
from pixelkit.errors import EngineError, Interrupted, PixelkitError
from pixelkit.memory import GIB
from pixelkit.paths import write_atomically
from pixelkit.queue.attempts import Outcome, settle
from pixelkit.queue.book import Book
from pixelkit.queue.devices import Device
from pixelkit.queue.job import carry_out
from pixelkit.queue.life import mark_of, own_life
from pixelkit.queue.node import TRAIN, Errand, Look, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pixelkit.queue.book import Job
    from pixelkit.queue.job import Pulse

GPU_MEMORY: Final = "gpu_memory_gib"
"""What a node declares with `ray start --resources`, of all its GPUs together."""
LOOK_EVERY: Final = 1.0
ANSWER: Final = 30.0
"""Seconds to wait for an answer before asking again."""


@contextmanager
def on_cluster(address: str) -> Iterator[tuple[Callable[[], Sequence[Device]], tuple[str, ...]]]:
    """A Runner's `devices` and `job_command` for a cluster. Raises EngineError: no Ray, no cluster, no node for jobs."""
    with connected(address) as ray:
        if not list_cluster(ray):
            raise EngineError(
                f"no node of the cluster at {address} takes jobs",
                hint=f"`ray start --address={address}` on a machine with GPUs",
            )
        yield partial(list_cluster, ray), (sys.executable, "-m", "pixelkit.queue.ray", address)


def list_cluster(ray: Any) -> tuple[Device, ...]:
    """Each GPU of the nodes that live, or, where none has one, each node that offers processors: one job on each."""
    nodes = name_nodes(ray)
    if any(node.gpus for node in nodes):
        return tuple(
            Device(
                name=f"{node.name}/{number}",
                slots=1,
                free_gib=node.gpu_memory_gib / node.gpus,
                total_gib=node.gpu_memory_gib / node.gpus,
                is_gpu=True,
            )
            for node in nodes
            for number in range(node.gpus)
        )
    return tuple(
        Device(name=node.name, slots=1, free_gib=node.memory_gib, total_gib=node.memory_gib, is_gpu=False)
        for node in nodes
        if node.cpus
    )


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node, and what it offers. Where no node declares its GPUs' memory, it counts as enough."""

    key: str
    name: str
    cpus: float
    gpus: int
    memory_gib: float
    gpu_memory_gib: float


def name_nodes(ray: Any) -> list[Node]:
    """By their hosts; of several on one host each has the beginning of its key."""
    living = [node for node in ray.nodes() if node["Alive"]]
    undeclared = 0.0 if any(GPU_MEMORY in node["Resources"] for node in living) else math.inf
    hosts = Counter(node["NodeManagerHostname"] for node in living)
    found = []
    for node in sorted(living, key=lambda one: (one["NodeManagerHostname"], one["NodeID"])):
        host, offers = node["NodeManagerHostname"], node["Resources"]
        found.append(
            Node(
                key=node["NodeID"],
                name=host if hosts[host] == 1 else f"{host}-{node['NodeID'][:6]}",
                cpus=offers.get("CPU", 0.0),
                gpus=int(offers.get("GPU", 0)),
                memory_gib=offers.get("memory", 0) / GIB,
                gpu_memory_gib=offers.get(GPU_MEMORY, undeclared),
            )
        )
    return found


def ask_for(job: Job, nodes: Sequence[Node]) -> dict[str, Any]:
    """What Ray has to find on one node. Raises EngineError where no node could ever offer it."""
    most = max((node.gpus for node in nodes), default=0)
    if most:
        if job.gpus > most:
            raise EngineError(f"{job} needs {job.gpus} GPUs of one node; the largest has {most}")
        options: dict[str, Any] = {"num_gpus": job.gpus, "num_cpus": 0}
        if job.memory_gib and any(node.gpu_memory_gib < math.inf for node in nodes):
            options["resources"] = {GPU_MEMORY: math.ceil(job.memory_gib * job.gpus)}
        return options
    cores = min((node.cpus for node in nodes if node.cpus), default=1.0)
    return {"num_cpus": cores, "memory": int((job.memory_gib or 0) * GIB)}


def train_on(address: str, book: Path, arguments: tuple[str, ...], job: Job, pulse: Pulse) -> str:
    """Have a job trained on a node. Returns the model's path."""
    for left in book.parent.glob(f"seen-{job.id}-*"):
        left.unlink(missing_ok=True)
    marker, token = (book.parent / f"seen-{job.id}-{job.attempt}").resolve(), secrets.token_hex(8)
    errand = Errand(
        job=job,
        runs=pulse.runs.resolve(),
        marker=marker,
        token=token,
        mark=f"{mark_of(book, job.id, job.attempt)}:on-node",
        arguments=arguments,
        threads=os.environ.get("OMP_NUM_THREADS", ""),
    )
    write_atomically(marker, token)
    try:
        with connected(address) as ray:
            return _Attempt(ray, errand, pulse, book).run()
    finally:
        marker.unlink(missing_ok=True)


class _Attempt:
    def __init__(self, ray: Any, errand: Errand, pulse: Pulse, book: Path) -> None:
        self._ray = ray
        self._errand = errand
        self._pulse = pulse
        self._book = book
        self._place = 0
        self._run = errand.job.run

    def run(self) -> str:
        actor = self._start()
        end = self._follow(actor)
        if end["kind"] == "done":
            return str(end["model"])
        if end["kind"] == "stopped":
            raise Interrupted("on the node")
        if end["kind"] == "died":
            self._give_back("its process was killed; goes on from the last saved state", counts=True)
        error = PixelkitError(end["reason"], hint=end.get("hint", ""))
        error.exit_code = end["exit_code"]
        raise error

    def _start(self) -> Any:
        ray, job = self._ray, self._errand.job
        nodes = name_nodes(ray)
        # Ray would kill the training with the actor; it shall save first.
        spare = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "false"}}
        wanted = next((node for node in nodes if node.name == job.devices.split("/")[0]), None)
        if wanted and job.gpus == 1:
            near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(wanted.key, soft=True)
            options = {**ask_for(job, nodes), "scheduling_strategy": near}
        else:
            options = ask_for(job, nodes)
        self._pulse.tell(phase="waiting for a node")
        actor = ray.remote(Worker).options(runtime_env=spare, max_restarts=0, **options).remote()
        try:
            name = ray.get(actor.start.remote(self._errand))
        except ray.exceptions.RayError as error:
            self._lose(error)
        if isinstance(name, PixelkitError):
            raise name
        print(f"on node {name}", flush=True)
        self._pulse.tell(phase=f"starting on {name}")
        self._key = ray.get(actor.__ray_call__.remote(_find_node), timeout=ANSWER)
        return actor

    def _follow(self, actor: Any) -> Mapping[str, Any]:
        errors = self._ray.exceptions
        while True:
            try:
                time.sleep(LOOK_EVERY)
                look: Look = self._ray.get(actor.look.remote(self._place), timeout=ANSWER)
                self._pass_on(look)
                if look.end:
                    return look.end
            except KeyboardInterrupt:
                actor.stop.remote()
            except (errors.ActorUnavailableError, errors.GetTimeoutError):
                continue
            except errors.RayError as error:
                self._lose(error)

    def _pass_on(self, look: Look) -> None:
        if look.text:
            sys.stdout.buffer.write(look.text)
            sys.stdout.buffer.flush()
            self._place += len(look.text)
        news = dict(look.news)
        if news.get("run", self._run) != self._run:
            self._run = news["run"]
            self._pulse.tell_now(run=self._run, planned_gib=news.get("planned_gib"))
        for told in ("run", "planned_gib"):
            news.pop(told, None)
        if news:
            self._pulse.tell(**news)

    def _lose(self, error: Exception) -> None:
        """The node is gone, or only the actor on it."""
        living = {node.key for node in name_nodes(self._ray)}
        key = getattr(self, "_key", "")
        print(f"{type(error).__name__}: {error}".splitlines()[0], flush=True)
        if key in living:
            self._give_back("its process was killed; goes on from the last saved state", counts=True)
        self._give_back("its node was lost; goes on from the last saved state elsewhere", counts=False)

    def _give_back(self, reason: str, *, counts: bool) -> None:
        """Back to the jobs that wait: nobody has asked it to stop, and it has not failed."""
        job = self._errand.job
        with Book(self._book) as book:
            outcome = Outcome(kind="died", reason=reason, counts=counts)
            settle(book, job.id, job.attempt, str(own_life()), outcome)
        raise Interrupted(reason)


def _find_node(_worker: Worker) -> str:
    import ray  # noqa: PLC0415 - on the node

    return str(ray.get_runtime_context().get_node_id())


def main() -> None:
    """Started by a runner. What stands before ADDRESS is what a node's Python is to run instead of a training."""
    *arguments, address, book, number, attempt = sys.argv[1:]
    work = partial(train_on, address, Path(book), tuple(arguments) or TRAIN)
    sys.exit(carry_out(Path(book), int(number), int(attempt), work))


if __name__ == "__main__":
    main()
