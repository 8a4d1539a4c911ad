"""Merging, baking, resizing and extracting: sums are exact where they can be, errors are what is missing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_loras import FC1, PROJ, RESNET, TO_K, TO_Q, deltas, part, save

from converters import ConversionError
from converters.lora import Module
from converters.low_rank import Factors, decompose, decompose_matrix, difference, norm
from converters.merge import merge
from converters.metadata import hash_legacy, hash_tensors
from converters.resize import Size, resize
from converters.tensors import encode, read_file

SPEC = {
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.trigger_phrase": "hero",
    "ss_base_model_version": "sd_v1",
    "ss_tag_frequency": "{}",
    "ss_network_args": '{"conv_dim": "8", "dropout": "0.1"}',
}


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 4), st.sampled_from([None, 0.5, 1.0, 3.0]), st.sampled_from(["F32", "F16", "BF16"]),
            st.sampled_from([1.0, 0.5, -2.0, 0.7]), st.booleans(),
        ),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_a_merge_adds_what_its_parts_add(loras: list[tuple[int, float | None, str, float, bool]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources, wanted = [], {}
        for seed, (rank, alpha, dtype, weight, conv) in enumerate(loras):
            made = [part(TO_Q, rank=rank, alpha=alpha, dtype=dtype, seed=seed)]
            made += [part(RESNET, rank=rank + 1, alpha=alpha, dtype=dtype, kernel=3, seed=seed)] if conv else []
            sources.append(save(folder / f"{seed}.safetensors", *made))
            for layer, delta in deltas(sources[-1]).items():
                wanted[layer] = wanted.get(layer, 0) + weight * delta
        done = merge(sources, folder / "m.safetensors", weights=[weight for *_, weight, _ in loras])
        found = deltas(folder / "m.safetensors")
        assert set(found) == set(wanted)
        for layer, delta in wanted.items():
            np.testing.assert_allclose(found[layer], delta, atol=3e-6)
        dtypes = {dtype for _, _, dtype, _, _ in loras}
        powers = all(np.log2(abs(weight) * (alpha or rank) / rank).is_integer() for rank, alpha, _, weight, _ in loras)
        if len(dtypes) == 1 and powers and not any(conv for *_, conv in loras):
            assert done.widened == done.rounded == ()
            assert read_file(folder / "m.safetensors").tensors[f"{TO_Q}.lora_up.weight"].dtype == dtypes.pop()


def test_a_merge_says_what_it_is(tmp_path: Path) -> None:
    one = save(tmp_path / "one.safetensors", part(TO_Q, rank=3), metadata={**SPEC, "modelspec.title": "One"})
    two = save(tmp_path / "two.safetensors", part(TO_Q, rank=4), part(FC1), metadata=SPEC)
    merge([one, two], tmp_path / "m.safetensors", weights=[1, 0.5])
    weights = read_file(tmp_path / "m.safetensors")
    told = weights.metadata
    assert told["modelspec.merged_from"] == "One, two x 0.5"
    assert told["ss_base_model_version"] == "sd_v1"
    assert not {"modelspec.trigger_phrase", "ss_tag_frequency"} & set(told)
    assert (told["ss_network_dim"], told["ss_network_module"]) == ("Dynamic", "networks.lora")
    assert told["sshs_model_hash"] == hash_tensors(weights.tensors)
    assert told["modelspec.hash_sha256"] == f"0x{told['sshs_model_hash']}"
    assert told["sshs_legacy_hash"] == hash_legacy(weights.tensors, told)
    ranks = {key: tensor.shape[0] for key, tensor in weights.tensors.items() if key.endswith("down.weight")}
    assert ranks == {f"{TO_Q}.lora_down.weight": 7, f"{FC1}.lora_down.weight": 2}


def test_a_merge_to_a_rank_tells_its_error(tmp_path: Path) -> None:
    sources = [save(tmp_path / f"{seed}.safetensors", part(TO_Q, rank=3, seed=seed), part(PROJ, kernel=1, seed=seed))
               for seed in (1, 2)]  # fmt: skip
    exact = merge(sources, tmp_path / "e.safetensors")
    wanted = deltas(tmp_path / "e.safetensors")
    done = merge(sources, tmp_path / "m.safetensors", rank=2)
    found = deltas(tmp_path / "m.safetensors")
    for layer, error in done.errors.items():
        values = np.linalg.svd(wanted[layer].reshape(6, -1), compute_uv=False)
        best = np.sqrt(np.sum(values[2:] ** 2) / np.sum(values**2))
        measured = np.linalg.norm(found[layer] - wanted[layer]) / np.linalg.norm(wanted[layer])
        assert error == pytest.approx(best, rel=1e-5)
        assert error == pytest.approx(measured, rel=1e-5)
    assert 0 < done.error < max(done.errors.values()) and exact.error == 0
    assert merge(sources, tmp_path / "f.safetensors", rank=64).error < 1e-6


def test_lycoris_merges_to_a_rank_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    loha = {f"{RESNET}.hada_{side}": encode(rng.normal(size=shape), "F32")
            for side, shape in {"w1_a": (6, 2), "w1_b": (2, 45), "w2_a": (6, 2), "w2_b": (2, 45)}.items()}  # fmt: skip
    one = save(tmp_path / "one.safetensors", loha)
    two = save(tmp_path / "two.safetensors", part(RESNET, kernel=3))
    with pytest.raises(ConversionError, match="give the merge a rank"):
        merge([one, two], tmp_path / "m.safetensors")
    assert merge([one, two], tmp_path / "m.safetensors", rank=6).error < 1e-6
    wanted = deltas(one)["unet.up_blocks.1.resnets.0.conv1"].reshape(6, 5, 3, 3)
    wanted = wanted + deltas(two)["unet.up_blocks.1.resnets.0.conv1"]
    np.testing.assert_allclose(
        deltas(tmp_path / "m.safetensors")["unet.up_blocks.1.resnets.0.conv1"], wanted, atol=1e-5
    )
    dora = {**part(TO_Q), f"{TO_Q}.dora_scale": encode(np.ones((6, 1)), "F32")}
    with pytest.raises(ConversionError, match="bake them") as caught:
        merge([save(tmp_path / "d.safetensors", dora), one], tmp_path / "n.safetensors", rank=2)
    assert caught.value.keys == ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",)


def test_loras_of_different_bases_do_not_merge(tmp_path: Path) -> None:
    sd15, sdxl = (save(tmp_path / f"{width}.safetensors", part(TO_K, inputs=width)) for width in (768, 2048))
    with pytest.raises(ConversionError, match="different bases: SDXL, Stable Diffusion 1"):
        merge([sd15, sdxl], tmp_path / "m.safetensors")
    small = save(tmp_path / "small.safetensors", part(TO_Q, out=3))
    with pytest.raises(ConversionError, match="differ in shape") as caught:
        merge([save(tmp_path / "q.safetensors", part(TO_Q)), small], tmp_path / "m.safetensors")
    assert len(caught.value.keys) == 1
    with pytest.raises(ConversionError, match="2 weights for 1"):
        merge([sd15], tmp_path / "m.safetensors", weights=[1, 2])
    with pytest.raises(ConversionError, match="finite"):
        merge([sd15], tmp_path / "m.safetensors", weights=[float("nan")])
    assert not (tmp_path / "m.safetensors").exists()


def test_singular_values_of_thin_and_full_matrices() -> None:
    rng = np.random.default_rng(4)
    for rows, rank, columns in ((30, 4, 50), (50, 4, 30), (5, 9, 6)):
        factors = Factors(up=rng.normal(size=(rows, rank)), down=rng.normal(size=(rank, columns)))
        matrix = factors.up @ factors.down
        wanted = np.linalg.svd(matrix, compute_uv=False)
        thin = decompose(factors)
        np.testing.assert_allclose(thin.values, wanted[: thin.values.size], atol=1e-10)
        np.testing.assert_allclose(decompose_matrix(matrix, 3).values, wanted[:3], rtol=1e-9)
        for found in (thin.cut(2), decompose_matrix(matrix, 2).cut(2)):
            missing = np.sqrt(np.sum(wanted[2:] ** 2))
            assert np.linalg.norm(matrix - found.up @ found.down) == pytest.approx(missing, rel=1e-9)
            assert difference(factors, found) == pytest.approx(missing, rel=1e-6)
        assert norm(factors) == pytest.approx(np.linalg.norm(matrix), rel=1e-9)
    nothing = decompose_matrix(np.zeros((4, 6)), 2).cut(2)
    assert not np.any(nothing.up @ nothing.down)


def test_a_resize_keeps_scale_dtype_and_history(tmp_path: Path) -> None:
    source = save(
        tmp_path / "a.safetensors",
        part(TO_Q, rank=4, alpha=2.0, dtype="F16"),
        part(RESNET, rank=4, alpha=1.0, dtype="F16", kernel=3),
        part(FC1, rank=1, alpha=1.0, dtype="F16"),
        metadata={**SPEC, "ss_training_comment": "mine"},
    )
    done = resize(source, tmp_path / "b.safetensors", Size(rank=2, conv_rank=3))
    weights = read_file(tmp_path / "b.safetensors")
    scales = {name.path.rsplit(".", 1)[1]: (module.rank, module.scale) for name, module in done.lora.modules.items()}
    assert scales == {"to_q": (2, 0.5), "conv1": (3, 0.25), "fc1": (1, 1.0)}
    assert {tensor.dtype for tensor in weights.tensors.values()} == {"F16"}
    assert weights.metadata["modelspec.trigger_phrase"] == "hero"
    assert json.loads(weights.metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "0.75", "dropout": "0.1"}
    assert weights.metadata["ss_training_comment"] == "dimension is resized from Dynamic to Dynamic; mine"
    assert weights.metadata["sshs_model_hash"] == hash_tensors(weights.tensors)
    before, after = deltas(source), deltas(tmp_path / "b.safetensors")
    for layer, error in done.errors.items():
        measured = np.linalg.norm(after[layer] - before[layer]) / np.linalg.norm(before[layer])
        assert error == pytest.approx(measured, rel=1e-4, abs=1e-6)
    assert done.errors["text_encoder.text_model.encoder.layers.0.mlp.fc1"] == 0


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({}, "needs a rank"),
        ({"rank": 0}, "1 or more"),
        ({"keep": "fro", "amount": 1.5}, "share between 0 and 1"),
        ({"keep": "ratio", "amount": 0.5}, "above 1"),
    ],
)
def test_sizes_that_make_no_sense(size: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        Size(**size)


def test_a_module_without_change_stays_as_it_is(tmp_path: Path) -> None:
    source = save(tmp_path / "a.safetensors", part(TO_Q, rank=2, dtype="BF16"))
    other = save(tmp_path / "b.safetensors", part(FC1, rank=2, dtype="F16", alpha=None))
    done = merge([source, other], tmp_path / "m.safetensors")
    for path in (source, other):
        for key, tensor in read_file(path).tensors.items():
            assert bytes(read_file(tmp_path / "m.safetensors").tensors[key].raw) == bytes(tensor.raw)
    assert all(isinstance(module, Module) for module in done.lora.modules.values())
