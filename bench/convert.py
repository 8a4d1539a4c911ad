"""What conversions cost: seconds as multiples of `cp` of the same bytes, and peak memory.

    python -m bench.convert [--only sd15] [--repeat 5] [--guide] [--folder DIR]

Two LoRAs of random half floats in the shapes that sd-scripts trains by default: SD 1.5 rank 32 (attention and text
encoder, 264 modules) and SDXL rank 64 (722 + 264). alpha is the rank, or half of it ("halved"). Every conversion runs
in a child process; timed is converters.convert() alone, imports aside, caches warm, the best of `--repeat` runs. A
conversion fsyncs what it writes, so it is compared with `cp` plus `sync` of the copy ("cp+sync"), and with `cp` alone
beside it: of the larger of what was read and written, in the same round as the conversion. `written` is what the
conversion wrote, `peak` (VmHWM) is of the whole child, Python and numpy included, and `over` what that is above the
larger of both files. `cpu` are the processor seconds, of all threads, which a busy machine stretches less.

`--guide` adds the peer: CatSith's guide's own script (`tensor.numpy().tolist()` and `json.dump`), with numpy in place
of torch, which only makes it faster.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters import convert
from converters.names import Component, Naming, join_kohya
from converters.tensors import Tensor, encode, read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
# component, path, in, out, whether a 1x1 convolution
Layer = tuple[Component, str, int, int, bool]


def list_layers(family: str) -> Iterator[Layer]:
    """The layers that sd-scripts adapts by default, with their sizes."""
    if family == "sd15":
        depths = {"down_blocks.0": (320, 2, 1), "down_blocks.1": (640, 2, 1), "down_blocks.2": (1280, 2, 1)}
        depths |= {"mid_block": (1280, 1, 1)}
        depths |= {"up_blocks.1": (1280, 3, 1), "up_blocks.2": (640, 3, 1), "up_blocks.3": (320, 3, 1)}
        yield from _list_unet(depths, context=768, linear=False)
        yield from _list_clip("text_encoder", layers=12, width=768)
    else:
        depths = {"down_blocks.1": (640, 2, 2), "down_blocks.2": (1280, 2, 10), "mid_block": (1280, 1, 10)}
        depths |= {"up_blocks.0": (1280, 3, 10), "up_blocks.1": (640, 3, 2)}
        yield from _list_unet(depths, context=2048, linear=True)
        yield from _list_clip("text_encoder", layers=12, width=768)
        yield from _list_clip("text_encoder_2", layers=32, width=1280)


def make_lora(path: Path, family: str, *, rank: int, alpha: float) -> None:
    """Write a LoRA of random numbers in sd-scripts' names."""
    rng = np.random.default_rng(0)
    naming: Naming = "sai" if family == "sdxl" else "diffusers"
    tensors: dict[str, Tensor] = {}
    for component, layer, size, out, conv in list_layers(family):
        prefix = {"sd15": "lora_te_", "sdxl": "lora_te1_"}[family] if component == "text_encoder" else ""
        name = join_kohya(component, layer, prefix=prefix, naming=naming if component == "unet" else "diffusers")
        tail = (1, 1) if conv else ()
        down = rng.standard_normal((rank, size, *tail), np.float32) / size**0.5
        tensors[f"{name}.lora_down.weight"] = encode(down, "F16")
        tensors[f"{name}.lora_up.weight"] = encode(rng.standard_normal((out, rank, *tail), np.float32) * 0.01, "F16")
        tensors[f"{name}.alpha"] = encode(alpha, "F16")
    module = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    write_file(path, tensors, {**module, "ss_output_name": family, "ss_v2": "False"})


def write_like_guide(source: Path, out: Path) -> None:
    """docs/TRAINING_GUIDE.md of Cat-Sith (0113b73): convert_to_catsith_format, retold for numpy."""
    layers: dict[str, dict[str, object]] = {}
    for key, tensor in read_file(source).tensors.items():
        name, _, part = key.partition(".")
        if part != "alpha":
            layers.setdefault(name, {})["A" if part == "lora_down.weight" else "B"] = tensor.to_numpy().tolist()
    metadata = {"name": "catsith_sprites", "version": "1.0", "base_model": "segmind/tiny-sd", "rank": 32, "alpha": 16}
    with out.open("w") as handle:
        json.dump({"metadata": metadata, "layers": layers}, handle)


def run_child(arguments: list[str]) -> None:
    """One conversion; prints seconds, seconds of all processors, and peak bytes."""
    source, to, out = arguments
    start, worked = time.perf_counter(), time.process_time()
    if to == "guide":
        write_like_guide(Path(source), Path(out))
    else:
        convert(source, to, out)
    print(json.dumps([time.perf_counter() - start, time.process_time() - worked, _read_peak()]))


def measure(source: Path, to: str, out: Path, *, repeat: int) -> tuple[float, float, float, float, int]:
    """Best seconds of the conversion, its processor seconds, `cp`, `cp` and `sync`; peak bytes of the conversion."""
    found: list[tuple[float, float, float, float, int]] = []
    while len(found) < repeat and sum(row[0] for row in found) < 20:
        _remove(out)
        command = [sys.executable, "-m", "bench.convert", "--child", str(source), to, str(out)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, worked, peak = json.loads(done.stdout)
        larger = max(source, out, key=_size)
        found.append((seconds, worked, _time_copy(larger, sync=False), _time_copy(larger, sync=True), peak))
    columns = list(zip(*found, strict=True))
    return min(columns[0]), min(columns[1]), min(columns[2]), min(columns[3]), max(columns[4])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["sd15", "sdxl"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--guide", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for family, rank in (("sd15", 32), ("sdxl", 64)):
            if arguments.only in {None, family}:
                _measure_family(Path(name), family, rank, arguments)


def _measure_family(folder: Path, family: str, rank: int, arguments: argparse.Namespace) -> None:
    whole, halved = folder / f"{family}.safetensors", folder / f"{family}-halved.safetensors"
    make_lora(whole, family, rank=rank, alpha=rank)
    make_lora(halved, family, rank=rank, alpha=rank / 2)
    print(
        f"\n{family} rank {rank}, {len(list(list_layers(family)))} modules, {whole.stat().st_size / 1e6:.1f} MB of F16"
    )
    print(
        f"{'conversion':34} {'seconds':>8} {'cpu':>6} {'x cp':>6} {'x cp+sync':>9} {'written MB':>10} {'peak MB':>8} {'over':>9}"
    )
    rows = [(whole, "kohya", "kohya"), (whole, "peft", "peft"), (halved, "diffusers", "d1"), (whole, "diffusers", "d2")]
    rows += [(whole, "catsith", "c1"), (whole, "catsith-compact", "c2")]
    rows += [(folder / name, "kohya", f"{name}-back") for name in ("peft", "d1", "d2", "c1", "c2")]
    rows = [(whole, "guide", "guide"), *rows] if arguments.guide else rows
    guide = 0.0
    labels = {"d1": "diffusers (alpha halved)", "d2": "diffusers", "c1": "catsith", "c2": "catsith-compact"}
    for source, to, out in rows:
        seconds, worked, plain, synced, peak = measure(
            source, to, folder / out, repeat=1 if to == "guide" else arguments.repeat
        )
        size, read = _size(folder / out), _size(source)
        guide = worked if to == "guide" else guide
        label = f"{labels.get(source.name, source.name if source.is_dir() else 'kohya')} -> {labels.get(out, to)}"
        print(
            f"{label:34} {seconds:8.3f} {worked:6.2f} {seconds / plain:6.1f} {seconds / synced:9.1f} {size / 1e6:10.1f} "
            f"{peak / 1e6:8.0f} {(peak - max(size, read)) / 1e6:9.0f}"
            + (f"   {guide / worked:.0f} times less work than the guide's" if guide and "catsith" in to else ""),
            flush=True,
        )
    for name in ("guide", "c1", "c1-back"):
        _remove(folder / name)


def _list_unet(depths: dict[str, tuple[int, int, int]], *, context: int, linear: bool) -> Iterator[Layer]:
    for block, (width, attentions, depth) in depths.items():
        for attention in range(attentions):
            place = f"{block}.attentions.{attention}"
            for name in ("proj_in", "proj_out"):
                yield "unet", f"{place}.{name}", width, width, not linear
            for layer in range(depth):
                inner = f"{place}.transformer_blocks.{layer}"
                for name in _ATTENTION:
                    yield "unet", f"{inner}.{name}", width, width, False
                    crossed = context if name in {"attn1.to_k", "attn1.to_v"} else width
                    yield "unet", f"{inner}.{name.replace('attn1', 'attn2')}", crossed, width, False
                yield "unet", f"{inner}.ff.net.0.proj", width, 8 * width, False
                yield "unet", f"{inner}.ff.net.2", 4 * width, width, False


def _list_clip(component: Component, *, layers: int, width: int) -> Iterator[Layer]:
    for layer in range(layers):
        place = f"text_model.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield component, f"{place}.self_attn.{name}", width, width, False
        yield component, f"{place}.mlp.fc1", width, 4 * width, False
        yield component, f"{place}.mlp.fc2", 4 * width, width, False


def _time_copy(source: Path, *, sync: bool) -> float:
    copy = source.with_name("copy")
    command = f'cp -r "{source}" "{copy}"' + (f' && find "{copy}" -type f -exec sync {{}} +' if sync else "")
    start = time.perf_counter()
    subprocess.run(command, shell=True, check=True)
    seconds = time.perf_counter() - start
    _remove(copy)
    return seconds


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_peak() -> int:
    """Peak bytes of this process; ru_maxrss would count the parent's, from before exec."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(found.split()[1]) * 1024


if __name__ == "__main__":
    main()
