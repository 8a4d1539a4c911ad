"""DoRA, Tucker, LoHa and LoKr: what they add, the formats that hold them, and the refusals of those that do not."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_converters_formats import assert_same

from converters import ConversionError, convert, read_lora
from converters.modules import HadaModule, KronModule, Module, build_module
from converters.peft_config import split_width
from converters.tensors import Tensor, encode, read_file, write_file

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
RESNET = "lora_unet_up_blocks_1_resnets_0_conv1"
SHAPES = {
    ATTENTION: (48, 64),
    "lora_unet_mid_block_attentions_0_proj_in": (36, 60, 1, 1),
    RESNET: (64, 36, 3, 3),
    "lora_unet_conv_out": (4, 48, 3, 3),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (81, 49),
}
KINDS = ("lora", "dora", "tucker", "loha", "loha tucker", "lokr", "lokr both", "lokr whole", "lokr tucker")


@dataclass(frozen=True)
class Case:
    """A module of a file: its kohya name, its kind, and its tensors."""

    name: str
    kind: str
    parts: dict[str, Tensor]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {f"{self.name}.{part}": tensor for part, tensor in self.parts.items()}


def make_case(
    name: str,
    kind: str,
    *,
    rank: int = 2,
    alpha: float | None = 1.0,
    dtype: str = "F32",
    factor: int = -1,
    seed: int = 0,
) -> Case:
    """Matrices of the shapes that LyCORIS gives them for that layer."""
    rng = np.random.default_rng(seed)
    out, inner, *kernel = SHAPES[name]
    area = int(np.prod(kernel, dtype=int))
    core = kind.endswith("tucker") and area > 1
    shapes: dict[str, tuple[int, ...]]
    if kind in {"lora", "dora", "tucker"}:
        ones = (1,) * len(kernel)
        shapes = {"lora_down.weight": (rank, inner, *(ones if core else kernel)), "lora_up.weight": (out, rank, *ones)}
        shapes |= {"lora_mid.weight": (rank, rank, *kernel)} if core else {}
        shapes |= {"dora_scale": (out, 1, *ones)[: 2 + len(kernel)]} if kind == "dora" else {}
    elif kind.startswith("loha"):
        shapes = {f"hada_w{n}_a": (rank, out) if core else (out, rank) for n in (1, 2)}
        shapes |= {f"hada_w{n}_b": (rank, inner if core else inner * area) for n in (1, 2)}
        shapes |= {f"hada_t{n}": (rank, rank, *kernel) for n in (1, 2)} if core else {}
    else:
        (out_1, out_2), (in_1, in_2) = split_width(out, factor), split_width(inner, factor)
        if kind == "lokr both" and rank < max(out_1, in_1) / 2:
            shapes = {"lokr_w1_a": (out_1, rank), "lokr_w1_b": (rank, in_1)}
        else:
            shapes = {"lokr_w1": (out_1, in_1)}
        if kind == "lokr whole" or rank >= max(out_2, in_2) / 2:
            shapes |= {"lokr_w2": (out_2, in_2, *kernel)}
        elif core:
            shapes |= {"lokr_w2_a": (rank, out_2), "lokr_w2_b": (rank, in_2), "lokr_t2": (rank, rank, *kernel)}
        else:
            shapes |= {"lokr_w2_a": (out_2, rank), "lokr_w2_b": (rank, in_2 * area)}
    parts = {part: encode(rng.normal(size=shape), dtype) for part, shape in shapes.items()}
    return Case(name, kind, parts if alpha is None else {**parts, "alpha": encode(alpha, dtype)})


def write(path: Path, *cases: Case) -> Path:
    write_file(path, {key: tensor for case in cases for key, tensor in case.tensors.items()}, {"ss_network_dim": "8"})
    return path


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> list[Case]:
    names = draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True))
    return [
        make_case(
            name,
            draw(st.sampled_from(kinds)),
            rank=draw(st.integers(1, 5)),
            alpha=draw(st.sampled_from([None, 0.0, 0.5, 1.0, 3.0, 4.0])),
            dtype=draw(st.sampled_from(["F16", "BF16", "F32"])),
            factor=draw(st.sampled_from([-1, 4, 6])),
            seed=draw(st.integers(0, 9)),
        )
        for name in names
    ]


@settings(deadline=None, max_examples=60)
@given(cases(tuple(kind for kind in KINDS if kind != "tucker")), st.booleans())
def test_peft_and_back(made: list[Case], with_note: bool) -> None:
    """With the note the same bytes; without it, what each module adds is the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder / "a", *made)
        done = convert(source, "peft", folder / "p")
        assert (done.widened, done.rounded) == ((), ())
        if not with_note:
            for path in folder.glob("p/*/adapter_model.safetensors"):
                write_file(path, read_file(path).tensors)
        convert(folder / "p", "kohya", folder / "b")
        if with_note:
            assert_same(read_file(folder / "b"), read_file(source))
        before, after = (read_lora(path)[1].modules for path in (source, folder / "b"))
        places = {(name.component, name.path): module for name, module in after.items()}
        for found, module in before.items():
            back = places[found.component, found.path]
            np.testing.assert_array_equal(back.delta(), module.delta())
            assert (back.magnitude is None) == (module.magnitude is None)


@settings(deadline=None, max_examples=40)
@given(cases(("lora", "tucker")), st.booleans())
def test_tucker_made_plain(made: list[Case], to_peft: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder / "a", *made)
        done = convert(source, "peft" if to_peft else "diffusers", folder / "t")
        cores = [case for case in made if "lora_mid.weight" in case.parts]
        narrow = [case for case in cores if case.parts["lora_down.weight"].dtype != "F32"]
        assert len(done.widened) >= len(narrow)
        before = {(name.component, name.path): module for name, module in read_lora(source)[1].modules.items()}
        for found, module in read_lora(folder / "t")[1].modules.items():
            assert isinstance(module, Module)
            assert module.mid is None
            want = before[found.component, found.path].delta()
            np.testing.assert_allclose(module.delta(), want, atol=2e-5, rtol=2e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True),
    st.sampled_from([0.5, 2.0, 3.0]),
    st.integers(1, 5),
)
def test_dora_through_diffusers(names: list[str], alpha: float, rank: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder / "a", *(make_case(name, "dora", rank=rank, alpha=alpha, dtype="BF16") for name in names))
        convert(source, "diffusers", folder / "d")
        magnitudes = {
            key: t.shape for key, t in read_file(folder / "d").tensors.items() if key.endswith("magnitude_vector")
        }
        assert len(magnitudes) == len(names)
        assert {len(shape) for shape in magnitudes.values()} <= {1, 4}
        convert(folder / "d", "kohya", folder / "b")
        assert_same(read_file(folder / "b"), read_file(source))


@given(st.data())
@settings(deadline=None, max_examples=20)
def test_diffusers_refuses_what_it_cannot_load(data: st.DataObject) -> None:
    made = data.draw(cases())
    strange = [case for case in made if case.kind.startswith(("loha", "lokr"))]
    if not strange:
        return
    with tempfile.TemporaryDirectory() as name:
        source = write(Path(name) / "a", *made)
        with pytest.raises(ConversionError, match="LoHa or LoKr: diffusers has no loader") as caught:
            convert(source, "diffusers", Path(name) / "d")
        assert len(caught.value.keys) == len(strange)
        assert not (Path(name) / "d").exists()


def test_what_each_kind_adds() -> None:
    def numbers(case: Case) -> dict[str, np.ndarray]:
        return {part: tensor.to_float64() for part, tensor in case.parts.items()}

    case = make_case(RESNET, "loha tucker", rank=3, alpha=2.0)
    n = numbers(case)
    halves = (np.einsum("ijkl,ip,jr->prkl", n[f"hada_t{i}"], n[f"hada_w{i}_a"], n[f"hada_w{i}_b"]) for i in (1, 2))
    np.testing.assert_allclose(
        build_module(case.parts).delta(), np.prod(list(halves), axis=0) * 2 / 3, rtol=1e-4, atol=1e-4
    )
    case = make_case(RESNET, "lokr tucker", rank=2, alpha=3.0)
    n = numbers(case)
    large = np.einsum("ijkl,ip,jr->prkl", n["lokr_t2"], n["lokr_w2_a"], n["lokr_w2_b"])
    whole = np.einsum("ac,bdkl->abcdkl", n["lokr_w1"], large).reshape(64, 36, 3, 3) * 3 / 2
    np.testing.assert_allclose(build_module(case.parts).delta(), whole, rtol=1e-4, atol=1e-4)
    case = make_case(RESNET, "tucker", rank=2, alpha=4.0)
    n = numbers(case)
    pieces = n["lora_up.weight"][:, :, 0, 0], n["lora_mid.weight"], n["lora_down.weight"][:, :, 0, 0]
    plain = np.einsum("or,rmkl,mi->oikl", *pieces) * 2
    np.testing.assert_allclose(build_module(case.parts).delta(), plain, rtol=1e-4, atol=1e-4)


def test_alpha_means_nothing_to_two_whole_factors(tmp_path: Path) -> None:
    loud, quiet = (make_case(RESNET, "lokr whole", alpha=alpha) for alpha in (512.0, 1.0))
    np.testing.assert_array_equal(build_module(loud.parts).delta(), build_module(quiet.parts).delta())
    convert(write(tmp_path / "a", loud), "peft", tmp_path / "p")
    config = json.loads((tmp_path / "p/unet/adapter_config.json").read_text())
    assert config["alpha"] == config["r"] >= 4  # PEFT makes w2 whole from half its width on: (8, 6)
    config["alpha"] *= 3
    (tmp_path / "p/unet/adapter_config.json").write_text(json.dumps(config))
    (module,) = read_lora(tmp_path / "p")[1].modules.values()
    np.testing.assert_allclose(module.delta(), 3 * build_module(loud.parts).delta(), rtol=1e-6)


def test_one_folder_for_each_config(tmp_path: Path) -> None:
    many = [make_case(name, "loha", rank=rank) for rank, name in enumerate((ATTENTION, "lora_unet_conv_out"), 1)]
    whole = make_case(RESNET, "lokr", rank=1)
    convert(write(tmp_path / "a", *many, whole), "peft", tmp_path / "p")
    configs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("p/*/adapter_config.json")}
    assert {folder: config["peft_type"] for folder, config in configs.items()} == {"unet": "LOHA", "unet-2": "LOKR"}
    assert [len(configs[folder]["target_modules"]) for folder in ("unet", "unet-2")] == [2, 1]
    assert [key[:1] for key in configs["unet"]["rank_pattern"]] == ["^"]
    (tmp_path / "p/unet-3").mkdir()
    for path in (tmp_path / "p/unet-2").iterdir():
        (tmp_path / "p/unet-3" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConversionError, match="more than one folder") as caught:
        read_lora(tmp_path / "p")
    assert caught.value.keys == ("unet.up_blocks.1.resnets.0.conv1",)


def with_part(case: Case, part: str, shape: tuple[int, ...]) -> Case:
    return Case(case.name, case.kind, {**case.parts, part: encode(np.ones(shape), "F32")})


def test_dora_that_no_format_holds(tmp_path: Path) -> None:
    by_input = with_part(make_case(ATTENTION, "lora"), "dora_scale", (1, 64))
    of_loha = with_part(make_case(RESNET, "loha"), "dora_scale", (64, 1, 1, 1))
    place = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    for to in ("peft", "diffusers"):
        with pytest.raises(ConversionError, match=r"DoRA by input, dora_scale of shape \(1, in\)") as caught:
            convert(write(tmp_path / "i", by_input), to, tmp_path / to)
        assert caught.value.keys == (place,)
    with pytest.raises(ConversionError, match="DoRA with LoHa or LoKr") as caught:
        convert(write(tmp_path / "h", of_loha), "peft", tmp_path / "p")
    assert caught.value.keys == ("unet.up_blocks.1.resnets.0.conv1",)
    part = write(tmp_path / "m", make_case(ATTENTION, "dora"), make_case(RESNET, "lora"))
    with pytest.raises(ConversionError, match="diffusers would make DoRA of all") as caught:
        convert(part, "diffusers", tmp_path / "d")
    assert caught.value.keys == ("unet.up_blocks.1.resnets.0.conv1",)
    convert(part, "peft", tmp_path / "q")
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == ["unet", "unet-2"]
    for source in ("i", "h"):  # kohya's own format holds all of them
        convert(tmp_path / source, "kohya", tmp_path / f"{source}.k")
        assert_same(read_file(tmp_path / f"{source}.k"), read_file(tmp_path / source))


def test_shapes_that_peft_does_not_make(tmp_path: Path) -> None:
    good = make_case(ATTENTION, "lokr", rank=1)
    unbalanced = {"lokr_w1": encode(np.ones((32, 3)), "F32"), "lokr_w2": encode(np.ones((2, 12, 3, 3)), "F32")}
    source = write(tmp_path / "a", good, Case(RESNET, "lokr", unbalanced))
    with pytest.raises(ConversionError, match="shapes that PEFT does not make") as caught:
        convert(source, "peft", tmp_path / "p")
    assert caught.value.keys == ("unet.up_blocks.1.resnets.0.conv1",)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_numbers_that_are_none(tmp_path: Path, dtype: str, number: float) -> None:
    case = make_case(ATTENTION, "loha", dtype=dtype)
    for fine in (0.0, -0.0, 65504.0, -65504.0, 6e-8):
        assert encode([1.0, fine, -1.0], dtype).is_finite()
    values = case.parts["hada_w2_b"].to_float64().copy()
    values[1, 5] = number
    source = write(tmp_path / "a", Case(case.name, case.kind, {**case.parts, "hada_w2_b": encode(values, dtype)}))
    with pytest.raises(ConversionError, match="NaN or infinite") as caught:
        convert(source, "peft", tmp_path / "p")
    assert caught.value.keys == (f"{ATTENTION}.hada_w2_b",)
    folder = tmp_path / "q"
    convert(write(tmp_path / "b", case), "peft", folder)
    path = folder / "unet/adapter_model.safetensors"
    tensors = dict(read_file(path).tensors)
    broken = next(key for key in tensors if key.endswith("hada_w2_b"))
    write_file(path, {**tensors, broken: encode(values, dtype)})
    with pytest.raises(ConversionError, match="NaN or infinite") as caught:
        convert(folder, "kohya", tmp_path / "k")
    assert caught.value.keys == (broken,)


def test_text_encoders_that_transformers_flattened(tmp_path: Path) -> None:
    """5.6 took text_model. out of CLIPTextModel; SDXL's second encoder, and both of SD 3, have a projection and kept it."""
    layer = "text_model_encoder_layers_0_mlp_fc1"

    def targets(*prefixes: str, **metadata: str) -> dict[str, str]:
        parts = make_case("lora_te_" + layer, "lora").parts
        tensors = {f"{prefix}{layer}.{part}": tensor for prefix in prefixes for part, tensor in parts.items()}
        write_file(tmp_path / "a", tensors, metadata)
        convert(tmp_path / "a", "peft", tmp_path / "p", flat_text_encoder=True, overwrite=True)
        assert_same(read_back(tmp_path / "p"), read_file(tmp_path / "a"))
        found = tmp_path.glob("p/*/adapter_config.json")
        return {path.parent.name: json.loads(path.read_text())["target_modules"][0] for path in found}

    def read_back(folder: Path) -> object:
        convert(folder, "kohya", tmp_path / "k", overwrite=True)
        return read_file(tmp_path / "k")

    deep, flat = "text_model.encoder.layers.0.mlp.fc1", "encoder.layers.0.mlp.fc1"
    assert targets("lora_te_") == {"text_encoder": flat}
    assert targets("lora_te1_", "lora_te2_") == {"text_encoder": flat, "text_encoder_2": deep}
    stated = {"modelspec.architecture": "stable-diffusion-3-medium/lora"}
    assert targets("lora_te1_", "lora_te2_", **stated) == {"text_encoder": deep, "text_encoder_2": deep}


def test_kinds_are_told_apart() -> None:
    kinds = {kind: type(build_module(make_case(RESNET, kind).parts)) for kind in KINDS}
    assert {kind for kind, found in kinds.items() if found is Module} == {"lora", "dora", "tucker"}
    assert {kind for kind, found in kinds.items() if found is HadaModule} == {"loha", "loha tucker"}
    assert {kind for kind, found in kinds.items() if found is KronModule} == {k for k in KINDS if k.startswith("lokr")}
    assert all(build_module(make_case(name, kind).parts).fits for name in SHAPES for kind in KINDS)
