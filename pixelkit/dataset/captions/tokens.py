"""How many tokens CLIP reads of a caption, and which words it never sees.

The byte-pair encoding of openai/CLIP (simple_tokenizer.py), so that captions can be checked where transformers is not installed.
The vocabulary is looked for where trainers leave it: there is none in pixelkit.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WINDOW = 75
"""Tokens of a prompt between its start and its end mark."""
HUB = "models--openai--clip-vit-large-patch14"
OPEN_CLIP = "bpe_simple_vocab_16e6.txt.gz"
MERGES_OF_CLIP = 48_894
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@dataclass(frozen=True, kw_only=True)
class Count:
    """`tokens`: how many a caption has; `cut`: the rest from the first word on that does not fit, or empty.

    `least`: the number is a lower bound, because no vocabulary was found: every word is one token or more.
    """

    tokens: int
    cut: str
    least: bool = False


class Tokenizer:
    """Counts tokens. `name` says whose tokens; without `ranks` every word counts as one, which is the least."""

    def __init__(self, name: str, ranks: Mapping[tuple[str, str], int] | None, window: int = WINDOW) -> None:
        self.name = name
        self.window = window
        self._ranks = ranks
        self._bytes = _byte_letters()
        self._pieces = lru_cache(maxsize=1 << 16)(self._split)

    @property
    def exact(self) -> bool:
        """Whether the numbers are the model's own."""
        return self._ranks is not None

    def count(self, caption: str) -> Count:
        """The caption's tokens, and what of it is cut."""
        text = unicodedata.normalize("NFC", caption)
        tokens, cut_from = 0, -1
        for start, word in split_words(text):
            size = len(self._pieces(word))
            if cut_from < 0 and tokens + size > self.window:
                cut_from = start
            tokens += size
        return Count(tokens=tokens, cut=_rest_of(text, cut_from) if cut_from >= 0 else "", least=not self.exact)

    def encode(self, caption: str) -> list[str]:
        """The tokens themselves, as the vocabulary writes them."""
        return [piece for _, word in split_words(unicodedata.normalize("NFC", caption)) for piece in self._pieces(word)]

    def _split(self, word: str) -> tuple[str, ...]:
        letters = [self._bytes[byte] for byte in word.encode()]
        if self._ranks is None:
            return ("".join(letters),)
        pieces = [*letters[:-1], f"{letters[-1]}</w>"]
        while len(pieces) > 1:
            ranked = [(self._ranks.get(pair, -1), index) for index, pair in enumerate(pairwise(pieces))]
            best = min((rank for rank, _ in ranked if rank >= 0), default=None)
            if best is None:
                break
            index = next(index for rank, index in ranked if rank == best)
            pieces[index : index + 2] = ["".join(pieces[index : index + 2])]
        return tuple(pieces)


def split_words(text: str) -> Iterator[tuple[int, str]]:
    """What CLIP takes for a word, small, with its place in the text: letters, one digit, or signs; English endings ('s) apart."""
    small = text.lower()
    if len(small) == len(text):
        signs = list(enumerate(small))
    else:  # a few capitals become two characters
        signs = [(place, sign) for place, capital in enumerate(text) for sign in capital.lower()]
    for blank, run in groupby(signs, key=lambda sign: sign[1].isspace()):
        if blank:
            continue
        places, letters = zip(*run, strict=True)
        piece, at = "".join(letters), 0
        while at < len(piece):
            size = _word_size(piece, at)
            yield places[at], piece[at : at + size]
            at += size


def find_tokenizer(folder: Path | None = None) -> Tokenizer:
    """The one in `folder`; else CLIP's from the hub's cache, where sd-scripts puts it, or from an installed open_clip; else one
    that gives the least number. Raises DataError for a folder without a tokenizer.
    """
    if folder is not None:
        return _read_folder(folder)
    for snapshot in _cached():
        if (snapshot / "merges.txt").is_file():
            return _read_folder(snapshot, "CLIP (openai/clip-vit-large-patch14, from the hub's cache)")
    spec = importlib.util.find_spec("open_clip")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(place, OPEN_CLIP)).is_file():
            lines = gzip.decompress(file.read_bytes()).decode().splitlines()
            return Tokenizer("CLIP (from open_clip)", _rank(lines[1 : MERGES_OF_CLIP + 1]))
    return Tokenizer("no vocabulary of CLIP is here: at least one token a word; --tokenizer DIR counts exactly", None)


def _rest_of(text: str, at: int) -> str:
    """The text from the word (between blanks) in which `at` lies; from the next one where only its comma is cut."""
    if text[at] in ",.;:":
        return text[at:].lstrip(" ,.;:") or text[at:]
    return text[text.rfind(" ", 0, at) + 1 :]


def _read_folder(folder: Path, name: str = "") -> Tokenizer:
    """merges.txt of a CLIPTokenizer, as base models in diffusers' form carry it in tokenizer/."""
    places = [place for place in (folder, folder / "tokenizer") if (place / "merges.txt").is_file()]
    if not places:
        raise DataError(
            f"{folder} holds no merges.txt",
            hint="--tokenizer takes the folder `tokenizer` of a base model in diffusers' form",
        )
    try:
        lines = (places[0] / "merges.txt").read_text("utf-8").splitlines()
        config = places[0] / "tokenizer_config.json"
        length = json.loads(config.read_text("utf-8")).get("model_max_length", 77) if config.is_file() else 77
        return Tokenizer(name or f"the tokenizer in {folder}", _rank(lines), window=min(int(length), 77) - 2)
    except (OSError, ValueError) as error:
        raise DataError(f"{places[0]}: no tokenizer that can be read: {error}") from None


def _rank(lines: list[str]) -> dict[tuple[str, str], int]:
    pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
    return {(pair[0], pair[1]): rank for rank, pair in enumerate(pair for pair in pairs if len(pair) == 2)}


def _cached() -> list[Path]:
    home = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    folder = Path(home).expanduser() / HUB / "snapshots"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _word_size(piece: str, at: int) -> int:
    ending = next((each for each in _ENDINGS if piece.startswith(each, at)), "")
    if ending:
        return len(ending)
    kind = _kind(piece[at])
    if kind == "N":
        return 1
    end = at + 1
    while end < len(piece) and _kind(piece[end]) == kind:
        end += 1
    return end - at


def _kind(sign: str) -> str:
    """L for letters, N for numbers, empty for signs."""
    kind = unicodedata.category(sign)[0]
    return kind if kind in "LN" else ""


@lru_cache(maxsize=1)
def _byte_letters() -> dict[int, str]:
    """openai/CLIP's bytes_to_unicode: every byte as a character that can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {**{byte: chr(byte) for byte in seen}, **{byte: chr(256 + index) for index, byte in enumerate(hidden)}}
