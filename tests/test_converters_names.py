"""Names: every layer of a known kind has one kohya name, and the way back is exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters import name_tables
from converters.errors import ConversionError
from converters.names import is_layer, join_kohya, nearest_name, parse_kohya, unknown_layers

numbers = st.lists(st.integers(0, 30), min_size=4, max_size=4)


def fill(pattern: str, values: list[int]) -> str:
    for value in values:
        pattern = pattern.replace("#", str(value), 1)
    return pattern


@given(st.sampled_from(name_tables.UNET), numbers)
def test_unet_names_go_there_and_back(pattern: str, values: list[int]) -> None:
    path = fill(pattern, values)
    name = join_kohya("unet", path)
    assert name == "lora_unet_" + path.replace(".", "_")
    found = parse_kohya(name)
    assert (found.component, found.path, found.naming) == ("unet", path, "diffusers")


@given(st.sampled_from(name_tables.TEXT_ENCODER), numbers, st.sampled_from(["lora_te_", "lora_te1_", "lora_te2_"]))
def test_text_encoder_names_go_there_and_back(pattern: str, values: list[int], prefix: str) -> None:
    path = fill(pattern, values)
    found = parse_kohya(prefix + path.replace(".", "_"))
    assert (found.path, found.prefix) == (path, prefix)
    assert join_kohya(found.component, path, prefix=prefix) == prefix + path.replace(".", "_")


@given(st.sampled_from(name_tables.FLUX_ORIGINAL + name_tables.SD3_ORIGINAL), numbers)
def test_transformers_as_published(pattern: str, values: list[int]) -> None:
    path = fill(pattern, values)
    name = "lora_unet_" + path.replace(".", "_")
    found = parse_kohya(name)
    assert (found.component, found.path, found.naming) == ("transformer", path, "original")
    assert join_kohya("transformer", path, prefix=found.prefix, naming="original") == name


@given(st.sampled_from(name_tables.FLUX + name_tables.SD3), numbers)
def test_transformers_as_diffusers_has_them(pattern: str, values: list[int]) -> None:
    path = fill(pattern, values)
    name = "lora_transformer_" + path.replace(".", "_")
    found = parse_kohya(name)
    assert (found.component, found.path, found.naming) == ("transformer", path, "diffusers")
    assert join_kohya("transformer", path, prefix="lora_transformer_") == name


@given(st.sampled_from(name_tables.T5), numbers)
def test_t5(pattern: str, values: list[int]) -> None:
    path = fill(pattern, values)
    found = parse_kohya("lora_te3_" + path.replace(".", "_"))
    assert (found.component, found.path) == ("text_encoder_3", path)
    assert join_kohya("text_encoder_3", path) == "lora_te3_" + path.replace(".", "_")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("input_blocks_4_1_transformer_blocks_1_attn2_to_out_0",
         "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_7_0_skip_connection", "down_blocks.2.resnets.0.conv_shortcut"),
        ("input_blocks_0_0", "conv_in"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks_8_0_emb_layers_1", "up_blocks.2.resnets.2.time_emb_proj"),
        ("label_emb_0_2", "add_embedding.linear_2"),
    ],
)  # fmt: skip
def test_stability_names_of_sdxl(name: str, path: str) -> None:
    found = parse_kohya(f"lora_unet_{name}")
    assert (found.path, found.naming) == (path, "sai")
    assert join_kohya("unet", path, naming="sai") == f"lora_unet_{name}"


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn3_to_q",
        "lora_unet_down_blocks_00_downsamplers_0_conv",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_1_proj",
        "lora_unet_input_blocks_99_1_proj_in",
        "lora_unet_input_blocks_4_1_nonsense",
        "lora_unet_double_blocks_0_img_attn_q",
        "lora_unet_transformer_blocks_0_attn_to_q",
        "lora_transformer_double_blocks_0_img_attn_qkv",
        "lora_te1_encoder_block_0_layer_0_SelfAttention_q",
        "lora_te3_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_embeddings_token_embedding",
        "lora_unet_",
        "lora_unet",
        "something",
        "",
    ],
)
def test_unknown_names_are_an_error(name: str) -> None:
    with pytest.raises(ConversionError) as caught:
        parse_kohya(name)
    assert caught.value.keys == (name,)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lora_unet_double_blocks_3_img_attn_qkw.lora_down.weight",
         "lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_kk.alpha",
         "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.alpha"),
        ("lora_te3_encoder_block_7_layer_1_DenseReluDens_wo.dora_scale",
         "lora_te3_encoder_block_7_layer_1_DenseReluDense_wo.dora_scale"),
        ("transformer.transformer_blocks.4.attn.to_qq.lora_A.weight",
         "transformer.transformer_blocks.4.attn.to_q.lora_A.weight"),
        ("unet: base_model.model.down_blocks.0.attentions.1.proj_im.lora_B.weight",
         "down_blocks.0.attentions.1.proj_in.lora_B.weight"),
        ("hero", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_nearest_name_is_offered(key: str, nearest: str) -> None:
    assert nearest_name(key) == nearest
    error = unknown_layers("modules of no known model", [key])
    assert error.keys == (key,)
    assert nearest in str(error)
    assert ("did you mean" in str(error)) == bool(nearest)


def test_unknown_paths_are_an_error() -> None:
    assert not is_layer("unet", "down_blocks.0.attentions.0")
    with pytest.raises(ConversionError):
        join_kohya("unet", "down_blocks.x.conv")
    with pytest.raises(ConversionError, match="no layer of SDXL"):
        join_kohya("unet", "down_blocks.3.resnets.0.conv1", naming="sai")
