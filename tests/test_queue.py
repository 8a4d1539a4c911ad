"""The queue's book: turns, claims, dependencies, states, and that of many at once only one gets a job. No process is started."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pixelkit.errors import PresetError, StorageError
from pixelkit.queue import changes
from pixelkit.queue.attempts import MOST_DEATHS, Outcome, adopt, begin, claim, report, settle, take_untold
from pixelkit.queue.book import Book, Job
from pixelkit.queue.changes import NewJob, add
from pixelkit.queue.devices import Device, choose_devices, make_environment
from pixelkit.queue.life import Life, own_life

if TYPE_CHECKING:
    from pathlib import Path

NEW = NewJob(name="hero", preset="hero.toml", stored="stored.toml")
DONE = Outcome(kind="done", model="m.safetensors")
FAILED = Outcome(kind="failed", exit_code=7, reason="it diverged", retry_after=0)
DIED = Outcome(kind="died", reason="killed")


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "runs" / ".queue" / "queue.sqlite")


def take(book: Book, runner: str = "me") -> Job | None:
    return claim(book, runner, lambda _job, _taken: ("cpu",))


def start(book: Book) -> Job:
    job = take(book)
    assert job
    begun = begin(book, job.id, job.attempt, "h|b|n|7|1")
    assert begun
    return begun


def finish(book: Book, outcome: Outcome, job: Job | None = None) -> Job:
    job = job or start(book)
    ended = settle(book, job.id, job.attempt, job.process, outcome)
    assert ended
    return ended


def states(book: Book) -> list[str]:
    return [job.state for job in book.jobs("1 ORDER BY id")]


def test_turns_go_by_priority_then_age(book: Book) -> None:
    add(book, [replace(NEW, name="a"), replace(NEW, name="b", priority=2), replace(NEW, name="c", priority=2)])
    add(book, [replace(NEW, name="d", priority=-1)])
    assert [job.name for job in iter(lambda: take(book), None)] == ["b", "c", "a", "d"]


def test_a_job_goes_on_where_all_it_comes_after_is_done(book: Book) -> None:
    first, second = add(book, [replace(NEW, name="a"), replace(NEW, name="b")])
    add(book, [replace(NEW, name="c", after=(first.id, second.id), priority=9)])
    one, other = start(book), start(book)
    assert take(book) is None
    finish(book, DONE, one)
    assert take(book) is None
    finish(book, DONE, other)
    third = take(book)
    assert third and third.name == "c"


def test_what_comes_after_a_failed_job_is_cancelled_and_comes_back_with_it(book: Book) -> None:
    (first,) = add(book, [replace(NEW, name="a")])
    (second,) = add(book, [replace(NEW, name="b", after=(first.id,))])
    add(book, [replace(NEW, name="c", after=(second.id,))])
    assert finish(book, FAILED).state == "failed"
    assert states(book) == ["failed", "cancelled", "cancelled"]
    assert [job.reason for job in book.jobs("id > 1 ORDER BY id")] == [
        "job 1 (a) failed",
        "job 2 (b) was cancelled",
    ]
    with pytest.raises(PresetError, match=r"job 1 \(a\) is failed"):
        add(book, [replace(NEW, name="d", after=(first.id,))])
    with pytest.raises(PresetError, match="comes after job 1"):
        changes.retry(book, book.find_all(["b"]))
    changes.retry(book, book.find_all(["a", "b"]))
    assert states(book) == ["waiting", "waiting", "waiting"]
    assert [finish(book, DONE).name for _ in range(3)] == ["a", "b", "c"]


def test_a_failed_training_is_tried_again_and_a_bad_preset_is_not(book: Book) -> None:
    add(book, [replace(NEW, retries=1), replace(NEW, name="bad", retries=5)])
    again = finish(book, FAILED)
    assert (again.state, again.retries) == ("waiting", 0)
    assert finish(book, replace(FAILED, exit_code=3), begin_next(book, "bad")).state == "failed"
    time.sleep(0.01)
    last = finish(book, FAILED)
    assert (last.state, last.exit_code, last.reason) == ("failed", 7, "it diverged")


def begin_next(book: Book, name: str) -> Job:
    job = claim(book, "me", lambda one, _taken: ("cpu",) if one.name == name else None)
    assert job
    begun = begin(book, job.id, job.attempt, "h|b|n|8|1")
    assert begun
    return begun


def test_a_retry_waits_longer_each_time(book: Book) -> None:
    add(book, [replace(NEW, retries=3)])
    outcome = replace(FAILED, retry_after=40.0)
    waits = []
    for _ in range(3):
        job = finish(book, outcome)
        waits.append(round((job.not_before - time.time()) / 40))
        assert take(book) is None, "not yet"
        with book.change() as db:
            db.execute("UPDATE jobs SET not_before = 0")
    assert waits == [1, 2, 4]


def test_only_the_process_of_the_claimed_attempt_may_write(book: Book) -> None:
    add(book, [NEW])
    lost = take(book)
    assert lost
    assert settle(book, lost.id, lost.attempt, "", DIED), "it never began"
    assert begin(book, lost.id, lost.attempt, "h|b|n|1|1") is None, "too late"
    job = start(book)
    assert job.attempt == lost.attempt + 1
    assert begin(book, job.id, job.attempt, "h|b|n|2|1") is None, "one process for each attempt"
    assert report(book, lost.id, lost.attempt, step=5) == "lost"
    assert report(book, job.id, job.attempt, step=6, total=9) == ""
    assert settle(book, job.id, lost.attempt, job.process, DONE) is None
    assert settle(book, job.id, job.attempt, "", DIED) is None, "taken up meanwhile"
    assert finish(book, DONE, job).state == "done"
    assert settle(book, job.id, job.attempt, job.process, DONE) is None, "settled once"
    current = book.job(job.id)
    # The trainer may have gone on to its end unseen.
    assert current and (current.step, current.total, current.model) == (9, 9, "m.safetensors")


def test_a_killed_job_waits_again_but_not_for_ever(book: Book) -> None:
    add(book, [NEW])
    for death in range(1, MOST_DEATHS):
        job = finish(book, DIED)
        assert (job.state, job.deaths, job.retries) == ("waiting", death, 0)
    got_further = start(book)
    report(book, got_further.id, got_further.attempt, step=10)
    assert finish(book, DIED, got_further).deaths == 1, "it had got further"
    for _ in range(MOST_DEATHS - 2):
        assert finish(book, DIED).state == "waiting"
    last = finish(book, DIED)
    assert last.state == "failed" and "killed 5 times" in last.reason


def test_deaths_of_the_machine_or_by_order_are_not_held_against_a_job(book: Book) -> None:
    add(book, [NEW])
    assert finish(book, replace(DIED, counts=False)).deaths == 0
    job = start(book)
    with book.change() as db:
        db.execute("UPDATE jobs SET asked = 'stop'")
    assert finish(book, DIED, job).deaths == 0


@pytest.mark.parametrize(
    ("order", "outcome", "state"),
    [
        ("cancel", Outcome(kind="stopped"), "cancelled"),
        ("cancel", DONE, "done"),
        ("cancel", DIED, "cancelled"),
        ("pause", Outcome(kind="stopped"), "paused"),
        ("pause", FAILED, "failed"),
        ("pause", DIED, "paused"),
        (None, Outcome(kind="stopped"), "waiting"),
        (None, Outcome(kind="held", reason="its run was stopped"), "paused"),
    ],
)
def test_how_an_attempt_ends(book: Book, order: str | None, outcome: Outcome, state: str) -> None:
    add(book, [NEW])
    job = start(book)
    if order:
        (asked,) = getattr(changes, order)(book, [job])
        assert (asked.state, asked.asked) == ("running", order)
        assert report(book, job.id, job.attempt) == order
    ended = finish(book, outcome, job)
    assert ended.state == state
    assert not (ended.process or ended.runner or ended.asked or ended.devices)


def test_waiting_jobs_are_cancelled_paused_and_resumed_at_once(book: Book) -> None:
    jobs = add(book, [replace(NEW, name="a"), replace(NEW, name="b")])
    changes.pause(book, jobs)
    assert states(book) == ["paused", "paused"] and take(book) is None
    assert book.count_left(most_gpus=1, most_memory_gib=8) == 0
    changes.resume(book, jobs[:1])
    changes.cancel(book, jobs[1:])
    assert states(book) == ["waiting", "cancelled"]
    assert book.count_left(most_gpus=1, most_memory_gib=8) == 1


def test_the_whole_queue_is_paused(book: Book) -> None:
    add(book, [NEW])
    assert changes.switch(book, "paused", on=True) and not changes.switch(book, "paused", on=True)
    assert take(book) is None
    changes.switch(book, "paused", on=False)
    assert take(book)


def test_what_a_drained_queue_leaves(book: Book) -> None:
    """What is paused, too large for this machine, or comes after one of these keeps no runner waiting."""
    (paused, large, _) = add(
        book, [replace(NEW, name="p"), replace(NEW, name="l", memory_gib=80), replace(NEW, name="n")]
    )
    add(book, [replace(NEW, name="pp", after=(paused.id,)), replace(NEW, name="ll", after=(large.id,))])
    changes.pause(book, [paused])
    assert book.count_left(most_gpus=1, most_memory_gib=24) == 1
    assert book.count_left(most_gpus=1, most_memory_gib=96) == 3


def test_retry_resumes_or_begins_anew(book: Book) -> None:
    (job,) = add(book, [NEW])
    with pytest.raises(PresetError, match="is waiting"):
        changes.retry(book, [job])
    begun = start(book)
    report(book, begun.id, begun.attempt, run="/runs/hero-1", step=3, total=9)
    failed = finish(book, FAILED, begun)
    (again,) = changes.retry(book, [failed])
    assert (again.state, again.run, again.step, again.exit_code) == ("waiting", "/runs/hero-1", 3, None)
    done = finish(book, DONE)
    with pytest.raises(PresetError, match="is done"):
        changes.retry(book, [done])
    (anew,) = changes.retry(book, [done], fresh=True)
    assert (anew.state, anew.run, anew.step, anew.model) == ("waiting", "", 0, "")


def test_names_are_unique_and_found(book: Book) -> None:
    jobs = add(book, [NEW, NEW])
    assert [job.name for job in jobs] == ["hero", "hero-2"]
    assert add(book, [NEW])[0].name == "hero-3"
    assert book.find("2") == book.find("hero-2")
    assert book.find("latest").name == "hero-3"
    assert [job.id for job in book.find_all(["hero*", "1"])] == [1, 2, 3]
    with pytest.raises(PresetError, match="no such job") as caught:
        book.find("heroo-2")
    assert "hero-2" in caught.value.hint


def test_clear_keeps_what_others_wait_for_and_never_uses_an_id_again(book: Book) -> None:
    (first,) = add(book, [replace(NEW, name="a")])
    finish(book, DONE)
    add(book, [replace(NEW, name="b", after=(first.id,))])
    assert changes.clear(book, ["done"]) == 0
    finish(book, DONE)
    assert changes.clear(book, ["done", "failed"]) == 2
    assert add(book, [NEW])[0].id == 3
    assert [one.what for one in book.happenings(1)][-1] == "done", "the log stays"


def test_each_end_is_told_once(book: Book) -> None:
    add(book, [NEW, NEW])
    finish(book, DONE)
    finish(book, FAILED)
    assert [job.state for job in take_untold(book)] == ["done", "failed"]
    assert take_untold(book) == []
    assert changes.switch(book, "drained", on=True) and not changes.switch(book, "drained", on=True)
    add(book, [NEW])
    assert changes.switch(book, "drained", on=True)


def test_of_many_claims_at_once_each_gets_another_job(book: Book) -> None:
    add(book, [replace(NEW, name=str(number)) for number in range(60)])
    taken: list[int] = []

    def claim_all() -> None:
        with Book(book.path) as own:
            while job := take(own, threading.current_thread().name):
                taken.append(job.id)

    threads = [threading.Thread(target=claim_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 61))


def test_many_open_a_new_book_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def open_book() -> None:
        try:
            with Book(tmp_path / "queue.sqlite") as own:
                add(own, [NEW])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_book) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Book(tmp_path / "queue.sqlite") as own:
        assert len(own.jobs()) == 8


def test_a_broken_or_later_book_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="cannot open the queue"):
        Book(tmp_path / "broken.sqlite")
    with Book(tmp_path / "later.sqlite") as book, book.change() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="later pixelkit"):
        Book(tmp_path / "later.sqlite")
    with pytest.raises(StorageError, match="there is no queue"):
        Book.at(tmp_path)


def test_adopted_once(book: Book) -> None:
    add(book, [NEW])
    job = start(book)
    assert adopt(book, job.id, runner="me", heir="heir")
    assert not adopt(book, job.id, runner="me", heir="other")


def test_a_process_is_known_by_more_than_its_number() -> None:
    own = own_life()
    now = time.time()
    assert Life.read(str(own)) == own and own.is_near and own.is_alive(0, now)
    assert not replace(own, started="1").is_alive(now, now), "a number used again"
    assert not replace(own, pid=2**22 + 1).is_alive(now, now)
    before = replace(own, boot="before the restart")
    assert not before.is_alive(now, now) or not own.boot
    elsewhere = replace(own, host="other", boot="other")
    assert elsewhere.is_alive(now - 10, now) and not elsewhere.is_alive(now - 1000, now)
    container = replace(own, namespace="pid:[1]")
    assert container.is_alive(now - 10, now) and not container.is_alive(now - 1000, now)


GPUS = tuple(Device(name=str(n), slots=1, free_gib=20, total_gib=24, is_gpu=True) for n in range(2))


def test_each_gpu_has_one_job_whoever_runs_it(book: Book) -> None:
    add(book, [NEW] * 3)
    got = [claim(book, runner, lambda job, taken: choose_devices(job, taken, GPUS, "?")) for runner in ("a", "b", "c")]
    assert [job.devices if job else None for job in got] == ["0", "1", None]


def test_of_the_processor_each_runner_has_its_own(book: Book) -> None:
    cpu = (Device(name="cpu", slots=1, free_gib=8, total_gib=8, is_gpu=False),)
    add(book, [NEW] * 4)

    def take_for(runner: str) -> Job | None:
        return claim(book, runner, lambda job, taken: choose_devices(job, taken, cpu, runner))

    assert [bool(take_for(runner)) for runner in ("a", "b", "a", "b")] == [True, True, False, False]
    assert make_environment(cpu) == {}


def test_memory_decides_where(book: Book) -> None:
    devices = (replace(GPUS[0], free_gib=4), replace(GPUS[1], slots=2))
    add(
        book,
        [
            replace(NEW, name="huge", memory_gib=30),
            replace(NEW, name="a", memory_gib=14),
            replace(NEW, name="b", memory_gib=14),
            replace(NEW, name="c", memory_gib=3),
        ],
    )
    got = [claim(book, "me", lambda job, taken: choose_devices(job, taken, devices, "me")) for _ in range(3)]
    assert [(job.name, job.devices) if job else None for job in got] == [("a", "1"), ("c", "0"), None]
    assert make_environment(devices) == {"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_an_estimate_never_bars_an_empty_device(book: Book) -> None:
    (job,) = add(book, [NEW])
    assert choose_devices(replace(job, planned_gib=30.0), (), GPUS, "me") == ("0",)
    busy = (replace(GPUS[0], free_gib=2), replace(GPUS[1], free_gib=2))
    assert choose_devices(replace(job, planned_gib=10.0), (), busy, "me") is None


def test_a_job_for_two_gpus_waits_for_both(book: Book) -> None:
    add(book, [replace(NEW, name="one"), replace(NEW, name="two", gpus=2, priority=0), replace(NEW, name="three")])

    def take_next() -> Job | None:
        return claim(book, "me", lambda job, taken: choose_devices(job, taken, GPUS, "me"))

    first = take_next()
    assert first and first.name == "one"
    assert take_next() is None, "the second GPU is kept for it"
    settle(book, first.id, first.attempt, "", DONE)
    both = take_next()
    assert both and (both.name, both.devices) == ("two", "0,1")
