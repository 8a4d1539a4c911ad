"""`pixelkit convert` and `pixelkit lora`: LoRA files into other formats, together, smaller, out of and into models."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkit.cli import report
from pixelkit.errors import Problem, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from converters import Conversion
    from converters.merge import Changed

FILE = click.Path(path_type=Path)
# The keys of converters.FORMATS with the name each gets in a folder; spelled out, as --help must not load numpy.
OUTPUTS: Mapping[str, str] = {
    "kohya": "{name}.safetensors",
    "peft": "peft",
    "diffusers": "pytorch_lora_weights.safetensors",
    "catsith": "{name}.lora.json",
    "catsith-compact": "{name}.compact.lora.json",
}
DTYPES = click.Choice(["F16", "BF16", "F32"], case_sensitive=False)
_OUT = click.option("--out", type=FILE, required=True, metavar="FILE", help="Where the result goes.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what is there.")
_PICKLE = click.option("--unsafe-pickle", is_flag=True, help="Also open .pt, .ckpt and .bin; tensors only, by torch.")
_WEIGHT = click.option("--weight", "weights", type=float, multiple=True, help="One for each LoRA, in order; default 1.")
_METADATA_WIDTH = 100


@click.command()
@click.argument("source", metavar="SRC", type=FILE)
@click.option(
    "--to",
    "targets",
    type=click.Choice(list(OUTPUTS)),
    multiple=True,
    default=("kohya",),
    show_default=True,
    help="The format; may be given several times.",
)
@click.option("--out", type=FILE, required=True, metavar="PATH", help="The file or folder; of several --to: a folder.")
@click.option("--drop-unsupported", is_flag=True, help="Leave out what a target cannot hold, and name it.")
@_PICKLE
@click.option("--flat-text-encoder", is_flag=True, help="peft: for transformers 5.6 and later.")
@click.option("--block-diagonal", is_flag=True, help="kohya, catsith: join parts of a layer that were trained apart.")
@_OVERWRITE
def convert(source: Path, *, targets: tuple[str, ...], out: Path, **options: Any) -> None:
    """Write the LoRA SRC in other formats, exactly; the source format is read from the content.

    kohya is for sd-scripts, ComfyUI, A1111 and Forge. What cannot be held is an error that names it. The lines on
    standard output are what was written.
    """
    targets = tuple(dict.fromkeys(targets))
    with _clear_errors():
        from converters import convert as convert_file

        if len(targets) == 1:
            places = {targets[0]: out}
        else:
            _make_folder(out)
            places = {to: out / OUTPUTS[to].format(name=source.stem) for to in targets}
        for to, place in places.items():
            _print_conversion(convert_file(source, to, place, **options), to)


@click.group()
def lora() -> None:
    """LoRA files: what they are; merge, bake into a model, make smaller, take out of a model."""


@lora.command()
@click.argument("file", type=FILE)
@_PICKLE
@click.option("--metadata", "full", is_flag=True, help="Print the metadata in full.")
def show(file: Path, *, unsafe_pickle: bool, full: bool) -> None:
    """What FILE is: base, kinds, ranks, alphas, modules, trigger, hashes, metadata. Nothing is guessed."""
    with _clear_errors():
        from converters.describe import describe

        found = describe(file, unsafe_pickle=unsafe_pickle)
    silent = "not stated"
    rows: list[tuple[str, object]] = [
        ("format", found.format),
        ("base", found.base or "its layers do not tell"),
        ("base, as stated", found.stated or silent),
        ("kinds", _count(found.kinds)),
        ("modules", _count(found.modules)),
        ("rank", _count(found.ranks)),
        ("alpha", _count({f"{alpha:g}": count for alpha, count in found.alphas.items()})),
        ("numbers", ", ".join(found.dtypes)),
        ("trigger", found.trigger or silent),
    ]
    if found.hashes:
        rows += [("sha256", found.hashes.sha256), ("AutoV2", found.hashes.auto_v2), ("AutoV3", found.hashes.auto_v3)]
    if found.true_hash is not None:
        rows.append(("sshs_model_hash", "true" if found.true_hash else "NOT the hash of these tensors"))
    report.print_table(rows)
    click.echo(f"\n{len(found.metadata)} keys of metadata")
    for key, value in sorted(found.metadata.items()):
        shown = (
            value if full or len(value) <= _METADATA_WIDTH else f"{value[:_METADATA_WIDTH]}... ({len(value)} letters)"
        )
        click.echo(f"  {key}: {shown}")


@lora.command()
@click.argument("sources", metavar="LORA LORA...", type=FILE, nargs=-1, required=True)
@_WEIGHT
@click.option("--rank", type=click.IntRange(1), help="Cut to this rank; default: exact, with the sum of the ranks.")
@click.option("--dtype", type=DTYPES, help="Of a merge to a rank; default: as the sources.")
@_OUT
@_OVERWRITE
def merge(sources: tuple[Path, ...], *, weights: tuple[float, ...], out: Path, **options: Any) -> None:
    """Several LoRAs of one base as one that does what all do together, each at its weight."""
    _check_weights(sources, weights)
    with _clear_errors(), report.progressing("merging") as show_progress:
        from converters.merge import merge as merge_files

        options["dtype"] = options["dtype"] or ""
        made = merge_files(sources, out, weights=weights, on_progress=show_progress, **options)
    _print_change(made, out)


@lora.command()
@click.argument("sources", metavar="LORA...", type=FILE, nargs=-1, required=True)
@click.option("--into", "base", type=FILE, required=True, metavar="BASE", help="A .safetensors, or a diffusers folder.")
@_WEIGHT
@_OUT
@_OVERWRITE
def bake(sources: tuple[Path, ...], *, base: Path, weights: tuple[float, ...], out: Path, overwrite: bool) -> None:
    """A model with LoRAs added to it for good: BASE's own layout, dtypes and metadata."""
    _check_weights(sources, weights)
    with _clear_errors(), report.progressing("baking") as show_progress:
        from converters.bake import bake as bake_files

        made = bake_files(sources, base, out, weights=weights, overwrite=overwrite, on_progress=show_progress)
    click.echo(f"{made.layers} layers changed; rounding took {made.lost:.2%} of the change", err=True)
    click.echo(out)


@lora.command()
@click.argument("source", metavar="LORA", type=FILE)
@click.option("--rank", type=click.IntRange(1), help="The rank, or with --keep the highest.")
@click.option("--conv-rank", type=click.IntRange(1), help="The same for convolutions above 1x1; default: --rank.")
@click.option(
    "--keep",
    type=(click.Choice(["ratio", "cumulative", "fro"]), float),
    metavar="HOW AMOUNT",
    help="Choose each module's rank, as sd-scripts does: ratio 20, cumulative 0.9, fro 0.95.",
)
@click.option("--dtype", type=DTYPES, help="Default: as the source.")
@_OUT
@_OVERWRITE
def resize(source: Path, *, keep: tuple[str, float] | None, out: Path, dtype: str | None, **options: Any) -> None:
    """A LoRA of smaller ranks: each module's largest singular values, and what leaving out the rest costs."""
    with _clear_errors(), report.progressing("resizing") as show_progress:
        from converters.resize import Size
        from converters.resize import resize as resize_file

        how, amount = keep or (None, 0.0)
        size = Size(rank=options["rank"], conv_rank=options["conv_rank"], keep=how, amount=amount)  # type: ignore[arg-type]
        made = resize_file(
            source, out, size, dtype=dtype or "", overwrite=options["overwrite"], on_progress=show_progress
        )
    _print_change(made, out)


@lora.command()
@click.argument("original", type=FILE)
@click.argument("tuned", type=FILE)
@click.option("--rank", type=click.IntRange(1), required=True, help="Of the LoRA.")
@click.option(
    "--conv-rank", type=click.IntRange(1), help="For convolutions above 1x1; default: their blocks are left out."
)
@click.option(
    "--clamp", type=float, default=1.0, show_default=True, help="Cut numbers at this quantile; sd-scripts: 0.99."
)
@click.option("--least", type=float, default=0.0, show_default=True, help="Leave out components that differ no more.")
@click.option("--v-prediction", is_flag=True, help="Say in the metadata that the models predict v.")
@click.option("--dtype", type=DTYPES, default="F16", show_default=True, help="Of the LoRA's numbers.")
@_OUT
@_OVERWRITE
def extract(original: Path, tuned: Path, *, out: Path, **options: Any) -> None:
    """A LoRA that turns the model ORIGINAL into TUNED, as well as its rank can."""
    with _clear_errors(), report.progressing("extracting") as show_progress:
        from converters.extract import Cut
        from converters.extract import extract as extract_file

        cut = Cut(**{key: options.pop(key) for key in ("rank", "conv_rank", "clamp", "least")})
        made = extract_file(original, tuned, out, cut, on_progress=show_progress, **options)
    _print_change(made, out)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """A ConversionError as pixelkit's own: its keys as findings, what to do as the hint."""
    from converters.errors import ConversionError

    try:
        yield
    except ConversionError as error:
        hint = next((text for words, text in _HINTS.items() if words in error.message), "")
        problems = [Problem(what=key) for key in error.keys]
        raise WeightsError(error.message, hint=hint, problems=problems) from error


_HINTS = {
    "is already there": "--overwrite replaces it",
    "a pickle (.ckpt": "--unsafe-pickle opens it with torch's reader for tensors only",
    "cannot hold": "--drop-unsupported leaves it out",
}


def _check_weights(sources: tuple[Path, ...], weights: tuple[float, ...]) -> None:
    if weights and len(weights) != len(sources):
        raise click.UsageError(f"{len(weights)} --weight for {len(sources)} LoRAs; give one for each, or none")


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise click.UsageError(f"--out {path} is a file; several --to need a folder")
    path.mkdir(parents=True, exist_ok=True)


def _print_conversion(done: Conversion, to: str) -> None:
    for names, what in (
        (done.dropped, f"left out: {to} cannot hold it"),
        (done.widened, "written as float32, to be exact"),
        (done.rounded, "rounded in the last bit of float32"),
    ):
        if names:
            click.echo(
                f"{to}: {len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}", err=True
            )
    for path in done.written:
        click.echo(path)


def _print_change(made: Changed, out: Path) -> None:
    ranks = sorted({module.rank for module in made.lora.modules.values()})
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    click.echo(f"{len(made.lora.modules)} modules, {shown}", err=True)
    if made.errors:
        worst = max(made.errors, key=lambda layer: made.errors[layer])
        click.echo(f"error {made.error:.3%} of the change; worst {made.errors[worst]:.3%} in {worst}", err=True)
    else:
        rounded = f"{len(made.rounded)} rounded in float32's last bit" if made.rounded else "exact"
        click.echo(f"{rounded}; {len(made.widened)} modules became float32", err=True)
    click.echo(out)


def _count(found: Mapping[Any, int]) -> str:
    if len(found) == 1:
        return f"{next(iter(found))}"
    return ", ".join(f"{name} ({count})" for name, count in found.items())
