"""CatSith's `.lora.json`, the layout of its training guide (docs/TRAINING_GUIDE.md, justinelliottcobb/Cat-Sith).

    {"metadata": {"name", "version", "base_model", "rank", "alpha", ...},
     "layers": {"lora_unet_...": {"A": [[...]], "B": [[...]], "rank", "alpha", "shape"}}}

A is kohya's lora_down, B its lora_up; layers have their kohya names. The guide's own script writes a convolution's
matrices four lists deep, loses alpha and says rank 32, alpha 16 of every file. Here A is (rank, in * kh * kw) and B (out,
rank), `shape` is that of the layer's weight, rank and alpha are the layer's own; the ones under `metadata` are those of
most layers. The numbers are decimals that read back to the same float32.

Compact: `"encoding": "base64-f16"` under `metadata`, and A and B are base64 of little-endian half floats. A layer that half
floats cannot hold has an `encoding` of its own, in the file's own dtype (`base64-bf16`, `base64-f32`).

Both are written and read layer by layer, never as a whole document.
"""

from __future__ import annotations

import binascii
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import fused
from converters.errors import ConversionError
from converters.float_texts import write_matrix
from converters.json_spans import Span, read_document
from converters.lora import Lora, Module, Written, carry_metadata, check_finite, name_places
from converters.names import join_kohya, parse_kohya
from converters.note import NOTE, encode_alpha, read_note, write_note
from converters.tensors import ITEM_SIZE, Tensor, encode, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from converters.lora import Source
    from converters.names import Name

VERSION = "1.0"
_ENCODINGS = {"base64-f16": "F16", "base64-bf16": "BF16", "base64-f32": "F32", "base64-f64": "F64"}
# What a reader of the file may want to know -> the key of a kohya file's metadata that tells it.
_TOLD: Mapping[str, str] = {
    "description": "modelspec.description",
    "author": "modelspec.author",
    "license": "modelspec.license",
    "trigger": "modelspec.trigger_phrase",
    "usage_hint": "modelspec.usage_hint",
    "tags": "modelspec.tags",
    "resolution": "modelspec.resolution",
    "date": "modelspec.date",
}


@dataclass(frozen=True, kw_only=True)
class CatSith:
    """The format in one of its two encodings."""

    compact: bool

    def matches(self, source: Source) -> bool:
        """Whether a file is JSON with layers, in this encoding."""
        if source.weights is not None or not looks_like_json(source.path):
            return False
        with read_document(source.path) as document:
            return "layers" in document.keys and document.has_text("A") == self.compact

    def parse(self, source: Source) -> Lora:
        """Raises ConversionError: no such document, unknown layers, matrices that do not fit, numbers not finite."""
        with read_document(source.path) as document:
            metadata = document.metadata
            kept = metadata.get("kohya")
            carried = {str(key): str(value) for key, value in kept.items()} if isinstance(kept, dict) else {}
            places = [name_places([parse_kohya(name)])[0] for name in document.layers]
            spellings = read_note(carried, places)
            modules: dict[Name, Module] = {}
            for layer, place in zip(document.layers, places, strict=True):
                spelling = spellings.get(place)
                dtypes = (spelling.down_dtype, spelling.up_dtype) if spelling else ("", "")
                fields = document.read_layer(layer, big=("A", "B"))
                down, up = _read_matrices(layer, fields, metadata.get("encoding"), dtypes)
                rank = down.shape[0]
                value = _read_alpha(layer, fields, metadata, rank)
                alpha = spelling.alpha_tensor(value) if spelling else encode_alpha(value, down.dtype)
                modules[parse_kohya(layer)] = Module(down=down, up=up, alpha=alpha)
        joined = {f"{place}.{part}": tensor for place, module in zip(places, modules.values(), strict=True)
                  for part, tensor in module.parts.items()}  # fmt: skip
        check_finite(joined)
        return Lora(modules=modules, metadata=carry_metadata(carried) or _retell(metadata))

    def write(self, lora: Lora, out: Path, *, flat_text_encoder: bool = False) -> Written:  # noqa: ARG002 no such layers
        """Write the file. Raises ConversionError with the modules that are more than two matrices: LyCORIS, DoRA."""
        lora = fused.join(lora)
        modules = {name: module for name, module in lora.modules.items() if isinstance(module, Module)}
        modules = {name: module for name, module in modules.items() if not module.mid and not module.magnitude}
        strange = lora.modules.keys() - modules.keys()
        if strange:
            raise ConversionError("CatSith holds plain LoRA only, no LyCORIS and no DoRA", keys=name_places(strange))
        with replace_file(out) as temporary, temporary.open("wb") as handle:
            head = json.dumps({"metadata": self._describe(lora, modules, out)}, ensure_ascii=False)
            handle.write(head[:-1].encode() + b', "layers": {')
            for position, (name, module) in enumerate(modules.items()):
                handle.write((b",\n" if position else b"\n") + _quote(_join(name)) + b": {")
                for piece in self._write_layer(module):
                    handle.write(piece)
                handle.write(b"}")
                module.down.release()
                module.up.release()
            handle.write(b"\n}}\n")
        return Written(paths=(out,))

    def _describe(self, lora: Lora, modules: Mapping[Name, Module], out: Path) -> dict[str, Any]:
        told = lora.metadata
        title = told.get("modelspec.title") or told.get("ss_output_name") or out.name.partition(".")[0]
        base = told.get("ss_sd_model_name") or told.get("ss_base_model_version")
        base = base or told.get("modelspec.architecture", "").removesuffix("/lora") or "unknown"
        common = Counter((module.rank, module.alpha_value) for module in modules.values()).most_common(1)[0][0]
        found: dict[str, Any] = {"name": title, "version": VERSION, "base_model": base}
        found |= {"rank": common[0], "alpha": common[1]}
        found |= {field: told[key] for field, key in _TOLD.items() if told.get(key)}
        found |= {"encoding": "base64-f16"} if self.compact else {}
        return {**found, "kohya": {**told, NOTE: write_note(modules)}}

    def _write_layer(self, module: Module) -> Iterator[bytes]:
        down = module.down.reshape(module.rank, math.prod(module.down.shape[1:]))
        up = module.up.reshape(module.shape[0], module.rank)
        numbers: dict[str, Any] = {"rank": module.rank, "alpha": module.alpha_value, "shape": list(module.shape)}
        if self.compact:
            dtype = _choose_dtype(down, up)
            if dtype != "F16":
                numbers["encoding"] = f"base64-{dtype.lower()}"
            for key, tensor in (("A", down), ("B", up)):
                encoded = binascii.b2a_base64(_recode(tensor, dtype).raw, newline=False)
                yield b'"%s": "' % key.encode()
                yield encoded
                yield b'", '
        else:
            for key, tensor in (("A", down), ("B", up)):
                yield b'"%s": ' % key.encode()
                yield from write_matrix(tensor)
                yield b", "
        yield json.dumps(numbers)[1:-1].encode()


FULL = CatSith(compact=False)
COMPACT = CatSith(compact=True)


def looks_like_json(path: Path) -> bool:
    """Whether a file begins as a JSON object; a safetensors file has a zero byte among its first eight."""
    try:
        with path.open("rb") as handle:
            start = handle.read(8)
    except OSError:
        return False
    return start.lstrip().startswith(b"{") and b"\0" not in start


def _read_matrices(
    layer: str, fields: Mapping[str, Any], encoding: object, dtypes: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    spans = [fields.get("A"), fields.get("B")]
    if not all(isinstance(span, Span) for span in spans):
        raise ConversionError("a layer without A or B", keys=[layer])
    own = fields.get("encoding", encoding)
    stored = _ENCODINGS.get(str(own), "")
    found: list[Tensor] = []
    for span, dtype in zip(spans, dtypes, strict=True):
        assert isinstance(span, Span)
        if span.is_text and not stored:
            raise ConversionError(f"an unknown encoding, {own}", keys=[layer])
        try:
            tensor = _decode(span, stored) if span.is_text else encode(span.read_numbers(), "F32")
        except ValueError as error:
            raise ConversionError(f"numbers that cannot be read: {error}", keys=[layer]) from error
        found.append(_narrow(tensor, dtype, text=span) if dtype else tensor)
    return _reshape(layer, found[0], found[1], fields.get("shape"), fields.get("rank"))


def _reshape(layer: str, down: Tensor, up: Tensor, shape: object, rank: object) -> tuple[Tensor, Tensor]:
    if isinstance(shape, list) and len(shape) in {2, 4} and all(type(size) is int and size > 0 for size in shape):
        own = rank if type(rank) is int else down.shape[0]
        tail = (1, 1) if len(shape) == 4 else ()
        wanted = ((own, *shape[1:]), (shape[0], own, *tail))
        for tensor, size in zip((down, up), wanted, strict=True):
            other_rows = len(tensor.shape) > 1 and tensor.shape[0] != size[0]
            if other_rows or math.prod(tensor.shape) != math.prod(size):
                raise ConversionError("matrices that are not of the layer's shape and rank", keys=[layer])
        return down.reshape(*wanted[0]), up.reshape(*wanted[1])
    if len(down.shape) not in {2, 4} or len(up.shape) != len(down.shape):
        raise ConversionError("a layer without its shape", keys=[layer])
    return down, up


def _read_alpha(layer: str, fields: Mapping[str, Any], metadata: Mapping[str, Any], rank: int) -> float:
    """The layer's alpha; in a file as the guide writes it, what the file's own alpha / rank make of the layer's rank."""
    value = fields.get("alpha")
    if value is None and metadata.get("rank") and metadata.get("alpha") is not None:
        value = metadata["alpha"] / metadata["rank"] * rank
    if value is None:
        return float(rank)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConversionError("an alpha that is no number", keys=[layer])
    return float(value)


def _decode(span: Span, dtype: str) -> Tensor:
    data = np.frombuffer(binascii.a2b_base64(span.raw), np.uint8)
    return Tensor(dtype=dtype, shape=(data.size // ITEM_SIZE[dtype],), data=data)


def _narrow(tensor: Tensor, dtype: str, *, text: Span) -> Tensor:
    """The tensor in the dtype it had, if that holds it: somebody may have changed the numbers."""
    if dtype == tensor.dtype:
        return tensor
    if dtype == "F64" and not text.is_text:
        return encode(text.read_numbers(), "F64")
    if dtype.startswith("F8"):
        codes = np.arange(256, dtype=np.uint8)
        values = Tensor(dtype=dtype, shape=(256,), data=codes).to_float32()
        by_bits = {int(bits): code for code, bits in enumerate(values.view(np.uint32).tolist())}
        bits = tensor.to_float32().reshape(-1).view(np.uint32).tolist()
        if all(bit in by_bits for bit in bits):
            return Tensor(dtype=dtype, shape=tensor.shape, data=np.array([by_bits[bit] for bit in bits], np.uint8))
        return tensor
    narrow = encode(tensor.to_float64() if dtype == "F64" else tensor.to_float32(), dtype)
    same = np.array_equal(narrow.to_float64(), tensor.to_float64())
    return narrow if same else tensor


def _choose_dtype(down: Tensor, up: Tensor) -> str:
    """F16 where it holds both matrices, else the dtype of the file, or the smallest that holds both of its dtypes."""
    if all(_recode(tensor, "F16", test=True).dtype == "F16" for tensor in (down, up)):
        return "F16"
    dtypes = {"F32" if tensor.dtype.startswith("F8") else tensor.dtype for tensor in (down, up)}
    return dtypes.pop() if len(dtypes) == 1 else "F64" if "F64" in dtypes else "F32"


def _recode(tensor: Tensor, dtype: str, *, test: bool = False) -> Tensor:
    """The same numbers in another dtype; `test`: the tensor itself where that would change one."""
    if tensor.dtype == dtype:
        return tensor
    wide = tensor.to_float64() if tensor.dtype == "F64" else tensor.to_float32()
    recoded = encode(wide, dtype)
    return tensor if test and not np.array_equal(recoded.to_float64(), wide) else recoded


def _retell(metadata: Mapping[str, Any]) -> dict[str, str]:
    """A kohya file's metadata from a document that was not made from one."""
    told = {key: metadata[field] for field, key in _TOLD.items() if isinstance(metadata.get(field), str)}
    told |= {"ss_output_name": metadata["name"]} if isinstance(metadata.get("name"), str) else {}
    return told | ({"ss_sd_model_name": metadata["base_model"]} if isinstance(metadata.get("base_model"), str) else {})


def _join(name: Name) -> str:
    return join_kohya(name.component, name.path, prefix=name.prefix, naming=name.naming)


def _quote(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()
