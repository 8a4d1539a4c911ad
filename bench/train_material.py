"""What bench.train trains on: bases with random weights, tokenizers, sprites and presets, made once into a folder."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.slow import kohya_bases

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
SPRITES = 40
SIZE = 32  # pixels of a sprite
REPEATS = 100  # one epoch outlasts every row, so that a mean loss is one over all steps
EFFECTIVE_BATCH = 8
RANK = 32
LEARNING_RATE = 1e-4
SEED = 42
TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A base at a resolution. `teraflop`: work of a LoRA step for one image, forward and backward, computed; None for a toy.

    `stock`: sd-scripts' own loader can load it. `gib`: memory that it takes at least.
    """

    name: str
    title: str
    family: str
    resolution: int
    script: str = "train_network"
    teraflop: float | None = None
    stock: bool = True
    gib: float = 1.0


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case(name="sd15", title="SD 1.5 at 512 px", family="sd15", resolution=512, teraflop=1.85, gib=8),
        Case(
            name="sdxl", title="SDXL at 1024 px", family="sdxl", resolution=1024, script="sdxl_train_network",
            teraflop=15.5, gib=20,
        ),
        Case(name="sd15-64", title="SD 1.5 at 64 px (reduced)", family="sd15", resolution=64, gib=9),
        Case(name="toy", title="a toy of SD 1.5's shape at 64 px (reduced)", family="sd15", resolution=64, stock=False),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Material:
    """Where everything lies below one folder."""

    folder: Path
    case: Case

    @property
    def base(self) -> Path:
        """The base model: SDXL one file, else a diffusers folder."""
        name = "sd15" if self.case.name.startswith("sd15") else self.case.name
        return self.folder / "bases" / (f"{name}.safetensors" if self.case.family == "sdxl" else name)

    @property
    def sprites(self) -> Path:
        """PNG files with captions."""
        return self.folder / "sprites"

    @property
    def tokenizers(self) -> Path:
        """For sd-scripts' tokenizer_cache_dir."""
        return self.folder / "tokenizers"

    def make(self, sd_scripts: Path | None) -> None:
        """All of it that is not there yet. An unfinished base is made again."""
        if not self.sprites.is_dir():
            make_sprites(self.sprites)
        for name in TOKENIZERS:
            if not (self.tokenizers / name / "special_tokens_map.json").is_file():
                kohya_bases.make_tokenizer(self.tokenizers / name)
        done = self.base.with_name(f"{self.base.name}.done")
        if done.is_file():
            return
        self.base.parent.mkdir(parents=True, exist_ok=True)
        if self.case.family == "sdxl":
            if sd_scripts is None:
                raise SystemExit("the SDXL base is written by sd-scripts' own code: --sd-scripts PATH")
            subprocess.run([sys.executable, kohya_bases.__file__, str(self.base)], cwd=sd_scripts, check=True)
        elif self.case.name == "toy":
            kohya_bases.make_toy(self.base)
        else:
            kohya_bases.make_sd15(self.base)
        done.touch()

    def write_preset(self, *, steps: int, engine: str, seed: int = SEED) -> Path:
        """A preset that leaves to the machine's profile how the effective batch is split and all else that is tuned."""
        kohya = f'[kohya]\ntokenizer_cache_dir = "{self.tokenizers}"\n' if engine == "kohya" and self.case.stock else ""
        text = f"""\
name = "{self.case.name}-{engine}"
base = "{self.base}"
family = "{self.case.family}"
engine = "{engine}"

[dataset]
path = "{self.sprites}"
trigger = "benchmark style"
background = "#282c34"
resolution = {self.case.resolution}
repeats = {REPEATS}

[network]
rank = {RANK}

[train]
steps = {steps}
effective_batch = {EFFECTIVE_BATCH}
learning_rate = {LEARNING_RATE}
scheduler = "constant"
text_encoder = false
min_snr_gamma = 0
seed = {seed}

[export]
formats = ["kohya"]
{kohya}"""
        file = self.folder / f"{self.case.name}-{engine}.toml"
        file.write_text(text, encoding="utf-8")
        return file


def make_sprites(folder: Path) -> None:
    """Symmetric figures of a few colours on a transparent ground, always the same."""
    folder.mkdir(parents=True)
    dice = random.Random(SEED)
    for number in range(SPRITES):
        sprite = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
        colors = [(*(dice.randrange(256) for _ in range(3)), 255) for _ in range(4)]
        for _ in range(30):
            x, y = dice.randrange(4, SIZE // 2), dice.randrange(2, SIZE - 2)
            width, height, color = dice.randrange(1, 6), dice.randrange(1, 6), dice.choice(colors)
            for left in (x, SIZE - x - width):
                sprite.paste(color, (left, y, left + width, y + height))
        sprite.save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"a figure, number {number}", encoding="utf-8")
