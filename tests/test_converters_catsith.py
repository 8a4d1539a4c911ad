"""CatSith's JSON: what its guide's rules read from it, and the way back to the same bytes."""

from __future__ import annotations

import base64
import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import ConversionError, convert, float_texts, read_lora, recognise
from converters.float_texts import write_matrix
from converters.tensors import ITEM_SIZE, Tensor, encode, read_file, write_file

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
RESNET = "lora_unet_up_blocks_1_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SAI = "lora_unet_input_blocks_4_1_proj_in"
NAMES = [ATTENTION, RESNET, TEXT, SAI, "lora_te2_text_model_encoder_layers_31_mlp_fc2"]


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Numbers of every size, signs, zeros and subnormals included, infinities and NaN not."""
    size = ITEM_SIZE[dtype]
    count = int(np.prod(shape))
    codes = rng.integers(0, 1 << 8 * size, count, dtype=f"<u{size}", endpoint=False)
    tensor = Tensor(dtype=dtype, shape=shape, data=codes.view(np.uint8))
    codes = np.where(np.isfinite(tensor.to_float64().reshape(-1)), codes, 0).astype(codes.dtype)
    return Tensor(dtype=dtype, shape=shape, data=codes.view(np.uint8))


@st.composite
def loras(draw: st.DrawFn) -> dict[str, Tensor]:
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    found: dict[str, Tensor] = {}
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
        rank, kernel = draw(st.integers(1, 5)), draw(st.sampled_from([0, 1, 3]))
        down, up = ((rank, 3, kernel, kernel), (4, rank, 1, 1)) if kernel else ((rank, 3), (4, rank))
        dtypes = st.sampled_from(["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
        made = (
            random_bits if draw(st.booleans()) else lambda r, shape, dtype: encode(r.normal(size=shape) * 0.05, dtype)
        )
        for part, shape in (("down", down), ("up", up)):
            dtype = draw(dtypes)
            made = random_bits if dtype.startswith("F8") else made
            found[f"{name}.lora_{part}.weight"] = made(rng, shape, dtype)
        alpha = draw(st.sampled_from([None, 0.0, 0.5, 3.0, 4.0]))
        if alpha is not None:
            found[f"{name}.alpha"] = encode(alpha, draw(st.sampled_from(["F16", "BF16", "F32"])))
    return found


@settings(deadline=None, max_examples=60)
@given(loras(), st.sampled_from(["catsith", "catsith-compact"]))
def test_there_and_back(tensors: dict[str, Tensor], to: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_file(folder / "a", tensors, {"ss_network_dim": "4", "ss_output_name": "héro"})
        convert(folder / "a", to, folder / "c")
        assert recognise(folder / "c") == to
        json.loads((folder / "c").read_text(encoding="utf-8"))
        convert(folder / "c", "kohya", folder / "b")
        found = read_file(folder / "b")
        assert set(found.tensors) == set(tensors)
        for key, tensor in tensors.items():
            got = found.tensors[key]
            assert (got.dtype, got.shape, bytes(got.raw)) == (tensor.dtype, tensor.shape, bytes(tensor.raw)), key
        assert found.metadata["ss_output_name"] == "héro"


@settings(deadline=None, max_examples=30)
@given(loras())
def test_the_guides_rules_read_the_same_numbers(tensors: dict[str, Tensor]) -> None:
    """json.load, layers[name]["A"] and ["B"] as 2-D arrays, alpha / rank of the layer: nothing else of ours is needed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_file(folder / "a", tensors)
        convert(folder / "a", "catsith", folder / "c.lora.json")
        document = json.loads((folder / "c.lora.json").read_text(encoding="utf-8"))
        assert {"name", "version", "base_model", "rank", "alpha"} <= set(document["metadata"])
        assert document["metadata"]["name"] == "c"
        assert set(document["layers"]) == {key.partition(".")[0] for key in tensors}
        for layer, fields in document["layers"].items():
            down, up = (tensors[f"{layer}.lora_{part}.weight"] for part in ("down", "up"))
            for field, tensor in (("A", down), ("B", up)):
                values = np.array(fields[field])
                assert values.shape == (tensor.shape[0], int(np.prod(tensor.shape[1:])))
                dtype = np.float64 if tensor.dtype == "F64" else np.float32
                np.testing.assert_array_equal(values.astype(dtype).reshape(tensor.shape), tensor.to_float64())
            assert fields["rank"] == down.shape[0]
            assert fields["shape"] == [4, 3, *down.shape[2:]]


def test_metadata_is_that_of_the_lora(tmp_path: Path) -> None:
    tensors = (
        make_plain(ATTENTION, rank=4, alpha=2.0) | make_plain(TEXT, rank=4, alpha=2.0) | make_plain(RESNET, rank=2)
    )
    told = {"modelspec.title": "Hero", "modelspec.license": "CC0-1.0", "modelspec.trigger_phrase": "hero"}
    write_file(tmp_path / "a", tensors, {**told, "ss_sd_model_name": "segmind/tiny-sd", "sshs_model_hash": "stale"})
    convert(tmp_path / "a", "catsith-compact", tmp_path / "c")
    metadata = json.loads((tmp_path / "c").read_text())["metadata"]
    assert metadata["name"] == "Hero"
    assert (metadata["base_model"], metadata["rank"], metadata["alpha"]) == ("segmind/tiny-sd", 4, 2.0)
    assert (metadata["license"], metadata["trigger"], metadata["encoding"]) == ("CC0-1.0", "hero", "base64-f16")
    assert "sshs_model_hash" not in metadata["kohya"]


def test_compact_is_half_floats_where_they_hold_it(tmp_path: Path) -> None:
    half, brain = encode(np.ones((2, 3)), "F16"), encode(np.full((2, 3), 1e-20), "BF16")
    write_file(tmp_path / "a", {
        f"{ATTENTION}.lora_down.weight": half, f"{ATTENTION}.lora_up.weight": encode(np.ones((4, 2)), "F32"),
        f"{TEXT}.lora_down.weight": brain, f"{TEXT}.lora_up.weight": encode(np.ones((4, 2)), "BF16"),
    })  # fmt: skip
    convert(tmp_path / "a", "catsith-compact", tmp_path / "c")
    layers = json.loads((tmp_path / "c").read_text())["layers"]
    assert "encoding" not in layers[ATTENTION]
    assert base64.b64decode(layers[ATTENTION]["B"]) == struct.pack("<8e", *[1.0] * 8)
    assert layers[TEXT]["encoding"] == "base64-bf16"
    assert base64.b64decode(layers[TEXT]["A"]) == bytes(brain.raw)


def test_a_file_of_the_guides_own_script(tmp_path: Path) -> None:
    """Four lists deep for a convolution, no alpha of its own, rank 32 and alpha 16 said of every file."""
    down, up = np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1), np.ones((3, 2, 1, 1), np.float32)
    document = {
        "metadata": {"name": "x", "version": "1.0", "base_model": "segmind/tiny-sd", "rank": 32, "alpha": 16},
        "layers": {"lora_unet_conv_in": {"A": down.tolist(), "B": up.tolist()}},
    }
    for indent in (None, 2):
        (tmp_path / "g").write_text(json.dumps(document, indent=indent))
        name, lora = read_lora(tmp_path / "g")
        (module,) = lora.modules.values()
        assert name == "catsith"
        assert (module.rank, module.scale) == (2, 0.5)
        np.testing.assert_array_equal(module.parts["lora_down.weight"].to_float32(), down)
    assert lora.metadata == {"ss_output_name": "x", "ss_sd_model_name": "segmind/tiny-sd"}


def test_edited_numbers_are_not_rounded_back(tmp_path: Path) -> None:
    write_file(tmp_path / "a", make_plain(ATTENTION, rank=1))
    convert(tmp_path / "a", "catsith", tmp_path / "c")
    document = json.loads((tmp_path / "c").read_text())
    document["layers"][ATTENTION]["A"][0][0] = 0.1
    document["layers"][ATTENTION]["alpha"] = 0.3
    (tmp_path / "c").write_text(json.dumps(document))
    (module,) = read_lora(tmp_path / "c")[1].modules.values()
    assert module.parts["lora_down.weight"].dtype == "F32"
    assert module.parts["lora_down.weight"].to_float32()[0, 0] == np.float32(0.1)
    assert module.alpha_value == pytest.approx(0.3, rel=1e-7)


def test_what_is_no_plain_lora_is_refused(tmp_path: Path) -> None:
    loha = {f"{RESNET}.hada_{part}": encode(np.ones(shape), "F32") for part, shape in
            {"w1_a": (4, 2), "w1_b": (2, 27), "w2_a": (4, 2), "w2_b": (2, 27)}.items()}  # fmt: skip
    dora = make_plain(TEXT, rank=2) | {f"{TEXT}.dora_scale": encode(np.ones((4, 1)), "F32")}
    write_file(tmp_path / "a", make_plain(ATTENTION, rank=2) | loha | dora)
    with pytest.raises(ConversionError, match="plain LoRA only") as caught:
        convert(tmp_path / "a", "catsith", tmp_path / "c")
    assert caught.value.keys == ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "unet.up_blocks.1.resnets.0.conv1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    done = convert(tmp_path / "a", "catsith", tmp_path / "c", drop_unsupported=True)
    assert len(done.dropped) == 2


LAYER = {"A": [[1.0, 2.0]], "B": [[1.0], [2.0]], "rank": 1, "alpha": 1, "shape": [2, 2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": [[1.0], [2.0, 3.0]]}, "rows of different lengths"),
        ({"A": [[1.0, 2.0, 3.0]]}, "not of the layer's shape"),
        ({"A": [[float("nan"), 2.0]]}, "N|NaN"),
        ({"A": None}, "without A or B"),
        ({"shape": [3, 2]}, "not of the layer's shape"),
        ({"alpha": "x"}, "an alpha that is no number"),
        ({"A": "AAAA", "B": "AAAA"}, "an unknown encoding"),
        ({"A": "AAA", "B": "AAAA", "encoding": "base64-f16"}, "cannot be read"),
    ],
)
def test_broken_layers_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "c").write_text(json.dumps({"metadata": {}, "layers": {ATTENTION: LAYER | change}}))
    with pytest.raises(ConversionError, match=message) as caught:
        read_lora(tmp_path / "c")
    assert caught.value.keys == (ATTENTION,)
    assert "Traceback" not in str(caught.value)


def test_broken_documents_are_errors(tmp_path: Path) -> None:
    text = json.dumps({"metadata": {"name": "x" * 5000}, "layers": {ATTENTION: LAYER}})
    for end in range(1, len(text), 37):
        (tmp_path / "c").write_text(text[:end])
        with pytest.raises(ConversionError):
            read_lora(tmp_path / "c")
    for wrong in (text + "x", '{"layers": {"mystery": ' + json.dumps(LAYER) + "}}", '{"layers": {}}', '{"a": 1}', "{"):
        (tmp_path / "c").write_text(wrong)
        with pytest.raises(ConversionError):
            read_lora(tmp_path / "c")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_half_float_has_its_shortest_text(dtype: str) -> None:
    codes = np.arange(1 << 16, dtype="<u2")
    tensor = Tensor(dtype=dtype, shape=(1 << 16,), data=codes.view(np.uint8))
    codes = codes[np.isfinite(tensor.to_float32())]
    tensor = Tensor(dtype=dtype, shape=(codes.size, 1), data=codes.view(np.uint8))
    rows = b"".join(write_matrix(tensor)).decode()[2:-2].split("],[")
    values = tensor.to_float32().reshape(-1)
    assert [np.float32(row).view(np.uint32) for row in rows] == values.view(np.uint32).tolist()
    for row, value in list(zip(rows, values, strict=True))[::97]:
        digits = row.partition("e")[0].replace(".", "").strip("-0")
        shortest = (
            np.format_float_scientific(value, unique=True, trim="-").partition("e")[0].replace(".", "").strip("-0")
        )
        assert len(digits) <= max(len(shortest), 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_float32_texts_read_back(values: list[float]) -> None:
    tensor = encode([values], "F32")
    text = b"".join(write_matrix(tensor))
    for found in (
        np.array(json.loads(text)).astype(np.float32),
        np.array([[np.float32(t) for t in text[2:-2].decode().split(",")]]),
    ):
        assert found.view(np.uint32).tolist() == tensor.to_float32().view(np.uint32).tolist()


def test_many_float32_are_short_and_exact() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.normal(size=20_000) * 0.02, 10.0 ** rng.uniform(-30, 30, 20_000), [0.1, 0.3, 1e-5, 1e8]]
    )
    tensor = encode(values.reshape(-1, 4), "F32")
    rows = b"".join(write_matrix(tensor)).decode()
    found = np.array(json.loads(rows)).astype(np.float32)
    np.testing.assert_array_equal(found, tensor.to_float32())
    texts = rows.replace("[", "").replace("]", "").split(",")
    short = [repr(np.float32(value).item()) for value in (0.5, 0.25)]
    assert short == ["0.5", "0.25"]
    lengths = [len(text.partition("e")[0].replace(".", "").strip("-").rstrip("0")) for text in texts]
    best = [len(np.format_float_scientific(value, unique=True, trim="-").partition("e")[0].replace(".", "").strip("-"))
            for value in tensor.to_float32().reshape(-1)]  # fmt: skip
    assert sum(lengths) <= sum(best) * 1.001


def test_rows_are_cut_into_pieces_at_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_texts, "_PIECE", 7)
    values = np.arange(60).reshape(20, 3) / 8 - 2
    for dtype in ("F16", "F32", "F64"):
        assert json.loads(b"".join(write_matrix(encode(values, dtype)))) == values.tolist()


def make_plain(name: str, *, rank: int, alpha: float = 1.0) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": encode(np.ones((rank, 3)), "F16"),
        f"{name}.lora_up.weight": encode(np.ones((4, rank)), "F16"),
        f"{name}.alpha": encode(alpha, "F16"),
    }
