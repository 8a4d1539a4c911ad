"""Fused layers: cut exactly, put together again byte for byte, and refused where that is not possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import convert, diffusers_file, fused, kohya_file, name_tables, peft_folder
from converters.errors import ConversionError
from converters.fused import LAYERS, find_transformer, join, split
from converters.lora import HadaModule, KronModule, Lora, Module, Source
from converters.names import Name, abstract_path, join_kohya, parse_kohya
from converters.tensors import Tensor, Weights, encode, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 12
QKV = "lora_unet_double_blocks_3_img_attn_qkv"
LINEAR = "lora_unet_single_blocks_0_linear1"
FINAL = "lora_unet_final_layer_adaLN_modulation_1"
ATTENTION = [f"transformer_blocks.3.attn.to_{part}" for part in "qkv"]
SINGLE = [f"single_transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]


def random(rng: np.random.Generator, *shape: int, dtype: str = "F32") -> Tensor:
    return encode(rng.normal(size=shape), dtype)


def plain(
    rows: int, rank: int = 3, *, alpha: float | None = 2.0, dtype: str = "F32", inputs: int = WIDTH, seed: int = 0
) -> Module:
    rng = np.random.default_rng(seed)
    return Module(
        down=random(rng, rank, inputs, dtype=dtype),
        up=random(rng, rows, rank, dtype=dtype),
        alpha=None if alpha is None else encode([alpha], dtype).reshape(),
    )


def lora_of(*modules: tuple[str, Module | HadaModule | KronModule]) -> Lora:
    return Lora(modules={parse_kohya(name): module for name, module in modules}, metadata={})


def by_path(lora: Lora) -> dict[str, Module | HadaModule | KronModule]:
    return {name.path: module for name, module in lora.modules.items()}


def raw(weights: Weights) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {key: (tensor.dtype, tensor.shape, tensor.data.tobytes()) for key, tensor in weights.tensors.items()}


def test_the_layers_are_those_of_the_tables() -> None:
    tables = {
        "flux": (name_tables.FLUX_ORIGINAL, name_tables.FLUX),
        "sd3": (name_tables.SD3_ORIGINAL, name_tables.SD3),
    }
    for family, (original, diffusers) in tables.items():
        layers = LAYERS[family]
        assert sorted(layers) == sorted(original)
        assert sorted(path for paths in layers.values() for path in paths) == sorted(diffusers)


@pytest.mark.parametrize(
    ("name", "rows", "paths", "sizes"),
    [(QKV, 3 * WIDTH, ATTENTION, [WIDTH] * 3), (LINEAR, 7 * WIDTH, SINGLE, [WIDTH, WIDTH, WIDTH, 4 * WIDTH])],
)
def test_parts_are_the_rows_of_the_whole(name: str, rows: int, paths: list[str], sizes: list[int]) -> None:
    module = plain(rows)
    parts = by_path(split(lora_of((name, module))))
    assert list(parts) == paths
    assert [part.shape for part in parts.values()] == [(size, WIDTH) for size in sizes]
    assert {part.scale for part in parts.values()} == {module.scale}
    np.testing.assert_array_equal(np.concatenate([part.delta() for part in parts.values()]), module.delta())


@pytest.mark.parametrize("kind", ["hada", "kron", "dora"])
def test_other_kinds_of_module_are_cut_as_well(kind: str) -> None:
    rng = np.random.default_rng(1)
    module: Module | HadaModule | KronModule
    if kind == "hada":
        module = HadaModule(
            w1_a=random(rng, 36, 2), w1_b=random(rng, 2, 12), w2_a=random(rng, 36, 2), w2_b=random(rng, 2, 12)
        )
    elif kind == "kron":
        module = KronModule(
            w1=random(rng, 9, 3), w2_a=random(rng, 4, 2), w2_b=random(rng, 2, 4), alpha=encode(1.0, "F32")
        )
    else:
        module = Module(down=random(rng, 2, 12), up=random(rng, 36, 2), magnitude=random(rng, 36, 1))
    whole = lora_of((QKV, module))
    parts = split(whole)
    np.testing.assert_allclose(
        np.concatenate([part.delta() for part in parts.modules.values()]), module.delta(), rtol=1e-6
    )
    back = join(Lora(modules=parts.modules, metadata={"ss_base_model_version": "flux1"}))
    assert raw(kohya_file.build(back)) == raw(kohya_file.build(whole))


def test_weights_without_rows_of_their_own_are_refused() -> None:
    rng = np.random.default_rng(1)
    uneven = KronModule(w1=random(rng, 4, 3), w2=random(rng, 9, 4))  # 36 rows in runs of 9, parts of 12
    by_input = Module(down=random(rng, 2, 12), up=random(rng, 36, 2), magnitude=random(rng, 1, 12))
    too_few = plain(3 * WIDTH)
    with pytest.raises(ConversionError) as caught:
        split(
            lora_of(
                (QKV, uneven),
                ("lora_unet_double_blocks_0_txt_attn_qkv", by_input),
                (LINEAR, too_few),
                ("lora_unet_img_in", plain(WIDTH)),
            )
        )
    assert caught.value.keys == (
        "transformer.double_blocks.0.txt_attn.qkv",
        "transformer.double_blocks.3.img_attn.qkv",
        "transformer.single_blocks.0.linear1",
    )


def test_halves_of_a_modulation_are_swapped_where_there_are_two_only() -> None:
    context = "lora_unet_joint_blocks_{}_context_block_adaLN_modulation_1"
    last, inner = plain(2 * WIDTH), plain(6 * WIDTH)
    parts = by_path(split(lora_of((context.format(23), last), (context.format(2), inner), (FINAL, last))))
    swapped = np.concatenate([last.delta()[WIDTH:], last.delta()[:WIDTH]])
    np.testing.assert_array_equal(parts["transformer_blocks.23.norm1_context.linear"].delta(), swapped)
    np.testing.assert_array_equal(parts["norm_out.linear"].delta(), swapped)
    assert parts["transformer_blocks.2.norm1_context.linear"] is inner


def diagonal(rows: list[int], rank: int, *, alpha: float, dtype: str = "BF16") -> Module:
    """As sd-scripts writes a module trained with split_qkv: parts with a `down` of their own in one."""
    rng = np.random.default_rng(2)
    up = np.zeros((sum(rows), rank * len(rows)), np.float32)
    for index, size in enumerate(rows):
        start = sum(rows[:index])
        up[start : start + size, index * rank : (index + 1) * rank] = rng.normal(size=(size, rank))
    return Module(
        down=random(rng, rank * len(rows), WIDTH, dtype=dtype), up=encode(up, dtype), alpha=encode(alpha, dtype)
    )


@pytest.mark.parametrize(
    ("alpha", "rank"),
    [(6.0, 2), (3.0, 2), (8.0, 6), (0.0, 2)],  # a third of 8 is no number that a file can hold: parts keep the rank
)
def test_what_split_qkv_trains_has_parts_of_its_own_rank(alpha: float, rank: int) -> None:
    module = diagonal([WIDTH] * 3, 2, alpha=alpha)
    whole = lora_of((QKV, module))
    parts = split(whole)
    assert {part.rank for part in parts.modules.values()} == {rank}
    assert {part.scale for part in parts.modules.values()} == {module.scale}
    np.testing.assert_allclose(
        np.concatenate([part.delta() for part in parts.modules.values()]), module.delta(), rtol=1e-6
    )
    back = join(Lora(modules=parts.modules, metadata={"modelspec.architecture": "flux-1-dev/lora"}))
    assert raw(kohya_file.build(back)) == raw(kohya_file.build(whole))


def foreign(paths: list[str], modules: list[Module]) -> Lora:
    names = [Name(component="transformer", path=path, prefix="lora_unet_") for path in paths]
    return Lora(modules=dict(zip(names, modules, strict=True)), metadata={"ss_base_model_version": "flux1"})


def test_parts_with_a_down_each_are_one_module_only_if_asked() -> None:
    modules = [plain(WIDTH, 2, seed=1), plain(WIDTH, 3, alpha=3.0, seed=2), plain(WIDTH, 4, alpha=None, seed=3)]
    modules.append(plain(4 * WIDTH, 2, alpha=0.5, seed=4))
    lora = foreign(SINGLE, modules)
    with pytest.raises(ConversionError, match="sum of their ranks") as caught:
        kohya_file.build(lora)
    assert caught.value.keys == tuple(sorted(f"transformer.{path}" for path in SINGLE))
    [(name, joined)] = join(lora, block_diagonal=True).modules.items()
    assert join_kohya(name.component, name.path, prefix=name.prefix, naming=name.naming) == LINEAR
    assert joined.rank == 11
    np.testing.assert_allclose(joined.delta(), np.concatenate([part.delta() for part in modules]), rtol=1e-6, atol=1e-7)


def test_parts_of_one_scale_are_joined_byte_for_byte() -> None:
    modules = [plain(WIDTH, 4, alpha=2.0, dtype="F16", seed=seed) for seed in range(3)]
    [joined] = join(foreign(ATTENTION, modules), block_diagonal=True).modules.values()
    assert isinstance(joined, Module)
    assert (joined.down.dtype, joined.scale) == ("F16", 0.5)
    assert joined.down.data.tobytes() == b"".join(module.down.data.tobytes() for module in modules)


def test_a_part_that_is_not_there_is_rows_of_zeros() -> None:
    modules = [plain(WIDTH, 2, seed=1), plain(WIDTH, 2, seed=2)]
    lora = foreign([SINGLE[0], SINGLE[2]], modules)
    with pytest.raises(ConversionError):
        join(lora)
    [joined] = join(lora, block_diagonal=True).modules.values()
    empty, mlp = np.zeros((WIDTH, WIDTH)), np.zeros((4 * WIDTH, WIDTH))
    wanted = np.concatenate([modules[0].delta(), empty, modules[1].delta(), mlp])
    np.testing.assert_allclose(joined.delta(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("paths", "width", "metadata", "family"),
    [
        (["single_transformer_blocks.0.proj_out"], 5, {}, "flux"),
        (["transformer_blocks.0.attn2.to_q"], 5, {}, "sd3"),
        (["transformer_blocks.0.attn.to_q"], 3072, {}, "flux"),
        (["transformer_blocks.0.attn.to_q"], 2432, {}, "sd3"),
        (["transformer_blocks.0.ff.net.2"], 6144, {}, "sd3"),
        (["transformer_blocks.0.attn.to_q"], 5, {"ss_base_model_version": "sd3m"}, "sd3"),
        (["transformer_blocks.0.attn.to_q"], 5, {"modelspec.architecture": "flux-1-dev/lora"}, "flux"),
        (["transformer_blocks.0.attn.to_q"], 5, {}, "both have"),
        (["single_transformer_blocks.0.proj_out", "pos_embed.proj"], 5, {}, "of SD 3 and of FLUX"),
    ],
)
def test_sd3_and_flux_share_names(paths: list[str], width: int, metadata: dict[str, str], family: str) -> None:
    modules = {Name(component="transformer", path=path, prefix="lora_unet_"): plain(6, inputs=width) for path in paths}
    if " " not in family:
        assert find_transformer(modules, metadata) == family
        return
    with pytest.raises(ConversionError, match=family):
        find_transformer(modules, metadata)


def rows_of(path: str) -> int:
    """Rows of the layer in a model of WIDTH; every layer here has WIDTH inputs."""
    if path.endswith(("qkv", "context_block.adaLN_modulation.1")):
        return 3 * WIDTH if path.endswith("qkv") else 6 * WIDTH
    return {"final_layer.adaLN_modulation.1": 2, "linear1": 7}.get(path.rpartition("#.")[2], 4) * WIDTH


@settings(deadline=None, max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_round_trips_keep_every_byte(
    tmp_path_factory: pytest.TempPathFactory, family: str, data: st.DataObject
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(LAYERS[family])), min_size=1, max_size=6, unique=True))
    dtype = data.draw(st.sampled_from(["F32", "F16", "BF16"]))
    modules: dict[str, Module] = {}
    for seed, kind in enumerate(kinds):
        path = kind.replace("#", str(data.draw(st.integers(0, 37))))
        alpha = data.draw(st.sampled_from([None, 0.0, 0.5, 1.0, 3.0, 4.0]))
        modules["lora_unet_" + path.replace(".", "_")] = plain(
            rows_of(kind), data.draw(st.integers(1, 5)), alpha=alpha, dtype=dtype, seed=seed
        )
    version = {"flux": "flux1", "sd3": "sd3m"}[family]
    whole = Lora(modules=lora_of(*modules.items()).modules, metadata={"ss_base_model_version": version})
    wanted = raw(kohya_file.build(whole))

    folder = tmp_path_factory.mktemp("peft") / "lora"
    peft_folder.write(whole, folder)
    assert raw(kohya_file.build(peft_folder.parse(Source(path=folder, weights=None)))) == wanted

    built = diffusers_file.build(whole)
    back = raw(kohya_file.build(diffusers_file.parse_weights(built.weights)))
    if not built.rounded:
        assert back == wanted
    assert back.keys() == wanted.keys()


def test_convert_joins_what_others_trained_if_asked(tmp_path: Path) -> None:
    source, out = tmp_path / "theirs.safetensors", tmp_path / "out.safetensors"
    parts = [plain(WIDTH, 4, alpha=4.0, seed=seed) for seed in range(3)]
    tensors = {f"transformer.{path}.lora_A.weight": part.down for path, part in zip(ATTENTION, parts, strict=True)}
    tensors |= {f"transformer.{path}.lora_B.weight": part.up for path, part in zip(ATTENTION, parts, strict=True)}
    write_file(source, tensors, {"modelspec.architecture": "flux-1-dev/lora"})
    with pytest.raises(ConversionError, match="block_diagonal"):
        convert(source, "kohya", out)
    convert(source, "kohya", out, block_diagonal=True)
    joined = read_file(out).tensors
    assert joined[f"{QKV}.lora_down.weight"].shape == (12, WIDTH)
    assert float(joined[f"{QKV}.alpha"].to_float32().reshape(-1)[0]) == 12
    convert(out, "diffusers", tmp_path / "back.safetensors")
    back = read_file(tmp_path / "back.safetensors").tensors
    assert {key: tensor.data.tobytes() for key, tensor in back.items()} == {
        key: tensor.data.tobytes() for key, tensor in tensors.items()
    }
    convert(source, "peft", tmp_path / "peft")  # needs no joining


def test_parts_that_a_target_cannot_hold_are_dropped_if_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = {"a": (36, 2), "b": (2, 12)}
    tensors = {f"{QKV}.hada_w{one}_{two}": random(rng, *shape) for one in "12" for two, shape in shapes.items()}
    tensors |= {f"lora_unet_txt_in.{part}": tensor for part, tensor in plain(WIDTH).parts.items()}
    write_file(tmp_path / "k.safetensors", tensors, {})
    with pytest.raises(ConversionError, match="LoHa"):
        convert(tmp_path / "k.safetensors", "diffusers", tmp_path / "d.safetensors")
    done = convert(tmp_path / "k.safetensors", "diffusers", tmp_path / "d.safetensors", drop_unsupported=True)
    assert done.dropped == tuple(sorted(f"transformer.{path}" for path in ATTENTION))
    assert set(read_file(tmp_path / "d.safetensors").tensors) == {
        f"transformer.context_embedder.lora_{letter}.weight" for letter in "AB"
    }


def test_kohya_files_in_diffusers_names_stay_as_they_are() -> None:
    names = [
        "lora_transformer_single_transformer_blocks_0_attn_to_q",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    ]
    lora = lora_of(*((name, plain(WIDTH)) for name in names))
    assert {key.partition(".")[0] for key in kohya_file.build(lora).tensors} == set(names)
    assert split(lora) is lora
    assert {abstract_path(name.path) for name in lora.modules} == {
        "single_transformer_blocks.#.attn.to_q",
        "encoder.block.#.layer.#.SelfAttention.q",
    }
    assert [fused.is_part(name) for name in lora.modules] == [True, False]
