"""safetensors files as raw bytes: lazy reading, atomic writing, no widening that nobody asked for.

numpy knows neither BF16 nor F8, so a tensor is kept as its bytes with a dtype name and a shape. Nothing changes a
value except `Tensor.to_float32` and `encode`, which say so. Files are laid out as the safetensors library lays them
out (by dtype, then by name; header padded to 8 bytes): the hashes of a file's bytes are then those of every other tool.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from converters.errors import ConversionError
from converters.strangers import HEAD, describe_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Bytes = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# In the order of the safetensors library's own enumeration: files are written in descending order of it.
DTYPES: Mapping[str, np.dtype[Any] | None] = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E5M2": None,
    "F8_E4M3": None,
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": None,
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
ITEM_SIZE: Mapping[str, int] = {
    name: native.itemsize if native is not None else (2 if name == "BF16" else 1) for name, native in DTYPES.items()
}
FLOATS = frozenset({"F8_E5M2", "F8_E4M3", "F16", "BF16", "F32", "F64"})
# The bits of infinity; of NaN in F8_E4M3, which has no infinity.
_INFINITIES = {"F8_E5M2": 0x7C, "F8_E4M3": 0x7F, "F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF << 52}
_RANK = {name: position for position, name in enumerate(DTYPES)}
_MAX_HEADER = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as its little-endian bytes: `data` is a flat uint8 view, `dtype` a safetensors name (`BF16`)."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def __post_init__(self) -> None:
        if self.data.size != math.prod(self.shape) * ITEM_SIZE[self.dtype]:
            raise ConversionError(f"{self.data.size} bytes are no {self.dtype} tensor of shape {list(self.shape)}")

    @property
    def raw(self) -> memoryview:
        """The bytes, for what takes a buffer."""
        return self.data.data

    def to_numpy(self) -> npt.NDArray[Any]:
        """The values in numpy's own dtype, without a copy. Raises ConversionError for BF16 and F8."""
        native = DTYPES[self.dtype]
        if native is None:
            raise ConversionError(f"numpy has no {self.dtype}; ask for to_float32")
        return self.data.view(native).reshape(self.shape)

    def to_float64(self) -> Float64:
        """The values as float64: exact for every float."""
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return (self.to_numpy() if self.dtype == "F64" else self.to_float32()).astype(np.float64, copy=False)

    def to_float32(self) -> Float32:
        """The values as float32: exact for F8, F16, BF16 and F32."""
        if self.dtype == "BF16":
            bits = self.data.view("<u2").astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32).reshape(self.shape)
        if self.dtype in {"F8_E5M2", "F8_E4M3"}:
            return _eight_bit_values(self.dtype)[self.data].reshape(self.shape)
        with np.errstate(over="ignore"):
            return self.to_numpy().astype(np.float32, copy=False)

    def is_finite(self) -> bool:
        """Whether no value is a NaN or an infinity: no bit pattern lies at or above infinity's, for either sign."""
        infinity = _INFINITIES.get(self.dtype)
        if infinity is None or not self.data.size:
            return True
        size = ITEM_SIZE[self.dtype]
        signed, unsigned = self.data.view(f"<i{size}"), self.data.view(f"<u{size}")
        return int(signed.max()) < infinity and int(unsigned.max()) < infinity + (1 << (8 * size - 1))

    def release(self) -> None:
        """Let go of the memory that a mapped file's tensor was read into; reading it again costs time only."""
        whole: Any = self.data.base
        mapped: Any = getattr(whole, "base", None)
        mapped = getattr(mapped, "obj", mapped)
        if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
            first = _address(self.data) - _address(whole)
            start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (first + self.data.size) // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0:
                mapped.madvise(mmap.MADV_DONTNEED, start, length)

    def reshape(self, *shape: int) -> Tensor:
        """The same bytes under another shape."""
        return Tensor(dtype=self.dtype, shape=shape, data=self.data)


def encode(values: npt.ArrayLike, dtype: str) -> Tensor:
    """Values -> tensor of `dtype` (F16, BF16, F32 or any dtype of numpy), rounded to nearest even."""
    if dtype == "BF16":
        with np.errstate(over="ignore"):
            bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
        nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        rounded = np.where(nan, np.uint16(0x7FC0), rounded).astype("<u2")
        return Tensor(dtype=dtype, shape=np.shape(values), data=rounded.reshape(-1).view(np.uint8))
    native = DTYPES[dtype]
    if native is None:
        raise ConversionError(f"cannot write {dtype}")
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(np.asarray(values), dtype=native).reshape(-1)
    return Tensor(dtype=dtype, shape=np.shape(values), data=flat.view(np.uint8))


def from_numpy(array: npt.NDArray[Any], dtype: str = "") -> Tensor:
    """A numpy array as a tensor; `dtype="BF16"` says that a uint16 array holds the bits of bfloat16 numbers."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if not dtype:
        names = [name for name, native in DTYPES.items() if native is not None and native == flat.dtype]
        if not names:
            raise ConversionError(f"safetensors cannot hold numpy's {flat.dtype}")
        dtype = names[0]
    return Tensor(dtype=dtype, shape=tuple(array.shape), data=flat.view(np.uint8))


def order_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names in the order in which the safetensors library writes them."""
    return sorted(tensors, key=lambda name: (-_RANK[tensors[name].dtype], name.encode()))


def build_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """The first bytes of a file: length, JSON, padding; as many bytes as the safetensors library writes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order_names(tensors):
        tensor = tensors[name]
        end = start + tensor.data.size
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by name with a file's metadata; a file's tensors are views into the mapped file, read when used."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_file(path: Path | str) -> Weights:
    """Open a safetensors file: the header is checked in full, tensor bytes are mapped and read only when used.

    Raises ConversionError where the file is missing, unreadable, no safetensors, cut short, or where its header
    contradicts itself or the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise ConversionError(_explain(path, prefix + handle.read(HEAD), size=size, length=length))
            text = handle.read(length)
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = _parse_header(path, text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConversionError(f"{path}: the header's __metadata__ is no table of strings")
    body = np.frombuffer(mapped, dtype=np.uint8)[8 + length :]
    tensors: dict[str, Tensor] = {}
    expected = 0
    for name, entry in sorted(header.items(), key=lambda item: _start_of(item[1])):
        dtype, shape, start, end = _check_entry(path, name, entry)
        if start != expected:
            raise ConversionError(f"{path}: the header is wrong: a gap or an overlap at byte {start}", keys=[name])
        if end > body.size:
            raise ConversionError(f"{path}: cut short: the header promises {end} bytes or more, {body.size} are there")
        tensors[name] = Tensor(dtype=dtype, shape=shape, data=body[start:end])
        expected = end
    if expected != body.size:
        raise ConversionError(f"{path}: {body.size - expected} bytes after the last tensor belong to none")
    return Weights(tensors=tensors, metadata=metadata)


def write_file(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    seal: Callable[[str], Mapping[str, str]] | None = None,
) -> None:
    """Write a safetensors file under a temporary name, fsync it, rename it. Raises ConversionError.

    `seal` makes the metadata, in place of `metadata`, from the sha256 of the bytes after the header; how long it is
    must not depend on the hash. The header is then written last, and hashing goes on beside the writing.
    """
    pieces = _join_neighbours([tensors[name].data for name in order_names(tensors)])
    with replace_file(path) as temporary, temporary.open("wb") as handle, ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(_hash_pieces, pieces) if seal else None
        handle.write(build_header(tensors, seal("0" * 64) if seal else metadata))
        for piece in pieces:
            handle.write(piece.data)
        if seal and hashing:
            handle.flush()
            os.fsync(handle.fileno())
            header = build_header(tensors, seal(hashing.result()))
            handle.seek(0)
            handle.write(header)


@contextlib.contextmanager
def replace_file(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well it is fsynced and renamed, else removed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_path(temporary)
        temporary.replace(path)
        sync_path(path.parent)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """fsync a file, or a folder where the system can (Windows cannot)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _join_neighbours(pieces: Sequence[Bytes]) -> list[Bytes]:
    """The same bytes in fewer pieces: views that follow one another in one file become one."""
    joined: list[Bytes] = []
    end = 0
    for piece in pieces:
        start, last, whole = _address(piece), joined[-1] if joined else piece, piece.base
        bytewise = isinstance(whole, np.ndarray) and whole.dtype == np.uint8 and whole.ndim == 1
        if whole is not None and bytewise and start == end and whole is last.base and last.size and piece.size:
            first = end - last.size - _address(whole)
            joined[-1] = whole[first : first + last.size + piece.size]
        else:
            joined.append(piece)
        end = start + piece.size
    return joined


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _hash_pieces(pieces: Sequence[Bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.data)
    return digest.hexdigest()


def _explain(path: Path, head: bytes, *, size: int, length: int) -> str:
    if size == 0:
        return f"{path}: the file is empty"
    if what := describe_file(head):
        return f"{path}: {what}"
    if size >= 8 and length <= _MAX_HEADER:
        return f"{path}: cut short, or not safetensors: it announces a header of {length} bytes and has {size} in all"
    return f"{path}: not a safetensors file"


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ConversionError(f"{path}: names that occur twice", keys={n for n in names if names.count(n) > 1})
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=without_twins)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not a safetensors file (its header is no JSON)") from error
    if not isinstance(header, dict):
        raise ConversionError(f"{path}: not a safetensors file (its header is no JSON object)")
    return header


def _start_of(entry: object) -> int:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets[0] if isinstance(offsets, list) and offsets and isinstance(offsets[0], int) else -1


def _check_entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    def wrong(what: str) -> ConversionError:
        return ConversionError(f"{path}: the header is wrong: {what}", keys=[name])

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong("an entry needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_SIZE:
        raise wrong(f"unknown dtype {dtype}")
    if not _is_numbers(shape) or not _is_numbers(offsets) or len(offsets) != 2:
        raise wrong("shape and data_offsets are lists of whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_SIZE[dtype]:
        raise wrong(f"{offsets[1] - offsets[0]} bytes for a {dtype} tensor of shape {shape}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _eight_bit_values(dtype: str) -> Float32:
    """All 256 values of an 8-bit float (OCP: E5M2 has infinities, E4M3FN has not)."""
    exponent_bits, bias = (5, 15) if dtype == "F8_E5M2" else (4, 7)
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - float(bias)))
    if dtype == "F8_E5M2":
        value = np.where(exponent == 31, np.where(mantissa == 0, np.inf, np.nan), value)
    else:
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    return (sign * value).astype(np.float32)
