"""safetensors files: the same bytes as the safetensors library writes, and a clear error for every broken one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import ConversionError
from converters.tensors import (
    Tensor,
    _join_neighbours,
    build_header,
    encode,
    from_numpy,
    order_names,
    read_file,
    write_file,
)

if TYPE_CHECKING:
    from pathlib import Path


def make_file(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@given(metadata=st.dictionaries(st.text(max_size=8).filter(lambda key: "\ud800" not in key), st.text(max_size=20)))
def test_files_are_those_of_the_library(metadata: dict[str, str]) -> None:
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "scalar": np.zeros((), np.float32),
        'é "quoted"\n': np.zeros((0, 4), np.int64),
        "flags": np.ones(3, bool),
    }
    tensors = {name: from_numpy(array) for name, array in arrays.items()}
    ours = build_header(tensors, metadata) + b"".join(tensors[name].raw for name in order_names(tensors))
    theirs = safetensors.numpy.save(arrays, metadata or None)
    length = int.from_bytes(theirs[:8], "little")
    assert ours[:8] == theirs[:8]
    assert json.loads(ours[8 : 8 + length]) == json.loads(theirs[8 : 8 + length])
    assert ours[8 + length :] == theirs[8 + length :]


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {
        "b": Tensor(dtype="BF16", shape=(2,), data=np.array([0x3F80, 0xC000], "<u2").view(np.uint8)),
        "a": encode([[0.5], [2.0]], "F16"),
        "f": Tensor(dtype="F8_E4M3", shape=(3,), data=np.array([0x38, 0x7F, 0x80], np.uint8)),
    }
    write_file(tmp_path / "x.safetensors", tensors, {"k": "v"})
    found = read_file(tmp_path / "x.safetensors")
    assert found.metadata == {"k": "v"}
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert bytes(found.tensors[name].raw) == bytes(tensor.raw)
    assert found.tensors["b"].to_float32().tolist() == [1.0, -2.0]
    assert found.tensors["f"].to_float32()[0] == 1.0
    assert np.isnan(found.tensors["f"].to_float32()[1])
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(ConversionError, match="numpy has no BF16"):
        found.tensors["b"].to_numpy()


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_bfloat16_rounds_to_the_nearest_even(values: list[float]) -> None:
    found = encode(values, "BF16").to_float32()
    exact = np.array(values, np.float32)
    bits = exact.view(np.uint32)
    below = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        above = ((bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    for got, want, low, high in zip(found, exact.astype(np.float64), below, above, strict=True):
        assert got in (low, high)
        if np.isfinite(high) and np.isfinite(got):
            assert abs(got - want) <= min(abs(low - want), abs(high - want))


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    write_file(target, {"a": encode([1.0], "F32")})
    before = target.read_bytes()
    with pytest.raises(ConversionError, match="no F32 tensor"):
        write_file(target, {"a": Tensor(dtype="F32", shape=(2,), data=np.zeros(4, np.uint8))})
    with pytest.raises(ConversionError, match="cannot be written"):
        write_file(tmp_path / "nowhere" / "x.safetensors", {"a": encode([1.0], "F32")})
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"a": entry(0, 4)}, b"\0\0", "cut short"),
        ({"a": entry(0, 4)}, b"\0" * 9, "5 bytes after the last tensor"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"\0" * 6, "a gap or an overlap"),
        ({"a": entry(4, 8)}, b"\0" * 8, "a gap or an overlap"),
        ({"a": entry(0, 8)}, b"\0" * 8, "8 bytes for a F32 tensor of shape"),
        ({"a": entry(0, 4, "F33")}, b"\0" * 4, "unknown dtype F33"),
        ({"a": entry(0, -4)}, b"", "whole numbers"),
        ({"a": {"dtype": "F32"}}, b"", "needs dtype, shape and data_offsets"),
        ({"a": 3}, b"", "needs dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}}, b"", "no table of strings"),
        (b'{"a":1,"a":1}', b"", "occur twice"),
        (b"[]", b"", "no JSON object"),
        (b"{" * 3000, b"", "no JSON"),
        (b"\xff\xfe", b"", "no JSON"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, body: bytes, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        read_file(make_file(tmp_path / "x.safetensors", header, body))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc", "not a safetensors file"),
        (b"PK\x03\x04" + b"\0" * 40, "a pickle"),
        (b"\x80\x02}q\x00" + b"\0" * 40, "a pickle"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        ((500).to_bytes(8, "little") + b"{", "cut short, or not safetensors"),
        (b"\xff" * 64, "not a safetensors file"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_file(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="No such file"):
        read_file(tmp_path / "none.safetensors")
    with pytest.raises(ConversionError, match="cannot be read"):
        read_file(tmp_path)


def test_the_error_lists_keys() -> None:
    error = ConversionError("unknown keys", keys=[f"k{number:02}" for number in range(15)])
    assert str(error).splitlines() == ["unknown keys", *(f"  k{number:02}" for number in range(10)), "  ... and 5 more"]
    assert len(error.keys) == 15


def test_released_memory_is_read_again(tmp_path: Path) -> None:
    tensors = {"a": encode(np.arange(50_000), "F32"), "b": encode([1.0], "F16")}
    write_file(tmp_path / "x", tensors)
    found = read_file(tmp_path / "x").tensors
    for name, tensor in tensors.items():
        for _ in range(2):
            assert bytes(found[name].raw) == bytes(tensor.raw)
            found[name].release()
        tensor.release()  # no mapped file: nothing happens
        assert bytes(found[name].raw) == bytes(tensor.raw)


def test_views_that_follow_one_another_are_written_as_one(tmp_path: Path) -> None:
    tensors = {f"{number:02}": encode(np.full(number, number), "F32") for number in range(1, 20)}
    write_file(tmp_path / "x", tensors)
    found = read_file(tmp_path / "x").tensors
    assert len(_join_neighbours([tensor.data for tensor in found.values()])) == 1
    mixed = {"20": encode([1.0], "F32")} | {name: found[name] for name in ("03", "05", "04", "09")}
    write_file(tmp_path / "y", mixed)
    for name, tensor in read_file(tmp_path / "y").tensors.items():
        assert bytes(tensor.raw) == bytes(mixed[name].raw)
