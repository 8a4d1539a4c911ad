"""`pixelkit queue`: batches of presets, one after another or one on each GPU, over night."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkit.errors import PresetError
from pixelkit.paths import read_settings, user_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pixelkit.queue.book import Book, Job
    from pixelkit.rundir import Order

RUNS = click.option(
    "--runs",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where run directories, and the queue, lie.",
)
JOB = click.argument("name", metavar="JOB")
JOBS = click.argument("names", metavar="JOB...", nargs=-1, required=True)
MOST_LINES = 20


@click.group()
def queue() -> None:
    """Train many presets, one after another or one on each GPU, and survive whatever happens meanwhile.

    JOB is a job's id, its name, a pattern of names such as 'hero-*', or `latest`.
    """


@queue.command()
@click.argument("presets", metavar="PRESET...", nargs=-1, required=True)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. --set train.steps=100."
)
@click.option(
    "--matrix", multiple=True, metavar="KEY=A,B,...", help="A job for each value; with several, for each combination."
)
@click.option("--priority", type=int, default=0, help="Higher goes first; default 0.")
@click.option("--after", multiple=True, metavar="JOB", help="Only once this job is done.")
@click.option(
    "--gpu-memory", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="Only where so much is free (GiB)."
)
@click.option("--retries", type=click.IntRange(0, 100), default=0, help="Try a failed training again, so many times.")
@click.option(
    "--register", is_flag=True, help="Put each finished model into the registry (`pixelkit models`), in staging."
)
@click.option(
    "--registry",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Which registry; default: the setting, or ./models.",
)
@RUNS
def add(
    *,
    presets: tuple[str, ...],
    overrides: tuple[str, ...],
    matrix: tuple[str, ...],
    priority: int,
    after: tuple[str, ...],
    gpu_memory: float | None,
    retries: int,
    register: bool,
    registry: Path | None,
    folder: Path | None,
) -> None:
    """Add jobs: each PRESET (a file, or a shipped preset's name), at each point of the matrix. All are checked first.

    A job keeps the preset as it is now; the sprites are read when it runs.
    """
    from pixelkit.queue.adding import Wish, plan_jobs
    from pixelkit.queue.book import FOLDER, Book
    from pixelkit.queue.changes import add as add_jobs
    from pixelkit.registry.store import open_registry

    runs = _runs(folder)
    earlier: tuple[int, ...] = ()
    if after:
        with Book.at(runs) as book:
            earlier = tuple(job.id for job in book.find_all(after))
    wish = Wish(
        presets=presets,
        overrides=overrides,
        matrix=matrix,
        priority=priority,
        after=earlier,
        memory_gib=gpu_memory,
        retries=retries,
        registry=str(open_registry(registry).folder) if register or registry else "",
    )
    jobs = plan_jobs(wish, runs / FOLDER / "presets")
    with Book.at(runs, create=True) as book:
        added = add_jobs(book, jobs)
    for job in added[:MOST_LINES]:
        click.echo(f"{job} is waiting")
    if more := added[MOST_LINES:]:
        click.echo(f"... and {len(more)} more, up to {more[-1]}")


@queue.command()
@click.option("--drain", is_flag=True, help="End when nothing is left to do, instead of waiting for new jobs.")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Jobs at once, spread over the GPUs; default: one on each, or one."
)
@click.option("--ray", metavar="ADDRESS", help="Train on the nodes of a Ray cluster: HOST:PORT, or auto (docs/ray.md).")
@RUNS
def run(*, drain: bool, workers: int | None, ray: str | None, folder: Path | None) -> None:
    """Work on the queue. Ctrl-C has running jobs save and stop, to go on next time; once more kills them.

    Killed at any moment, or started twice, it loses no job and runs none twice.
    """
    from pixelkit.queue.book import Book
    from pixelkit.queue.devices import list_devices
    from pixelkit.queue.runner import Runner

    with Book.at(_runs(folder), create=True) as book, ExitStack() as stack:
        if ray is None:
            Runner(book, devices=lambda: list_devices(workers), drain=drain, say=_say).run()
            return
        from pixelkit.queue.ray import on_cluster

        if workers:
            raise PresetError("--workers is for this machine", hint="a cluster takes one job on each of its GPUs")
        devices, command = stack.enter_context(on_cluster(ray))
        Runner(book, devices=devices, job_command=command, drain=drain, say=_say).run()


@queue.command("list")
@click.option("--all", "everything", is_flag=True, help="Every job, not only the latest and the next.")
@click.option("--json", "as_data", is_flag=True, help="All jobs, for programs.")
@click.option("--watch", is_flag=True, help="Keep it on the screen, up to date; Ctrl-C ends.")
@RUNS
def list_command(*, everything: bool, as_data: bool, watch: bool, folder: Path | None) -> None:
    """The jobs in the order of a night: what ended, what runs (progress, time left), what is paused, what comes next."""
    from pixelkit.cli.queue_report import as_json, format_list, read_story
    from pixelkit.queue.book import Book

    with Book.at(_runs(folder)) as book:
        if as_data:
            click.echo(as_json(read_story(book, everything=True)[0], book.needs(open_only=False)))
        elif watch:
            _watch(lambda: format_list(book, everything=everything))
        else:
            click.echo("\n".join(format_list(book, everything=everything)))


@queue.command()
@JOB
@RUNS
def show(name: str, folder: Path | None) -> None:
    """One job: settings, run directory, progress, and all that happened to it (times in UTC)."""
    from pixelkit.cli.queue_report import print_job

    with _open(folder) as book:
        print_job(book, book.find(name))


@queue.command()
@JOB
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the job has ended.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, help="The last so many; 0 = all. Default 100.")
@RUNS
def logs(name: str, *, follow: bool, lines: int, folder: Path | None) -> None:
    """What pixelkit said of a job, then what its trainer printed."""
    from pixelkit.cli.queue_report import print_logs

    with _open(folder) as book, suppress(KeyboardInterrupt):
        print_logs(book, book.find(name), lines=lines, follow=follow)


@queue.command()
@JOBS
@click.option("--now", is_flag=True, help="Kill those that run, instead of having them save and stop.")
@RUNS
def cancel(names: tuple[str, ...], *, now: bool, folder: Path | None) -> None:
    """Give jobs up. Those that run save and stop; their run directories stay, and `queue retry` goes on there."""
    from pixelkit.queue import changes

    with _open(folder) as book:
        jobs = changes.cancel(book, book.find_all(names))
        if now:
            from pixelkit.queue.runner import kill_now

            jobs = [kill_now(book, job) if job.state == "running" else job for job in jobs]
        _tell(jobs, "saves and stops")


@queue.command()
@JOBS
@click.option("--fresh", is_flag=True, help="Anew, in a new run directory, instead of from the last saved state.")
@RUNS
def retry(names: tuple[str, ...], *, fresh: bool, folder: Path | None) -> None:
    """Try jobs again that failed or were cancelled, and with them what was cancelled because of them."""
    from pixelkit.queue import changes

    with _open(folder) as book:
        _tell(changes.retry(book, book.find_all(names), fresh=fresh), "")


@queue.command()
@click.argument("names", metavar="[JOB...]", nargs=-1)
@RUNS
def pause(names: tuple[str, ...], folder: Path | None) -> None:
    """Pass jobs over until `queue resume`; those that run save and stop. Without JOB: begin no job, until `queue resume`."""
    from pixelkit.queue import changes

    with _open(folder) as book:
        if names:
            _tell(changes.pause(book, book.find_all(names)), "saves and pauses")
        else:
            changes.switch(book, "paused", on=True)
            click.echo("the queue is paused; what runs runs on")


@queue.command()
@click.argument("names", metavar="[JOB...]", nargs=-1)
@RUNS
def resume(names: tuple[str, ...], folder: Path | None) -> None:
    """Have paused jobs wait for their turn again; they go on where they were. Without JOB: the whole queue goes on."""
    from pixelkit.queue import changes

    with _open(folder) as book:
        if names:
            _tell(changes.resume(book, book.find_all(names)), "")
        else:
            changes.switch(book, "paused", on=False)
            click.echo("the queue goes on")


@queue.command("save-now")
@JOB
@RUNS
def save_now(name: str, folder: Path | None) -> None:
    """Have a running job save weights and state, and train on."""
    _order(name, folder, "save")


@queue.command("sample-now")
@JOB
@RUNS
def sample_now(name: str, folder: Path | None) -> None:
    """Have a running job draw its sample pictures, and train on."""
    _order(name, folder, "sample")


@queue.command()
@click.option("--done", "state", flag_value="done", default=True, help="Jobs that are done (the default).")
@click.option("--failed", "state", flag_value="failed", help="Jobs that failed or were cancelled.")
@click.option("--all", "state", flag_value="all", help="Both.")
@RUNS
def clear(state: str, folder: Path | None) -> None:
    """Take ended jobs off the list. Run directories stay, and so do jobs that others wait for."""
    from pixelkit.queue.changes import clear as clear_jobs

    states = {"done": ["done"], "failed": ["failed", "cancelled"], "all": ["done", "failed", "cancelled"]}[state]
    with _open(folder) as book:
        click.echo(f"{clear_jobs(book, states)} jobs cleared")


@queue.command()
@click.option("--print", "only_print", is_flag=True, help="Print the unit, write nothing.")
@click.option("--workers", type=click.IntRange(1, 256), help="As for `queue run`.")
@RUNS
def install(*, only_print: bool, workers: int | None, folder: Path | None) -> None:
    """Make `queue run` a service of your own systemd, which starts with the machine. No administrator is needed."""
    from pixelkit.queue.service import ENABLE, install_unit, write_unit

    runs = _runs(folder).resolve()
    if only_print:
        click.echo(write_unit(runs, workers), nl=False)
        return
    click.echo(f"written: {install_unit(runs, workers)}")
    click.echo("enable it, and have it run while you are not logged in:")
    for command in ENABLE:
        click.echo(f"  {command}")


def _runs(folder: Path | None) -> Path:
    """--runs, else the user's setting, else ./runs; pixelkit.ready says the same, and takes longer to load than `list` to run."""
    return folder or user_path(read_settings().get("runs", "runs"))


def _open(folder: Path | None) -> Book:
    from pixelkit.queue.book import Book

    return Book.at(_runs(folder))


def _say(text: str) -> None:
    click.echo(f"{click.style(time.strftime('%H:%M:%S'), dim=True)}  {text}", err=True)


def _tell(jobs: Iterable[Job], while_running: str) -> None:
    for job in jobs:
        word = while_running if job.state == "running" and job.asked and while_running else f"is {job.state}"
        click.echo(f"{job} {word}")


def _order(name: str, folder: Path | None, word: Order) -> None:
    from pixelkit.rundir import RunDir

    with _open(folder) as book:
        job = book.find(name)
    if job.state != "running" or not job.run:
        state = "starting" if job.state == "running" else job.state
        raise PresetError(f"{job} is {state}", hint="only a job that trains can be told so")
    RunDir(path=Path(job.run)).leave_order(word)
    what = {"save": "saves", "sample": "draws its samples"}.get(word, word)
    click.echo(f"{job} {what} after this step; {job.run}")


def _watch(lines: Callable[[], list[str]]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def draw() -> Text:
        return Text.from_ansi("\n".join(lines()), no_wrap=True, overflow="ellipsis")

    with suppress(KeyboardInterrupt), Live(draw(), console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(1)
            live.update(draw(), refresh=True)
