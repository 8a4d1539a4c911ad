"""The diffusers engine's config.toml, its template, and the order of batches. No torch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixelkit.engines.diffusers.examples import Example, find_examples, order_epoch, read_pixels
from pixelkit.engines.diffusers.settings import DatasetSettings, Settings, load_settings, parse_settings
from pixelkit.errors import DataError, RenderError
from pixelkit.render import render

TABLES: dict[str, Any] = {
    "base": "C:\\models\\a \"b\"", "output_dir": "runs/x/output", "output_name": "hero", "seed": 7, "precision": "bf16",
    "dataset": {"images": ["d"], "repeats": [2], "class_images": "", "caption_dropout": 0.1, "batch_size": 4, "workers": 0},
    "network": {"rank": 8, "alpha": 4, "dropout": 0.0, "conv_rank": 0, "conv_alpha": 1.0, "train_text_encoder": False},
    "train": {
        "steps": 100, "gradient_accumulation": 1, "learning_rate": 1e-4, "text_encoder_learning_rate": 5e-5,
        "optimizer": "adamw", "weight_decay": 0.01, "scheduler": "cosine", "warmup_steps": 10, "max_grad_norm": 1.0,
        "min_snr_gamma": 5, "noise_offset": 0.05, "prior_loss_weight": 1.0, "gradient_checkpointing": False,
        "save_every_steps": 0, "compile": False,
    },
    "sample": {
        "prompts": ["a slime, green", "ünïcode \"quoted\"\nnew line"], "negative": "", "every_steps": 0,
        "steps": 20, "guidance": 4.0,
        "seed": 1, "width": 32, "height": 32, "sampler": "dpm++",
    },
    "metadata": {"modelspec.trigger_phrase": "gbstyle", "odd \"key\"": "x"},
}  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> str:
    return render("diffusers", {"config.toml": TABLES}, tmp_path).files["config.toml"].read_text("utf-8")


def test_template_carries_every_value(text: str) -> None:
    settings = parse_settings(text)
    assert isinstance(settings, Settings)
    lists = {"dataset": ("images", "repeats"), "sample": ("prompts",)}
    changed = {table: {key: tuple(TABLES[table][key]) for key in keys} for table, keys in lists.items()}
    expected = {**TABLES, **{table: {**TABLES[table], **values} for table, values in changed.items()}}
    assert asdict(settings) == expected
    assert isinstance(settings.network.alpha, float)
    assert isinstance(settings.train.min_snr_gamma, float)


def test_every_problem_is_told_at_once(text: str) -> None:
    broken = (
        text.replace("rank = 8", "rnak = 8")
        .replace('scheduler = "cosine"', 'scheduler = "cosinus"')
        .replace("learning_rate = 0.0001", 'learning_rate = "1e-4"')
        .replace("steps = 100", "steps = 0")
        .replace("batch_size = 4", "batch_size = 4.0")
        .replace("compile = false", "compile = 0")
        .replace('output_name = "hero"', 'output_name = "../hero"')
    )
    with pytest.raises(RenderError) as caught:
        parse_settings(broken, name="config.toml")
    line = next(number for number, row in enumerate(broken.splitlines(), 1) if row.startswith("rnak"))
    told = str(caught.value)
    assert f"config.toml:{line} [network] rnak: no such key; did you mean rank?" in told
    assert "rank is missing" in told
    assert "must be one of cosine, constant, linear, not 'cosinus'; did you mean cosine?" in told
    assert "learning_rate must be a number, not '1e-4'" in told
    assert "[train] steps must be at least 1, not 0" in told
    assert "batch_size must be a whole number, not 4.0" in told
    assert "compile must be true or false, not 0" in told
    assert "output_name must be a file name without folder" in told
    assert len(caught.value.problems) == 8


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rank = 8", f"rank = 1{'0' * 400}", "must be a whole number"),
        ("learning_rate = 0.0001", "learning_rate = nan", "must be a number"),
        ("dropout = 0.0", "dropout = 1.5", "must be at most 1"),
        ("[metadata]", "[metadata]\nnumber = 3", "must be a table of texts"),
        ("prompts = [", "prompts = [3, ", "must be a list of texts"),
        ("conv_rank = 0\nconv_alpha = 1.0", "conv_rank = 4\nconv_alpha = 0.0", "conv_alpha must be above 0"),
        ("base = ", "base = ''\nx = ", "must not be empty"),
        ("[train]", "[train]]", "not valid TOML"),
        ("[network]", "[net]", "network is missing"),
    ],
)
def test_wrong_values(text: str, old: str, new: str, told: str) -> None:
    assert old in text
    with pytest.raises(RenderError, match=told):
        parse_settings(text.replace(old, new, 1))


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "config.toml", tmp_path / "none.toml", tmp_path):
        with pytest.raises(RenderError, match="cannot read"):
            load_settings(path)


def dataset(**changes: Any) -> DatasetSettings:
    return DatasetSettings(**{**TABLES["dataset"], "batch_size": 2, **changes})


def some_examples(plain: int, wide: int, classes: int, *, repeats: int = 1) -> list[Example]:
    def make(size: tuple[int, int], name: str, *, is_class: bool) -> Example:
        return Example(path=Path(name), caption=name, size=size, is_class=is_class, repeats=1 if is_class else repeats)

    return [
        *(make((16, 16), f"a{i}", is_class=False) for i in range(plain)),
        *(make((24, 16), f"b{i}", is_class=False) for i in range(wide)),
        *(make((16, 16), f"c{i}", is_class=True) for i in range(classes)),
    ]


def test_epoch_holds_each_image_in_batches_of_one_size() -> None:
    examples = some_examples(3, 2, 0, repeats=3)
    epochs = [order_epoch(examples, dataset(), seed=1, epoch=epoch) for epoch in range(2)]
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == sorted([0, 1, 2, 3, 4] * 3)
        assert all(len({examples[index].size for index in batch}) == 1 and len(batch) <= 2 for batch in batches)
        assert len(batches) == 5 + 3  # 9 plain and 6 wide ones, in twos
    assert epochs[0] != epochs[1]
    assert epochs[0] == order_epoch(examples, dataset(), seed=1, epoch=0)
    assert epochs[0] != order_epoch(examples, dataset(), seed=2, epoch=0)


def test_class_images_are_as_many_as_training_images_and_take_turns() -> None:
    examples = some_examples(3, 0, 5, repeats=1)
    drawn = [
        [index for batch in order_epoch(examples, dataset(), seed=1, epoch=epoch) for index in batch if index > 2]
        for epoch in range(5)
    ]
    assert [len(indices) for indices in drawn] == [3] * 5
    assert sorted(index for indices in drawn for index in indices) == sorted([3, 4, 5, 6, 7] * 3)


def test_images_are_read_unchanged_and_checked(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), (255, 0, 128)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" a thing\n", "utf-8")
    found = find_examples(dataset(images=(str(tmp_path),), repeats=(2,)), multiple=8)
    assert [(example.caption, example.size) for example in found] == [("a thing", (16, 8))]
    pixels = read_pixels(found, workers=0)[0]
    assert pixels.shape == (3, 8, 16)
    assert pixels[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, 128 / 127.5 - 1], abs=1e-6)

    Image.new("RGB", (15, 8)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("b")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(b"no png")
    with pytest.raises(DataError) as caught:
        find_examples(dataset(images=(str(tmp_path),), repeats=(2,)), multiple=8)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["b.png", "c.png", "d.png"]
    with pytest.raises(DataError, match="no PNG files"):
        find_examples(dataset(images=(str(tmp_path / "none"),), repeats=(2,)), multiple=8)


def test_hidden_colours_do_not_get_through(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 255, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    found = find_examples(dataset(images=(str(tmp_path),), repeats=(2,)), multiple=8)
    with pytest.raises(DataError, match="see-through"):
        read_pixels(found, workers=1)


def test_checking_a_config_loads_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pixelkit.engines.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    from pixelkit.engines.diffusers import entry, examples, settings

    assert entry.main is not None
    assert examples.order_epoch is not None
    assert settings.load_settings is not None
