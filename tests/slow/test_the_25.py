"""The 25 things that sd-scripts does in silence and that must never reach a user of pixelkit.

Each test has two halves: what sd-scripts does (a change there fails the test: the detour can go), then how pixelkit tells or
protects. Without sd-scripts only the second half runs. 15, 16, 18 to 22 and 24 need trainings: test_the_25_training.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
from calls import DATA, TOP, call, check, refuse, run_poisoned
from PIL import Image
from test_every_key_arrives import make_plan, rendered

from pixelkit import paths, pipeline
from pixelkit.engines.kohya.options import verify_config, verify_dataset_config
from pixelkit.ready import Choices, make_ready

DATASET = "[[datasets]]\nresolution = 64\nbatch_size = 1\n[[datasets.subsets]]\nimage_dir = 'i'\n"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What sd-scripts' own functions answered, by topic; None where it is absent."""
    found = paths.locate_sd_scripts()
    return stock.ask(found.path, tmp_path_factory.mktemp("facts")) if found else None


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: eleven captioned sprites, one without caption."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sprites").mkdir()
    for number in range(12):
        Image.fromarray(np.full((16, 16, 4), 10 + number, dtype=np.uint8)).save(tmp_path / "sprites" / f"s{number}.png")
        if number:
            (tmp_path / "sprites" / f"s{number}.txt").write_text("a thing")
    return tmp_path


def verify(text: str) -> str:
    """What pixelkit finds in a configuration file before a trainer reads it."""
    Path("config.toml").write_text(text, "utf-8")
    return "\n".join(map(str, verify_config(Path("config.toml"), "train_network")))


# --- 1 to 6: the configuration


@pytest.mark.usefixtures("folder")
class TestConfiguration:
    def read(self, facts: Any, name: str) -> Any:
        assert facts["config"]["right"] == {"learning_rate": 1e-4, "cache_latents": False, "mixed_precision": "bf16"}
        return facts["config"][name]

    def test_01_unknown_key(self, facts: Any) -> None:
        if facts:
            assert self.read(facts, "unknown_key")["learning_rate"] == 2e-6, "its default, without a word"
        assert "config.toml:2 [train] learning_ratee: no such option of train_network; did you mean" in verify(
            stock.CONFIGS["unknown_key"]
        )
        code, said = check(f"{TOP}{DATA}[train]\nlearning_ratee = 1e-4\n")
        assert code == 3 and "p.toml:6 [train] learning_ratee: no such key; did you mean learning_rate?" in said

    def test_02_false_in_quotes_is_true(self, facts: Any) -> None:
        if facts:
            assert bool(self.read(facts, "text_for_a_switch")["cache_latents"]) is True
        assert "write false without quotes" in verify(stock.CONFIGS["text_for_a_switch"])
        code, said = check(f'{TOP}{DATA}[train]\nshuffle_caption = "false"\n')
        assert code == 3 and "must be true or false; remove the quotes" in said

    def test_03_quoted_number(self, facts: Any) -> None:
        if facts:
            assert self.read(facts, "quoted_number")["learning_rate"] == "1e-4", "text, where a number is due"
        assert "write 1e-4 without quotes" in verify(stock.CONFIGS["quoted_number"])
        code, said = check(f'{TOP}{DATA}[train]\nlearning_rate = "1e-4"\n')
        assert code == 3 and "must be a number; remove the quotes: 1e-4" in said

    def test_04_illegal_choice(self, facts: Any) -> None:
        if facts:
            assert self.read(facts, "illegal_choice")["mixed_precision"] == "fp32"
        assert '"fp32" is none of no, fp16, bf16' in verify(stock.CONFIGS["illegal_choice"])
        code, said = check(f'{TOP}{DATA}[train]\nprecision = "fp32"\n')
        assert code == 3 and "must be one of 'auto', 'no', 'bf16' or 'fp16'" in said

    def test_05_byte_order_mark(self, facts: Any) -> None:
        if facts:
            assert self.read(facts, "byte_order_mark")["learning_rate"] == 2e-6, "the first key is lost"
        assert "starts with a byte order mark" in verify(stock.CONFIGS["byte_order_mark"])
        code, said = check(f"\ufeff{TOP}{DATA}")
        assert code == 0 and "h: lora on pixelkit-tiny" in said, "a preset may have one, and no key is lost"

    def test_06_two_level_table(self, facts: Any) -> None:
        if facts:
            assert self.read(facts, "two_levels")["learning_rate"] == 2e-6
        assert "tables within tables are dropped" in verify(stock.CONFIGS["two_levels"])
        code, said = check(f"{TOP}{DATA}[train.rates]\nlearning_rate = 1e-4\n")
        assert code == 3 and "[train] rates: no such key" in said


# --- 7 to 14, 17: captions, pixels, latents


def prepare(folder: Path, pixels: np.ndarray[Any, Any], *, base: str = "sd15") -> np.ndarray[Any, Any]:
    """One sprite through `pixelkit data prepare`, proved by `pixelkit data check`."""
    (folder / "one").mkdir()
    Image.fromarray(pixels).save(folder / "one" / "a.png")
    said = call(
        "data", "prepare", "one", "--base", base, "--resolution", 128, "--background", "#000000", "--out", "set"
    )
    assert said.exit_code == 0, said.output
    proof = call("data", "check", "set", "--base", base)
    assert proof.exit_code == 0, proof.output
    (image,) = Path("set").rglob("*.png")
    return np.asarray(Image.open(image).convert("RGB"))


def judge_raw(folder: Path, width: int, height: int) -> tuple[int, str]:
    """`pixelkit data check` of a folder that was not prepared."""
    (folder / "raw").mkdir()
    columns = np.arange(width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    Image.fromarray(columns).save(folder / "raw" / "a.png")
    result = call("data", "check", "raw", "--base", "sd15", "--resolution", 128)
    return result.exit_code, result.output


def checkerboard(width: int, height: int) -> np.ndarray[Any, Any]:
    board = (np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(4, 2)
    board[..., 3] = 255
    return board


def test_07_captions_beside_the_images_are_missed(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["captions"] == [""], "trained on an empty caption, though a .txt file lies there"
    assert rendered(make_plan(folder, "", base="sd15"), folder)["general"]["caption_extension"] == ".txt"
    assert "[kohya] caption_extension" in refuse(folder, 'caption_extension = ".caption"')
    code, said = check(TOP + DATA)
    assert code == 0 and "1 of 12 sprites have no .txt caption" in said


def test_08_enlarged_with_lanczos(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["pixels"]["colours_after_enlarging"] > 100, "of two colours"
    image = prepare(folder, checkerboard(24, 24))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 2
    assert image.shape[0] % 64 == image.shape[1] % 64 == 0
    code, said = judge_raw(folder, 256, 256)
    assert code == 4 and "not pixel-true" in said


def test_09_cropped_off_the_grid(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["pixels"]["first_column_after_crop"] == 4, "half a block of 8 is cut off"
    image = prepare(folder, checkerboard(9, 8))
    assert image.shape[0] % 64 == image.shape[1] % 64 == 0
    code, said = judge_raw(folder, 72, 64)
    assert code == 4 and "not pixel-true" in said


def test_10_colours_hidden_under_transparency(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["pixels"]["hidden_pixel"] == [255, 0, 255]
    hidden = checkerboard(16, 16)
    hidden[:8] = (255, 0, 255, 0)
    assert (prepare(folder, hidden)[:32] == 0).all(), "the background, here black"


def test_11_resized_without_buckets(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["pixels"]["resized_without_buckets"] == [128, 128], "of 64 x 64"
    dataset = rendered(make_plan(folder, "", base="sd15"), folder)["dataset"]
    assert dataset["enable_bucket"] is True and dataset["bucket_no_upscale"] is True
    assert "[kohya] enable_bucket" in refuse(folder, "enable_bucket = false")


def latents(folder: Path, *overrides: str, method: str = "lora") -> str:
    """The name of the folder that a run keeps its latents in."""
    Path("p.toml").write_text(TOP + DATA, "utf-8")
    ready = make_ready("p.toml", Choices(engine="diffusers", overrides=overrides, runs=folder / "runs"))
    prepared = pipeline.prepare_images(ready.plan.dataset, folder / f"set{len(list(folder.iterdir()))}")
    return pipeline.latents_folder(replace(ready, plan=replace(ready.plan, method=method)), prepared).name  # type: ignore[arg-type]


def test_12_stale_latents_after_a_new_resolution(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["latents"]["accepted_for_another_resolution"], "those of 64 x 64 serve 128 x 128"
    assert latents(folder) == latents(folder)
    assert latents(folder) != latents(folder, "dataset.resolution=64")


def test_13_stale_latents_after_an_edit(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["latents"]["accepted_after_an_edit"]
    before = latents(folder)
    Image.new("RGBA", (16, 16), (200, 100, 50, 255)).save(folder / "sprites" / "s3.png")
    assert latents(folder) != before


def test_14_caches_of_dreambooth_and_sdxl_collide(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["latents"]["names"]["train_db"] == facts["latents"]["names"]["sdxl_train"]
    assert latents(folder) != latents(folder, method="dreambooth")


def test_17_a_vae_of_nan_poisons_the_cache(facts: Any, folder: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("sd_scripts")
    assert facts["latents"]["poisoned_values"] and facts["latents"]["poisoned_accepted"], (
        "kept, and taken by later runs"
    )
    code, said = run_poisoned(folder, "vae", "encoder.conv_in.bias")
    assert code == 7 and "error (nonfinite)" in said and "latents" in said
    assert not list((folder / "runs").rglob("*.npz"))


def test_23_base_weights_train_the_wrong_modules(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["base_weights"] == [192, 227]
    said = refuse(folder, 'base_weights = ["earlier.safetensors"]')
    assert "[kohya] base_weights" in said and "base_loras" in said


def test_25_misspelt_interpolation_in_a_subset(facts: Any, folder: Path) -> None:
    if facts:
        assert facts["interpolation"] == {"taken": "nearst", "is_bilinear": True, "is_nearest": False}
    Path("dataset.toml").write_text(DATASET + 'resize_interpolation = "nearst"\n', "utf-8")
    (problem,) = verify_dataset_config(Path("dataset.toml"))
    assert 'resize_interpolation: "nearst" is none of lanczos, nearest' in str(problem)
    assert "[kohya] resize_interpolation" in refuse(folder, 'resize_interpolation = "nearst"')
