"""Pickles are opened on request only, by torch's reader for tensors, and never run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import ConversionError, convert, read_lora
from converters.tensors import Tensor, encode, read_file, write_file

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def module() -> dict[str, Tensor]:
    return {
        f"{TO_Q}.lora_down.weight": encode(np.full((2, 3), 0.3), "F16"),
        f"{TO_Q}.lora_up.weight": encode(np.ones((4, 2)), "F16"),
        f"{TO_Q}.alpha": encode(1.0, "F16"),
    }


def save_pickle(path: Path, table: object) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(table, path)
    return path


def test_pickles_only_on_request(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    plain = {key: torch.from_numpy(tensor.to_numpy().copy()) for key, tensor in module().items()}
    wide = {**plain, f"{TO_Q}.lora_up.weight": torch.ones(4, 2, dtype=torch.bfloat16)}
    source = save_pickle(tmp_path / "a.pt", {"state_dict": wide})
    with pytest.raises(ConversionError, match="pickles can run code"):
        read_lora(source)
    convert(source, "kohya", tmp_path / "b.safetensors", unsafe_pickle=True)
    found, wanted = read_file(tmp_path / "b.safetensors").tensors, module()
    assert found[f"{TO_Q}.lora_up.weight"].dtype == "BF16"
    assert found[f"{TO_Q}.lora_up.weight"].to_float32().tolist() == [[1, 1]] * 4
    assert bytes(found[f"{TO_Q}.lora_down.weight"].raw) == bytes(wanted[f"{TO_Q}.lora_down.weight"].raw)
    old = tmp_path / "old.ckpt"
    torch.save(plain, old, _use_new_zipfile_serialization=False)
    assert read_lora(old, unsafe_pickle=True)[0] == "kohya"
    write_file(tmp_path / "c.safetensors", module())
    assert read_lora(tmp_path / "c.safetensors", unsafe_pickle=True)[0] == "kohya"


class Trap:
    """Runs code where a pickle of it is opened by pickle itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "caught")


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    sprung = tmp_path / "sprung"
    for number, write in enumerate((lambda path: path.write_bytes(pickle.dumps({"a": Trap(sprung)}, protocol=2)),
                                    lambda path: torch.save({"a": Trap(sprung)}, path))):  # fmt: skip
        source = tmp_path / f"{number}.pt"
        write(source)
        with pytest.raises(ConversionError, match="cannot be read") as caught:
            read_lora(source, unsafe_pickle=True)
        assert "\n" not in caught.value.message
    assert not sprung.exists()


@pytest.mark.parametrize("table", [[1, 2], {"a": 3}, {}, {1: 2}])
def test_pickles_of_other_things(tmp_path: Path, table: object) -> None:
    with pytest.raises(ConversionError, match=r"holds what is no tensor|holds no table"):
        read_lora(save_pickle(tmp_path / "a.pt", table), unsafe_pickle=True)
