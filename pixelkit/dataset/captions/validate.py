"""Captions of a whole set checked: what training would stumble over is an error, what it would learn wrongly a warning."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pixelkit.dataset.captions.coordinates import is_coordinates
from pixelkit.dataset.captions.entries import show_path
from pixelkit.dataset.captions.terms import find_spellings
from pixelkit.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pixelkit.dataset.captions.entries import Entry
    from pixelkit.dataset.captions.tokens import Tokenizer

SHORTEST, LONGEST = 20, 200
COMMON = 0.8
"""A phrase that so many captions of a set have says nothing of one of them."""
SHOWN = 60
_EMPTY_WORDS: Final = frozenset(
    "a an and art artwork asset background bit character color colour drawing game icon illustration image in item object of on"  # noqa: SIM905
    " photo picture pixel pixelart pixelated png retro sprite style the this thing transparent white with".split()
)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was found, in the order of the files. `captions`: how many could be read."""

    captions: int
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def validate(source: Path, entries: Sequence[Entry], tokenizer: Tokenizer, *, trigger: str = "") -> Findings:
    """Check all captions of a set.

    Errors: no caption, an empty one, not UTF-8, control characters, 20 to 200 characters exceeded (a caption of coordinates may
    be longer), the trigger missing. Warnings: words that the text encoder never sees, several lines, a byte order mark,
    captions that are repeated or say nothing of their sprite, terms written in several ways.
    """
    readable = [entry for entry in entries if entry.text]
    findings = Findings(captions=len(readable))
    for entry in entries:
        where = show_path(entry.file if entry.text is not None or entry.trouble else entry.image, source)
        if problem := _check_file(entry, where):
            findings.errors.append(problem)
            continue
        _check_text(entry.text or "", where, trigger, findings)
        _check_lines(entry, where, findings)
        _check_tokens(entry.text or "", where, tokenizer, findings)
    _check_repeats(readable, source, findings)
    _check_generic(readable, source, trigger, findings)
    _check_terms(readable, source, findings)
    return findings


def _check_file(entry: Entry, where: str) -> Problem | None:
    if entry.trouble:
        return Problem(where=where, what=entry.trouble, hint="save it as UTF-8")
    if entry.text is None:
        return Problem(where=where, what="has no caption", hint="--mode path or template writes one")
    if not entry.text:
        return Problem(where=where, what="is empty", hint="--mode path or template writes it")
    return None


def _check_text(text: str, where: str, trigger: str, findings: Findings) -> None:
    length = len(text)
    if length < SHORTEST:
        findings.errors.append(
            Problem(
                where=where, what=f"{length} characters, {SHORTEST} at least", hint="say subject, style and details"
            )
        )
    elif length > LONGEST and not is_coordinates(text):
        findings.errors.append(
            Problem(where=where, what=f"{length} characters, {LONGEST} at most", hint="leave out details")
        )
    if trigger and trigger.lower() not in text.lower():
        findings.errors.append(
            Problem(
                where=where,
                what=f"lacks the trigger {trigger}",
                hint="or set dataset.trigger, which adds it in training",
            )
        )
    strange = sorted({f"U+{ord(sign):04X}" for sign in text if not sign.isprintable() and not sign.isspace()})
    if strange or "\ufffd" in text:
        shown = ", ".join(strange) or "U+FFFD, left by a wrong encoding"
        findings.errors.append(Problem(where=where, what=f"holds characters that nobody sees: {shown}"))


def _check_lines(entry: Entry, where: str, findings: Findings) -> None:
    text = entry.text or ""
    if "\n" in text or "\r" in text:
        findings.warnings.append(
            Problem(
                where=where, what="has several lines", hint="sd-scripts reads the first one only; pixelkit joins them"
            )
        )
    if entry.file.read_bytes().startswith(b"\xef\xbb\xbf"):
        findings.warnings.append(
            Problem(
                where=where, what="begins with a byte order mark", hint="sd-scripts reads it as part of the first word"
            )
        )


def _check_tokens(text: str, where: str, tokenizer: Tokenizer, findings: Findings) -> None:
    count = tokenizer.count(text)
    if not count.cut:
        return
    cut = count.cut if len(count.cut) <= SHOWN else f"{count.cut[:SHOWN]}..."
    findings.warnings.append(
        Problem(
            where=where,
            what=f"{'at least ' if count.least else ''}{count.tokens} tokens, {tokenizer.window} are read; cut is: {cut}",
            hint="put first what matters; sd-scripts reads more with [kohya] max_token_length = 150 or 225",
        )
    )


def _check_repeats(entries: Sequence[Entry], source: Path, findings: Findings) -> None:
    same: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        same[" ".join((entry.text or "").lower().split())].append(entry)
    for group in same.values():
        if len(group) > 1:
            findings.warnings.append(
                Problem(
                    where=show_path(group[0].file, source),
                    what=f"the same caption as {_name_some(group[1:], source)}: {_shorten(group[0].text or '')}",
                    hint="say what sets them apart",
                )
            )


def _check_generic(entries: Sequence[Entry], source: Path, trigger: str, findings: Findings) -> None:
    phrases = [_phrases(entry.text or "") for entry in entries]
    counts = Counter(phrase for each in phrases for phrase in set(each))
    common = {phrase for phrase, count in counts.items() if len(entries) >= 5 and count >= COMMON * len(entries)}
    for entry, own in zip(entries, phrases, strict=True):
        words = {word for phrase in own if phrase not in common for word in phrase.replace("-", " ").split()}
        telling = {
            word for word in words if word not in _EMPTY_WORDS and word != trigger.lower() and not word.isdigit()
        }
        if not telling:
            findings.warnings.append(
                Problem(
                    where=show_path(entry.file, source),
                    what=f"says nothing of this sprite: {_shorten(entry.text or '')}",
                    hint="name its subject",
                )
            )


def _check_terms(entries: Sequence[Entry], source: Path, findings: Findings) -> None:
    for term in find_spellings(entry.text or "" for entry in entries):
        (most, _), (other, _) = term.ways[:2]
        ways = ", ".join(f'"{way}" ({count})' for way, count in term.ways)
        findings.warnings.append(
            Problem(
                where=_name_some([entries[number] for number in term.rare], source),
                what=f"one term in {len(term.ways)} ways: {ways}",
                hint=f'if they mean the same: --mode replace --regex --find "{_as_word(other)}" --replace "{most}"',
            )
        )


def _as_word(text: str) -> str:
    return rf"\b{re.escape(text)}\b".replace("\\ ", " ").replace("\\-", "-")


def _phrases(text: str) -> list[str]:
    return [phrase.strip(" .").lower() for phrase in text.split(",") if phrase.strip(" .")]


def _name_some(entries: Sequence[Entry], source: Path) -> str:
    more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
    return f"{show_path(entries[0].file, source)}{more}"


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
