"""Why a training failed, in plain words: from how the trainer ended and the end of its log. Text in, text out."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Final, Protocol

from pixelkit.symptoms import ERRORS, INSTALL, LESS_MAIN_MEMORY, LINES, MACHINE_FULL, MODULES, SIGNALS, Rule


class Ended(Protocol):
    """What diagnose needs to know of a trainer's end; launch.Exit is one."""

    @property
    def returncode(self) -> int:
        """As a process gives it; negative: a signal."""

    @property
    def reason(self) -> str:
        """ "ended", "stopped", "killed", "nonfinite" or "memory"."""

    @property
    def peak_memory(self) -> int:
        """Bytes of main memory; 0: unknown."""

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel killed for want of memory just then."""

    @property
    def memory_note(self) -> str:
        """What the guard of main memory saw."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """`kind` is one word for programs; `what` happened, as the trainer said it; `why`, in plain words; what to `do`."""

    kind: str
    what: str
    why: str
    do: str

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, f"To do: {self.do}") if line)


_FROM_OUTSIDE: Final = {1, 2, 9, 15, 24}
_HEADER = re.compile(r"Traceback \(most recent call last\)")
_CHAINED = re.compile(r"^(?:During handling of|The above exception was)|Original Traceback", re.MULTILINE)
_RANK = re.compile(r"^\[rank\d+\]:\s?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*(?:[A-Z]\w*[a-z]\w*|timeout|gaierror|error)(?:: .*|:)?$")
_LAUNCHER = re.compile(
    r"CalledProcessError: Command .*"
    r"(?:returned non-zero exit status (?P<code>\d+)|died with <Signals\.\w+: (?P<signal>\d+)>)"
    r"|ChildFailedError"
)
_MESSAGE_LINES: Final = 12
_LAST_LINES: Final = 60
_LONGEST: Final = 400


def diagnose(exit: Ended, log_tail: str) -> Diagnosis:  # noqa: A002
    """What a failed training died of. `exit` with code 0 means: it ended, but there is no usable file."""
    if ours := _explain_our_end(exit):
        return ours
    number = -exit.returncode if exit.returncode < 0 else exit.returncode - 128
    if number in _FROM_OUTSIDE:
        return _explain_signal(number, exit)
    errors = read_errors(log_tail)
    lines = log_tail.splitlines()[-_LAST_LINES:]
    if known := _find_rule(ERRORS, errors) or (None if errors else _find_rule(LINES, lines)):
        return known
    if number in SIGNALS or exit.returncode < 0:
        return _explain_signal(number, exit)
    return _admit(exit, errors, lines)


def read_errors(log: str) -> list[str]:
    """The exceptions of the last failure in a log, as `Type: message` with the message's further lines.

    More than one where one came from another ("During handling of the above exception ..."), in the log's order.
    accelerate's own (CalledProcessError), which only says that the trainer failed, is left out.
    """
    lines = [_RANK.sub("", line) for line in log.splitlines()]
    errors: list[str] = []
    starts = [at for at, line in enumerate(lines) if _HEADER.search(line)]
    for start, end in itertools.zip_longest(starts, starts[1:], fillvalue=len(lines)):
        error = _read_error(lines[start:end])
        if error and not _LAUNCHER.search(error):
            above = "\n".join(lines[max(0, start - 3) : start + 1])
            errors = [*errors, error] if _CHAINED.search(above) else [error]
    return errors


def _read_error(block: list[str]) -> str:
    """The exception that ends one traceback; empty where the traceback is cut off."""
    indent = len(block[0]) - len(block[0].lstrip())
    for at in range(1, len(block)):
        line = block[at][indent:] if block[at][:indent].isspace() else block[at]
        if _EXCEPTION.match(line):
            if line.rstrip(":") == "AssertionError":
                line = f"AssertionError: {block[at - 1].strip()}"
            message = itertools.takewhile(str.strip, block[at + 1 : at + _MESSAGE_LINES])
            return "\n".join([line, *message])
    return ""


def trainer_returncode(log: str) -> int | None:
    """The trainer's own exit code, from what accelerate says of it at the log's end; None where it says nothing."""
    for line in reversed(log.splitlines()[-_LAST_LINES:]):
        if found := _LAUNCHER.search(line):
            if found["signal"]:
                return -int(found["signal"])
            return int(found["code"]) if found["code"] else None
    return None


def _find_rule(rules: tuple[Rule, ...], texts: list[str]) -> Diagnosis | None:
    """The last text that a rule knows."""
    for text in reversed(texts):
        for rule in rules:
            if found := re.search(rule.pattern, text, re.MULTILINE):
                return _apply(rule, found, text.strip().splitlines()[0])
    return None


def _apply(rule: Rule, found: re.Match[str], what: str) -> Diagnosis:
    groups = {name: value for name, value in found.groupdict().items() if value}
    module = groups.get("module") or groups.get("also") or groups.get("bnb") or ""
    words = {
        "file": groups.get("file") or groups.get("other") or "see the log",
        "module": module,
        "advice": MODULES.get(module, INSTALL),
    }
    return Diagnosis(kind=rule.kind, what=what[:_LONGEST], why=rule.why.format(**words), do=rule.do.format(**words))


def _explain_our_end(exit: Ended) -> Diagnosis | None:  # noqa: A002
    """Where the log need not be asked: ended by us, or by the kernel for want of memory."""
    if exit.reason == "killed":
        return Diagnosis(
            kind="killed", what="killed as you asked", why="", do="resume from the last state, if one was saved"
        )
    if exit.reason == "nonfinite" or exit.returncode == 65:
        return Diagnosis(
            kind="nonfinite",
            what="the loss is no longer a number (NaN or infinite)",
            why="the weights ran away: mostly a learning rate too high, or fp16 with a base that overflows in it",
            do='lower train.learning_rate, or set train.precision = "bf16" or "no"; the last good checkpoint is kept',
        )
    if exit.reason == "memory":
        return Diagnosis(kind="oom", what=exit.memory_note, why=MACHINE_FULL, do=LESS_MAIN_MEMORY)
    if exit.oom_killed:
        held = f", at {exit.peak_memory / 2**30:.1f} GiB" if exit.peak_memory else ""
        what = f"the kernel killed the trainer for want of memory{held}"
        return Diagnosis(kind="oom", what=what, why="the machine's main memory is full", do=LESS_MAIN_MEMORY)
    return None


def _explain_signal(number: int, exit: Ended) -> Diagnosis:  # noqa: A002
    kind, why, do = SIGNALS.get(number, ("killed", "a signal from outside, or a crash of a library", "resume it"))
    held = f"; it held {exit.peak_memory / 2**30:.1f} GiB" if exit.peak_memory else ""
    return Diagnosis(
        kind=kind, what=f"the trainer was ended by signal {number}", why=why.replace("{held}", held), do=do
    )


def _admit(exit: Ended, errors: list[str], lines: list[str]) -> Diagnosis:  # noqa: A002
    """Nothing that we know: the trainer's own last words."""
    said = [line.strip() for line in lines if line.strip() and not _LAUNCHER.search(line)]
    own = [line for line in said if line.startswith("error: ")]  # engines/diffusers/entry.py
    if errors:
        what = errors[-1].splitlines()[0]
    elif own:
        what = own[-1].removeprefix("error: ")
    elif exit.returncode == 0:
        what = "the trainer ended without an error, but left no model"
    else:
        what = f"the trainer ended with code {exit.returncode}" + (f"; its last line: {said[-1]}" if said else "")
    why = "pixelkit does not know this error; this is the trainer's own word" if errors else ""
    return Diagnosis(kind="unknown", what=what[:_LONGEST], why=why, do="read the end of the run's log.txt")
