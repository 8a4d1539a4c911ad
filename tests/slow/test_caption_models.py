"""Captions by vision models: tiny ones of the real classes, built here with random weights that can only say one word."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pixelkit
from pixelkit.dataset.captions.entries import find_entries, open_sprite
from pixelkit.dataset.captions.tags import load_tagger
from pixelkit.dataset.captions.tokens import find_tokenizer
from pixelkit.dataset.captions.vision import load_captioner
from pixelkit.errors import DataError

if TYPE_CHECKING:
    from pixelkit.sources.sprite import Sprite

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY_TOKENIZER = Path(pixelkit.__file__).parent / "tiny" / "weights" / "tokenizer"
WORD = "goblin"
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def sprite(tmp_path: Path) -> Sprite:
    Image.new("RGBA", (16, 16), (200, 30, 30, 255)).save(tmp_path / "hero.png")
    return open_sprite(find_entries(tmp_path)[0])


def say_only(layer: torch.nn.Module, token: int) -> None:
    """Whatever it is shown, this output layer answers with one token."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias = torch.nn.Parameter(torch.zeros(layer.weight.shape[0]))
        layer.bias[token] = 30.0


def bert_tokenizer(folder: Path) -> transformers.BertTokenizer:
    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", WORD]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return transformers.BertTokenizer(str(folder / "vocab.txt"), bos_token="[DEC]")


def bart_tokenizer(folder: Path, kind: type, **special: object) -> object:
    folder.mkdir(exist_ok=True)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>", f"Ġ{WORD}"]
    letters = ["Ġ", *(chr(code) for code in range(33, 127))]
    pieces = [WORD[:size] for size in range(2, len(WORD))]
    merges = ["#version: 0.2", *(f"{WORD[:size]} {WORD[size]}" for size in range(1, len(WORD))), f"Ġ {WORD}"]
    vocab = {word: index for index, word in enumerate([*words, *letters, *pieces, WORD])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(merges))
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    return kind(str(folder / "vocab.json"), str(folder / "merges.txt"), **marks)


def make_blip(folder: Path) -> None:
    tokenizer = bert_tokenizer(folder)
    size = len(tokenizer)
    text = {
        **TINY,
        "vocab_size": size,
        "encoder_hidden_size": 16,
        "bos_token_id": 5,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    config = transformers.BlipConfig(
        text_config=text, vision_config={**TINY, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    model = transformers.BlipForConditionalGeneration(config)
    say_only(model.text_decoder.cls.predictions.decoder, tokenizer.convert_tokens_to_ids(WORD))
    model.text_decoder.cls.predictions.bias = model.text_decoder.cls.predictions.decoder.bias
    model.save_pretrained(folder)
    preparation = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(preparation, tokenizer).save_pretrained(folder)


def make_blip2(folder: Path) -> None:
    tokenizer = bart_tokenizer(folder, transformers.GPT2Tokenizer)
    config = transformers.Blip2Config(
        vision_config={**TINY, "image_size": 32, "patch_size": 8},
        qformer_config={**TINY, "vocab_size": 8, "encoder_hidden_size": 16},
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        },
        num_query_tokens=4,
        image_token_index=5,
    )
    model = transformers.Blip2ForConditionalGeneration(config)
    with torch.no_grad():  # OPT's head has no bias: the last norm gives ones, and one row of the head adds them up
        norm, head = model.language_model.model.decoder.final_layer_norm, model.language_model.lm_head
        norm.weight.zero_()
        norm.bias.fill_(1.0)
        head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
        head.weight[tokenizer.convert_tokens_to_ids(f"Ġ{WORD}")] = 2.0
    model.save_pretrained(folder)
    preparation = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.Blip2Processor(preparation, tokenizer, num_query_tokens=4).save_pretrained(folder)


def make_florence(folder: Path) -> None:
    tokenizer = bart_tokenizer(folder, transformers.BartTokenizer, extra_special_tokens={"image_token": "<image>"})
    size = len(tokenizer)
    config = transformers.Florence2Config(
        vision_config={
            "depths": [1, 1, 1, 1],
            "embed_dim": [8, 8, 8, 16],
            "num_heads": [1, 1, 1, 1],
            "num_groups": [1, 1, 1, 1],
            "projection_dim": 16,
            "window_size": 4,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": size,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        },
        image_token_id=tokenizer.image_token_id,
    )
    model = transformers.Florence2ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    layer = model.model.language_model.decoder.layers[-1].final_layer_norm
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(1.0)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(f"Ġ{WORD}")] = 2.0
    model.config.text_config.tie_word_embeddings = model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    preparation = transformers.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    preparation.image_seq_length = 5
    transformers.Florence2Processor(preparation, tokenizer).save_pretrained(folder)


@pytest.mark.parametrize(("mode", "make"), [("blip", make_blip), ("blip", make_blip2), ("florence", make_florence)])
def test_a_model_of_each_kind_captions_from_a_folder(mode: str, make: object, tmp_path: Path, sprite: Sprite) -> None:
    if mode == "florence" and not hasattr(transformers, "Florence2ForConditionalGeneration"):
        pytest.skip(f"transformers {transformers.__version__} has no Florence-2; it has from 4.56 on")
    folder = tmp_path / "model"
    make(folder)
    caption = load_captioner(mode, str(folder), device="cpu")
    first = caption(sprite)
    assert set(first.split()) == {WORD}
    assert caption(sprite) == first


def test_a_model_of_another_kind_is_refused_with_its_mode(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(DataError, match="of the kind blip; --mode florence") as refused:
        load_captioner("florence", str(tmp_path))
    assert refused.value.hint == "use --mode blip"
    with pytest.raises(DataError, match="no model found"):
        load_captioner("blip", str(tmp_path / "nowhere"))


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(DataError, match="cannot be loaded"):
        load_captioner("blip", str(tmp_path))


def test_florence_says_which_transformers_it_needs(tmp_path: Path) -> None:
    if hasattr(transformers, "Florence2ForConditionalGeneration"):
        pytest.skip("this transformers has it")
    (tmp_path / "config.json").write_text('{"model_type": "florence2"}')
    with pytest.raises(DataError, match="has no Florence2ForConditionalGeneration") as refused:
        load_captioner("florence", str(tmp_path))
    assert "4.56" in refused.value.hint


def test_a_real_onnx_tagger(tmp_path: Path, sprite: Sprite) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    # The mean of each channel over 255: blue, green, red, as the taggers expect them.
    node = onnx.helper.make_node("ReduceMean", ["picture"], ["mean"], axes=[1, 2], keepdims=0)
    scale = onnx.helper.make_node("Div", ["mean", "most"], ["chances"])
    most = onnx.helper.make_tensor("most", onnx.TensorProto.FLOAT, [], [255.0])
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node, scale],
        "tagger",
        [onnx.helper.make_tensor_value_info("picture", floats, ["n", 64, 64, 3])],
        [onnx.helper.make_tensor_value_info("chances", floats, ["n", 3])],
        [most],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "selected_tags.csv").write_text(
        "tag_id,name,category,count\n1,blue_thing,0,1\n2,green,0,1\n3,red_dress,0,1\n"
    )
    assert load_tagger(tmp_path)(sprite) == "red dress"


@given(st.text(st.characters(max_codepoint=0x24F, exclude_categories=["C"]), max_size=40))
@settings(deadline=None)
def test_tokens_are_those_of_transformers(text: str) -> None:
    """On the vocabulary that comes along; texts that ftfy would mend, and marks of CLIP's own, are left out."""
    from ftfy import fix_text

    if fix_text(text) == text and "<|" not in text:
        assert find_tokenizer(TINY_TOKENIZER).encode(text) == reference_tokenizer().tokenize(text)


@functools.cache
def reference_tokenizer() -> transformers.CLIPTokenizer:
    return transformers.CLIPTokenizer.from_pretrained(TINY_TOKENIZER)
