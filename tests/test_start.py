"""What training starts from: an earlier LoRA brought to a rank, and a base with LoRAs baked into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from made_loras import FC1, RESNET, TO_K, TO_Q, deltas, part, save
from PIL import Image
from test_resolve import plan

from converters import ConversionError, read_lora
from converters.start import Shape, find_rank, fit, read_start
from converters.tensors import read_file
from pixelkit.errors import PresetError, WeightsError
from pixelkit.ready import Choices, make_ready
from pixelkit.rundir import RunDir
from pixelkit.start import make_start, plan_start

if TYPE_CHECKING:
    from pixelkit.plan import Plan

TINY = Path(__file__).parents[1] / "pixelkit" / "tiny" / "weights"


def earlier(folder: Path, *, dtype: str = "F32") -> Path:
    parts = [part(name, rank=3, alpha=1.5, dtype=dtype, seed=seed) for seed, name in enumerate((TO_Q, TO_K, FC1))]
    return save(folder / "earlier.safetensors", *parts, part(RESNET, rank=2, kernel=3, seed=9))


@pytest.mark.parametrize("rank", [3, 4, 8])
@pytest.mark.parametrize("alpha", [1.5, 3.0, 8.0])
def test_a_larger_rank_keeps_what_was_learned(tmp_path: Path, rank: int, alpha: float) -> None:
    source = earlier(tmp_path)
    made = fit(source, tmp_path / "out.safetensors", Shape(rank=rank, alpha=alpha, conv_rank=4, conv_alpha=2.0))
    before, after = deltas(source), deltas(made.path)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], rtol=1e-5, atol=1e-6) for name in before)
    assert made.error < 1e-6
    lora = read_lora(made.path)[1]
    assert {module.rank for module in lora.modules.values()} == {rank, 4}
    assert {module.alpha_value for module in lora.modules.values()} == {alpha, 2.0}
    assert lora.metadata["ss_network_dim"] == str(rank)


def test_new_rows_can_learn(tmp_path: Path) -> None:
    """A row of `down` and a column of `up` that are both 0 would stay so for ever."""
    made = fit(earlier(tmp_path), tmp_path / "out.safetensors", Shape(rank=8, alpha=8.0))
    tensors = read_file(made.path).tensors
    down, up = (tensors[f"{TO_Q}.lora_{side}.weight"].to_float32() for side in ("down", "up"))
    assert np.all(np.any(down[3:] != 0, axis=1))
    assert np.abs(down[3:]).max() <= 5**-0.5
    assert not up[:, 3:].any()
    again = fit(tmp_path / "earlier.safetensors", tmp_path / "again.safetensors", Shape(rank=8, alpha=8.0))
    assert again.path.read_bytes() == made.path.read_bytes()


def test_a_smaller_rank_keeps_the_most(tmp_path: Path) -> None:
    source = earlier(tmp_path)
    made = fit(source, tmp_path / "out.safetensors", Shape(rank=2, alpha=2.0))
    before, after = deltas(source), deltas(made.path)
    for name in after:
        values = np.linalg.svd(before[name].reshape(6, -1), compute_uv=False)
        lost = np.linalg.norm(before[name] - after[name])
        assert lost == pytest.approx(np.linalg.norm(values[2:]), rel=1e-4)
    assert 0 < made.error < 1


def test_what_is_not_trained_is_left_behind(tmp_path: Path) -> None:
    source = earlier(tmp_path)
    made = fit(source, tmp_path / "out.safetensors", Shape(rank=3, alpha=3.0), components=frozenset({"unet"}))
    assert len(made.left_out) == 2
    assert all(name.startswith("unet.") for name in deltas(made.path))
    with pytest.raises(ConversionError, match="none of its modules is trained here"):
        fit(source, tmp_path / "none.safetensors", Shape(rank=3, alpha=3.0), components=frozenset({"transformer"}))
    assert find_rank(read_start(source)) == 3


def test_the_plan_takes_the_files_rank_unless_told(tmp_path: Path) -> None:
    earlier(tmp_path)
    text = '[network]\nstart_from = "earlier.safetensors"\n'
    made = plan(tmp_path, text, base="sd15")
    assert (made.network.rank, made.network.start_from) == (3, tmp_path / "earlier.safetensors")
    assert made.sources["network.rank"] == "the rank of earlier.safetensors"
    assert any("3x3 convolutions are left behind" in warning for warning in made.warnings)
    assert not any("text encoder part" in warning for warning in made.warnings), "sd15 trains it"
    without = plan(tmp_path, f"{text}[train]\ntext_encoder = false\n", base="sd15")
    assert any("text encoder part is left behind" in warning for warning in without.warnings)
    assert plan(tmp_path, f"{text}rank = 16\n", base="sd15").network.rank == 16


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            'start_from = "gone.safetensors"',
            PresetError,
            "p.toml:7 [network] start_from = gone.safetensors: no such file",
        ),
        ('start_from = "p.toml"', WeightsError, "start_from"),
        ('kind = "loha"\nstart_from = "earlier.safetensors"', PresetError, "a loha cannot go on from an earlier file"),
    ],
)
def test_what_cannot_be_gone_on_from(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    earlier(tmp_path)
    with pytest.raises(error) as caught:
        plan(tmp_path, f"[network]\n{text}\n", base="sd15")
    assert said in str(caught.value)


def test_a_lora_for_another_base(tmp_path: Path) -> None:
    save(tmp_path / "xl.safetensors", part(TO_K, inputs=2048))
    with pytest.raises(PresetError, match=r"xl\.safetensors is a LoRA for SDXL"):
        plan(tmp_path, '[network]\nstart_from = "xl.safetensors"\n', base="sd15")


def made_for_tiny(path: Path) -> Path:
    """A LoRA on one layer of pixelkit-tiny."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = read_file(TINY / "unet" / "diffusion_pytorch_model.safetensors").tensors[f"{layer}.weight"]
    out, inputs = weight.shape
    return save(path, part(f"lora_unet_{layer.replace('.', '_')}", out=out, inputs=inputs, alpha=2.0))


def test_loras_go_into_the_base_once(tmp_path: Path) -> None:
    made_for_tiny(tmp_path / "style.safetensors")
    text = 'base_loras = ["style.safetensors:0.5", "style.safetensors"]\n'
    file = tmp_path / "p.toml"
    plan(tmp_path, base="pixelkit-tiny")
    file.write_text(text + file.read_text("utf-8"), "utf-8")
    made = replan(file)
    assert [strength for _, strength in made.base_loras] == [0.5, 1.0]
    run = RunDir(path=tmp_path / "run")
    start = make_start(made, run, tmp_path / "runs")
    assert start.base
    assert start.base == plan_start(made, run, tmp_path / "runs").base
    assert "style.safetensors at 0.5, style.safetensors at 1" in start.remarks[0]
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    before = read_file(TINY / "unet" / "diffusion_pytorch_model.safetensors").tensors
    after = read_file(start.base / "unet" / "diffusion_pytorch_model.safetensors").tensors
    change = after[layer].to_float32() - before[layer].to_float32()
    wanted = 1.5 * next(iter(deltas(tmp_path / "style.safetensors").values()))
    assert np.allclose(change, wanted, atol=np.abs(wanted).max() / 300), "within what the base's half floats can hold"
    assert [name for name in before if not np.array_equal(before[name].data, after[name].data)] == [layer]
    assert start.settle(made.base).location == str(start.base)
    assert make_start(made, run, tmp_path / "runs").remarks == (), "made once"
    assert sorted(path.name for path in start.base.parent.iterdir()) == [start.base.name]


def replan(file: Path) -> Plan:
    return make_ready(str(file), Choices(engine="diffusers")).plan


@pytest.fixture(autouse=True)
def _sprites(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for number in range(4):
        Image.new("RGBA", (16, 16), (number * 40, 90, 20, 255)).save(tmp_path / "s" / f"orc{number}.png")


def test_loras_that_are_not_there(tmp_path: Path) -> None:
    plan(tmp_path, base="pixelkit-tiny")
    file = tmp_path / "p.toml"
    file.write_text('base_loras = ["gone.safetensors:0.5"]\n' + file.read_text("utf-8"), "utf-8")
    with pytest.raises(PresetError, match=r"p.toml:1 base_loras: gone.safetensors: no such file"):
        replan(file)
    file.write_text(file.read_text("utf-8").replace(":0.5", ":7"), "utf-8")
    with pytest.raises(PresetError) as caught:
        replan(file)
    assert "a strength is between -2 and 2" in str(caught.value)
