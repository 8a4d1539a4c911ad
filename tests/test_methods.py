"""Methods and kinds of networks: the script, the module and the arguments that each becomes, and where one cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_every_key_arrives import make_plan, rendered

from pixelkit.engines.kohya import adapter as kohya
from pixelkit.engines.kohya.effective import LORA
from pixelkit.engines.kohya.options import load_table
from pixelkit.errors import PresetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BASES = {"sd15": "sd15", "sd2": "sd21", "sdxl": "sdxl", "sd3": "sd35", "flux": "flux-dev"}
ROWS = [(method, family) for method, scripts in kohya.SCRIPTS.items() for family in scripts]


@pytest.mark.parametrize(("method", "family"), ROWS)
def test_every_method_of_every_family_renders(tmp_path: Path, method: str, family: str) -> None:
    """rendered() holds every option against the script's own table and the rules."""
    made = make_plan(tmp_path, "", base=BASES[family], method=method)
    config = rendered(made, tmp_path)["config"]
    script = kohya.script_of(made)
    assert script in load_table().scripts
    assert ("network_module" in config) == (script in LORA)
    assert ("token_string" in config) == (made.makes == "embedding")
    assert not {"fp8_base", "fp8_base_unet"} & config.keys() or method == "lora"


def test_methods_without_a_script(tmp_path: Path) -> None:
    made = make_plan(tmp_path, "", base="flux-dev", method="textual-inversion")
    assert any("textual-inversion: not for flux" in problem.what for problem in kohya.check(made, None))
    tiny = make_plan(tmp_path, "", base="tiny-sd", method="finetune")
    assert any("sd-scripts cannot load the layout of tiny-sd" in problem.what for problem in kohya.check(tiny, None))


@pytest.mark.parametrize(
    ("lines", "module", "arguments"),
    [
        ('kind = "lora"', "networks.lora", None),
        ('kind = "lora"\nconv_rank = 4', "networks.lora", ["conv_dim=4", "conv_alpha=4"]),
        ('kind = "dora"', "lycoris.kohya", ["algo=lora", "preset=attn-mlp", "dora_wd=True"]),
        (
            'kind = "dora"\ndropout = 0.1',
            "lycoris.kohya",
            ["algo=lora", "preset=attn-mlp", "dora_wd=True", "dropout=0.1"],
        ),
        ('kind = "loha"\nconv_rank = 4', "lycoris.kohya", ["algo=loha", "preset=full", "conv_dim=4", "conv_alpha=4"]),
        ('kind = "lokr"\nfactor = 8', "lycoris.kohya", ["algo=lokr", "preset=attn-mlp", "factor=8"]),
        ('kind = "dylora"\nrank = 8\nunit = 4', "networks.dylora", ["unit=4"]),
        ('kind = "dylora"\nrank = 8\nconv_rank = 8', "networks.dylora", ["conv_dim=8", "conv_alpha=8"]),
        ('kind = "oft"', "networks.oft", ["enable_all_linear=True"]),
        ('kind = "oft"\nconv_rank = 1', "networks.oft", ["enable_all_linear=True", "enable_conv=True"]),
    ],
)
def test_networks(tmp_path: Path, lines: str, module: str, arguments: Sequence[str] | None) -> None:
    dotted = "".join(f"network.{line}\n" for line in lines.splitlines())
    made = make_plan(tmp_path, dotted, base="sdxl")
    config = rendered(made, tmp_path)["config"]
    assert (config["network_module"], config.get("network_args")) == (module, arguments)
    lycoris = module == "lycoris.kohya"
    assert "network_dropout" not in config or not lycoris, "sd-scripts' own option does not reach LyCORIS"


def test_oft_has_numbers_of_its_own(tmp_path: Path) -> None:
    made = make_plan(tmp_path, 'network.kind = "oft"\n', base="sd15")
    assert (made.network.rank, made.network.alpha) == (4, 1e-3)
    assert not made.train.train_text_encoder
    config = rendered(made, tmp_path)["config"]
    assert config["network_train_unet_only"] is True
    with pytest.raises(PresetError, match="320 channels cannot be cut so"):
        make_plan(tmp_path, 'network.kind = "oft"\nnetwork.rank = 3\n', base="sd15")


@pytest.mark.parametrize(
    ("base", "lines", "said"),
    [
        ("flux-dev", 'network.kind = "dora"', "kind = dora: not for flux"),
        ("sd35", 'network.kind = "oft"', "kind = oft: not for sd3"),
        ("sdxl", 'network.kind = "dylora"\nnetwork.unit = 5', "unit = 5 does not divide the rank 32"),
        ("sdxl", 'network.kind = "dylora"\nnetwork.conv_rank = 5', "a dylora has one rank for all layers"),
        ("sdxl", 'network.kind = "lora_fa"', "kind"),
    ],
)
def test_networks_that_cannot_be(tmp_path: Path, base: str, lines: str, said: str) -> None:
    with pytest.raises(PresetError) as caught:
        make_plan(tmp_path, f"{lines}\n", base=base)
    assert said in str(caught.value)
    assert "p.toml:" in str(caught.value)


@pytest.mark.parametrize(
    ("trigger", "said"),
    [('"two words"', 'as "two"'), ('"a,b"', "makes one word"), ('""', "is missing")],
)
def test_an_embedding_is_one_word(tmp_path: Path, trigger: str, said: str) -> None:
    with pytest.raises(PresetError) as caught:
        make_plan(tmp_path, f"dataset.trigger = {trigger}\n", base="sd15", method="textual-inversion")
    assert said in str(caught.value)


def test_an_embedding_learns_at_its_own_rate(tmp_path: Path) -> None:
    made = make_plan(tmp_path, "", base="sdxl", method="textual-inversion")
    assert made.train.learning_rate == 5e-4
    assert made.sources["train.learning_rate"] == "textual-inversion"
    assert not made.train.cache_text_encoder, "the captions' encodings change with every step"
    assert (
        make_plan(tmp_path, "train.learning_rate = 1e-3\n", base="sdxl", method="textual-inversion").train.learning_rate
        == 1e-3
    )


def test_the_whole_of_flux_fits_one_large_gpu(tmp_path: Path) -> None:
    made = make_plan(tmp_path, "", base="flux-dev", method="finetune")
    config = rendered(made, tmp_path)["config"]
    assert (config["optimizer_type"], config["full_bf16"], config["fused_backward_pass"]) == ("Adafactor", True, True)
    many = make_plan(tmp_path, "train.gradient_accumulation = 2\n", base="flux-dev", method="finetune")
    assert "fused_backward_pass" not in rendered(many, tmp_path)["config"]


def test_gpus_share_the_effective_batch(tmp_path: Path) -> None:
    made = make_plan(tmp_path, "train.gpus = 2\ntrain.effective_batch = 8\ntrain.batch_size = 2\n", base="sd15")
    assert (made.train.batch_size, made.train.gradient_accumulation, made.train.effective_batch) == (2, 2, 8)
    assert made.train.steps_per_epoch == 2  # 12 sprites: 6 batches, 3 for each GPU, 2 a step
    with pytest.raises(PresetError, match="no multiple of"):
        make_plan(tmp_path, "train.gpus = 3\ntrain.effective_batch = 8\n", base="sd15")
