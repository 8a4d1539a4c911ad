"""kohya -> PEFT or diffusers -> kohya: the same keys and the same bytes, wherever the format can hold them."""

from __future__ import annotations

import ast
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import converters
from converters import ConversionError, convert, name_tables, read_lora, recognise
from converters.metadata import hash_tensors
from converters.tensors import Tensor, Weights, encode, read_file, write_file

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
RESNET = "lora_unet_up_blocks_1_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SAI = "lora_unet_input_blocks_4_1_proj_in"


def make_module(
    name: str, *, rank: int = 2, alpha: float | None = 1.0, dtype: str = "F32", kernel: int = 0, seed: int = 0
) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    down, up = ((rank, 3, kernel, kernel), (4, rank, 1, 1)) if kernel else ((rank, 3), (4, rank))
    found = {
        f"{name}.lora_down.weight": encode(rng.normal(size=down), dtype),
        f"{name}.lora_up.weight": encode(rng.normal(size=up), dtype),
    }
    return found if alpha is None else {**found, f"{name}.alpha": encode(alpha, dtype)}


def write(path: Path, *modules: dict[str, Tensor], **metadata: str) -> Path:
    tensors = {key: tensor for module in modules for key, tensor in module.items()}
    write_file(path, tensors, metadata)
    return path


def assert_same(found: Weights, expected: Weights) -> None:
    assert set(found.tensors) == set(expected.tensors)
    for key, tensor in expected.tensors.items():
        assert (found.tensors[key].dtype, found.tensors[key].shape) == (tensor.dtype, tensor.shape), key
        assert bytes(found.tensors[key].raw) == bytes(tensor.raw), key


@st.composite
def modules(draw: st.DrawFn) -> dict[str, dict[str, Tensor]]:
    prefix = draw(st.sampled_from(["lora_te_", "lora_te1_"]))
    unet = st.sampled_from(name_tables.UNET).map(lambda path: "lora_unet_" + path.replace(".", "_").replace("#", "0"))
    text = st.sampled_from(name_tables.TEXT_ENCODER).map(lambda path: prefix + path.replace(".", "_").replace("#", "1"))
    text2 = st.sampled_from(name_tables.TEXT_ENCODER).map(
        lambda path: "lora_te2_" + path.replace(".", "_").replace("#", "7")
    )
    names = draw(st.lists(st.one_of(unet, text, text2), min_size=1, max_size=6, unique=True))
    return {
        name: make_module(
            name,
            rank=draw(st.integers(1, 9)),
            alpha=draw(st.sampled_from([None, 0.5, 1.0, 2.0, 3.0, 4.0, 7.0, 16.0])),
            dtype=draw(st.sampled_from(["F16", "BF16", "F32"])),
            kernel=draw(st.sampled_from([0, 1, 3])),
            seed=draw(st.integers(0, 99)),
        )
        for name in names
    }


@settings(deadline=None, max_examples=20)
@given(modules(), st.booleans())
def test_peft_and_back(made: dict[str, dict[str, Tensor]], flat: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder / "a.safetensors", *made.values(), ss_network_dim="8")
        convert(source, "peft", folder / "peft", flat_text_encoder=flat)
        done = convert(folder / "peft", "kohya", folder / "b.safetensors")
        assert done.source == "peft"
        found = read_file(folder / "b.safetensors")
        assert_same(found, read_file(source))
        assert found.metadata == {
            "ss_network_dim": "8",
            "sshs_model_hash": hash_tensors(found.tensors),
            "sshs_legacy_hash": found.metadata["sshs_legacy_hash"],
        }


@settings(deadline=None, max_examples=20)
@given(modules())
def test_diffusers_and_back(made: dict[str, dict[str, Tensor]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder / "a.safetensors", *made.values())
        done = convert(source, "diffusers", folder / "d.safetensors")
        convert(folder / "d.safetensors", "kohya", folder / "b.safetensors")
        expected, found = read_file(source), read_file(folder / "b.safetensors")
        may_round = {key for key, tensor in expected.tensors.items() if done.rounded and tensor.dtype == "F32"}
        same = {key: tensor for key, tensor in expected.tensors.items() if key not in may_round}
        assert set(found.tensors) == set(expected.tensors)
        found_same = {key: tensor for key, tensor in found.tensors.items() if key not in may_round}
        assert_same(Weights(tensors=found_same, metadata={}), Weights(tensors=same, metadata={}))
        for key in may_round:
            np.testing.assert_array_max_ulp(found.tensors[key].to_float32(), expected.tensors[key].to_float32(), 1)


@settings(deadline=None, max_examples=15)
@given(modules())
def test_diffusers_keeps_every_product(made: dict[str, dict[str, Tensor]]) -> None:
    """up @ down * alpha / rank, module for module, with one rank in each component."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder / "a.safetensors", *made.values())
        convert(source, "diffusers", folder / "d.safetensors")
        tensors = read_file(folder / "d.safetensors").tensors
        ranks: dict[str, set[int]] = {}
        for found, module in read_lora(source)[1].modules.items():
            parts = (
                ("lora_A", "lora_B")
                if found.component == "unet"
                else ("lora_linear_layer.down", "lora_linear_layer.up")
            )
            down, up = (tensors[f"{found.component}.{found.path}.{part}.weight"] for part in parts)
            ranks.setdefault(found.component, set()).add(down.shape[0])
            got = up.to_float64().reshape(4, -1) @ down.to_float64().reshape(down.shape[0], -1)
            want = module.up.to_float64().reshape(4, -1) @ module.down.to_float64().reshape(module.rank, -1)
            np.testing.assert_allclose(got, want * module.scale, rtol=1e-6, atol=1e-6)
        assert all(len(found) == 1 for found in ranks.values())


def test_formats_are_read_from_the_content(tmp_path: Path) -> None:
    source = write(tmp_path / "pytorch_lora_weights.safetensors", make_module(ATTENTION))
    convert(source, "peft", tmp_path / "kohya.safetensors")
    convert(source, "diffusers", tmp_path / "peft")
    assert recognise(source) == "kohya"
    assert recognise(tmp_path / "kohya.safetensors") == "peft"
    assert recognise(tmp_path / "peft") == "diffusers"
    with pytest.raises(ConversionError, match="no LoRA folder"):
        recognise(tmp_path)
    with pytest.raises(ConversionError, match="no LoRA of a known format"):
        recognise(write(tmp_path / "x", {"model.weight": encode([1.0], "F32")}))


def test_the_peft_config_tells_every_rank_and_alpha(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.safetensors",
        make_module(ATTENTION, rank=4, alpha=2.0),
        make_module(RESNET, rank=2, alpha=0.5, kernel=3),
        make_module("lora_unet_conv_in", rank=4, alpha=2.0, kernel=3),
        make_module(TEXT, rank=3, alpha=None),
    )
    convert(source, "peft", tmp_path / "peft")
    unet = json.loads((tmp_path / "peft/unet/adapter_config.json").read_text())
    assert (unet["r"], unet["lora_alpha"]) == (4, 2)
    assert unet["rank_pattern"] == {"^up_blocks.1.resnets.0.conv1": 2}
    assert unet["alpha_pattern"] == {"^up_blocks.1.resnets.0.conv1": 0.5}
    assert len(unet["target_modules"]) == 3
    text = json.loads((tmp_path / "peft/text_encoder/adapter_config.json").read_text())
    assert (text["r"], text["lora_alpha"]) == (3, 3)
    assert text["target_modules"] == ["text_model.encoder.layers.0.mlp.fc1"]
    convert(source, "peft", tmp_path / "peft", flat_text_encoder=True, overwrite=True)
    text = json.loads((tmp_path / "peft/text_encoder/adapter_config.json").read_text())
    assert text["target_modules"] == ["encoder.layers.0.mlp.fc1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "peft"]


def test_scales_that_half_floats_cannot_hold_widen_one_tensor(tmp_path: Path) -> None:
    for dtype in ("F16", "BF16"):
        exact = make_module(ATTENTION, rank=4, alpha=2.0, dtype=dtype)
        inexact = make_module(RESNET, rank=4, alpha=3.0, dtype=dtype, kernel=3)
        done = convert(write(tmp_path / dtype, exact, inexact), "diffusers", tmp_path / f"{dtype}.d")
        assert done.widened == ("unet.up_blocks.1.resnets.0.conv1.lora_B.weight",)
        assert done.rounded == ()
        dtypes = {key: tensor.dtype for key, tensor in read_file(tmp_path / f"{dtype}.d").tensors.items()}
        assert [key for key, found in dtypes.items() if found != dtype] == list(done.widened)


def test_stability_names_survive(tmp_path: Path) -> None:
    source = write(tmp_path / "a", make_module(SAI), make_module("lora_te1_text_model_encoder_layers_0_mlp_fc1"))
    for to in ("peft", "diffusers"):
        convert(source, to, tmp_path / to)
        convert(tmp_path / to, "kohya", tmp_path / f"{to}.k")
        assert_same(read_file(tmp_path / f"{to}.k"), read_file(source))


def test_files_of_other_programs(tmp_path: Path) -> None:
    """No note of ours: diffusers' older key styles, its adapter metadata, PEFT's suffix patterns and rslora."""
    down, up = encode(np.ones((2, 3)), "F16"), encode(np.ones((4, 2)), "F16")
    old = {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight": down,
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight": up,
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight": down,
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight": up,
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight": down,
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": up,
    }
    write_file(tmp_path / "old", old, {"lora_adapter_metadata": '{"text_encoder.r": 2, "text_encoder.lora_alpha": 1}'})
    convert(tmp_path / "old", "kohya", tmp_path / "old.k")
    tensors = read_file(tmp_path / "old.k").tensors
    alphas = {key: float(tensor.to_float32()) for key, tensor in tensors.items() if key.endswith("alpha")}
    assert alphas == {
        f"{ATTENTION}.alpha": 2.0,
        f"{ATTENTION[:-1]}out_0.alpha": 2.0,
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha": 1.0,
    }
    convert(tmp_path / "old.k", "peft", tmp_path / "p")
    for part in ("unet", "text_encoder"):
        weights = read_file(tmp_path / "p" / part / "adapter_model.safetensors")
        write_file(tmp_path / "p" / part / "adapter_model.safetensors", weights.tensors)
        config = json.loads((tmp_path / "p" / part / "adapter_config.json").read_text())
        config |= {"lora_alpha": 4, "alpha_pattern": {"to_q": 3}, "use_rslora": part == "text_encoder"}
        (tmp_path / "p" / part / "adapter_config.json").write_text(json.dumps(config))
    convert(tmp_path / "p", "kohya", tmp_path / "p.k")
    tensors = read_file(tmp_path / "p.k").tensors
    assert float(tensors[f"{ATTENTION}.alpha"].to_float32()) == 3.0
    assert float(tensors[f"{ATTENTION[:-1]}out_0.alpha"].to_float32()) == 4.0
    scale = float(tensors["lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha"].to_float32()) / 2
    assert scale == pytest.approx(4 / 2**0.5, rel=1e-7)


def test_a_stale_note_is_not_believed(tmp_path: Path) -> None:
    source = write(tmp_path / "a", make_module(ATTENTION, rank=4, alpha=2.0))
    convert(source, "diffusers", tmp_path / "d")
    weights = read_file(tmp_path / "d")
    changed = {key: encode(tensor.to_float32() * 2, "F32") for key, tensor in weights.tensors.items()}
    write_file(tmp_path / "e", changed, weights.metadata)
    (module,) = read_lora(tmp_path / "e")[1].modules.values()
    assert module.alpha_value == 4.0
    write_file(tmp_path / "f", weights.tensors, {"pixelkit.kohya": "{not json"})
    (module,) = read_lora(tmp_path / "f")[1].modules.values()
    assert module.alpha_value == 4.0


@pytest.mark.parametrize(
    ("extra", "message", "keys"),
    [
        ({"lora_unet_mystery.lora_down.weight": 2, "lora_unet_mystery.lora_up.weight": 2}, "no known model",
         ("lora_unet_mystery",)),
        ({f"{RESNET}.hada_w1_a": 2, f"{RESNET}.hada_w1_b": 2}, "parts that miss",
         (f"{RESNET}.hada_w2_a", f"{RESNET}.hada_w2_b")),
        ({f"{RESNET}.lokr_w1": 2, f"{RESNET}.lokr_w2_a": 2}, "parts that miss", (f"{RESNET}.lokr_w2_b",)),
        ({f"{ATTENTION}.hada_w1_a": 2}, "do not go together", (f"{ATTENTION}.hada_w1_a",)),
        ({f"{ATTENTION}.dora_scale": 2}, "do not make a LoRA", (f"unet.{QUERY}",)),
        ({f"{RESNET}.diff": 2}, "neither LoRA, LoHa nor LoKr", (f"{RESNET}.diff",)),
        ({"bundle_emb.x": 2}, "unknown keys", ("bundle_emb.x",)),
        ({f"{RESNET}.lora_down.weight": 2}, "parts that miss", (f"{RESNET}.lora_up.weight",)),
        ({f"{RESNET}.alpha": 2}, "parts that miss", (f"{RESNET}.alpha",)),
        ({f"{RESNET}.lora_down.weight": 2, f"{RESNET}.lora_up.weight": 3}, "do not make a LoRA",
         ("unet.up_blocks.1.resnets.0.conv1",)),
        ({f"{SAI}.lora_down.weight": 2, f"{SAI}.lora_up.weight": 2,
          "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": 2,
          "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight": 2}, "under two names",
         ("unet.down_blocks.1.attentions.0.proj_in",)),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_listed(
    tmp_path: Path, extra: dict[str, int], message: str, keys: tuple[str, ...]
) -> None:
    extras = {key: encode(np.ones((size, size)), "F32") for key, size in extra.items()}
    source = write(tmp_path / "a", make_module(ATTENTION), extras)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(source, "peft", tmp_path / "peft")
    assert caught.value.keys == keys
    assert str(source) in str(caught.value)
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize("setting", ["modules_to_save", "bias", "init_lora_weights", "peft_type"])
def test_peft_settings_that_mean_something_else(tmp_path: Path, setting: str) -> None:
    convert(write(tmp_path / "a", make_module(ATTENTION)), "peft", tmp_path / "p")
    path = tmp_path / "p/unet/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: "pissa"}))
    with pytest.raises(ConversionError, match=r"adapter_config\.json"):
        convert(tmp_path / "p", "kohya", tmp_path / "k")


def test_broken_folders_and_files(tmp_path: Path) -> None:
    source = write(tmp_path / "a", make_module(ATTENTION))
    convert(source, "peft", tmp_path / "p")
    with pytest.raises(ConversionError, match="already there"):
        convert(source, "peft", tmp_path / "p")
    with pytest.raises(ConversionError, match="no format zip; one of kohya, peft, diffusers"):
        convert(source, "zip", tmp_path / "z")
    shutil.copytree(tmp_path / "p", tmp_path / "q")
    (tmp_path / "q/unet/adapter_config.json").write_text("{")
    with pytest.raises(ConversionError, match="cannot be read"):
        convert(tmp_path / "q", "kohya", tmp_path / "k")
    (tmp_path / "p/unet/adapter_model.safetensors").unlink()
    with pytest.raises(ConversionError, match="No such file"):
        convert(tmp_path / "p", "kohya", tmp_path / "k")
    with pytest.raises(ConversionError, match="cannot be written"):
        convert(source, "peft", tmp_path / "a" / "b")


def test_no_torch_is_loaded() -> None:
    folder = Path(converters.__file__).parent
    for path in folder.glob("*.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in top}
        assert not any(name.split(".")[0] in {"torch", "diffusers", "transformers", "pixelkit"} for name in names), path
