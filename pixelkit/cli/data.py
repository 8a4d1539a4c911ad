"""`pixelkit data`: from an artist's folder to what the VAE sees."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkit.cli import report
from pixelkit.cli.data_caption import caption
from pixelkit.cli.data_inspect import inspect
from pixelkit.cli.reading import read_reading, reading_options
from pixelkit.errors import DataError, PresetError
from pixelkit.paths import locate_sd_scripts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixelkit.dataset.ahead import Mapper
    from pixelkit.dataset.build import Planned, Wish

FILE = click.Path(path_type=Path)


@click.group()
def data() -> None:
    """Sprites: look at them, caption them, prepare them to the pixel, prove that they are."""


data.add_command(inspect)
data.add_command(caption)


def layout_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a source is read and laid out; shared by all commands that plan a set."""
    for option in reversed(
        (
            click.option("--base", required=True, metavar="NAME", help="The base model, e.g. sdxl, sd15, flux."),
            click.option("--resolution", type=click.IntRange(16, 4096), help="Side of the largest canvas' area."),
            click.option("--scale", type=click.IntRange(1, 256), help="Enlargement of one sprite pixel."),
            reading_options,
        )
    ):
        command = option(command)
    return command


@data.command()
@click.argument("source", type=FILE)
@layout_options
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Where the set goes.")
@click.option("--background", default="auto", metavar="COLOUR", help="Under transparency: #rrggbb, or auto.")
@click.option("--alpha", type=click.Choice(["flatten", "mask"]), default="flatten", help="mask: for a masked loss.")
@click.option("--trigger", default="", metavar="WORDS", help="Put before every caption.")
@click.option("--caption", default="{name}", metavar="TEXT", help="For sprites without one; {name} is the file's.")
@click.option("--masks", is_flag=True, help="Also write what is subject, outline and background.")
@click.option("--mirror", is_flag=True, help="Also mirror images; directions in captions swap.")
@click.option("--hue", "hues", type=float, multiple=True, metavar="DEGREES", help="Also turned hues; colour words too.")
@click.option("--moves", type=click.IntRange(0, 16), default=0, help="Also so many copies, moved by whole pixels.")
@click.option("--asymmetric", multiple=True, metavar="WORD", help="What is captioned with it is never mirrored.")
@click.option(
    "--holdout", type=click.FloatRange(0, 0.9), default=0.0, help="Share of the sprites to keep from training."
)
@click.option("--ray", metavar="ADDRESS", help="Make the images on a Ray cluster: HOST:PORT, or auto (docs/ray.md).")
def prepare(source: Path, *, out: Path, **options: Any) -> None:
    """Write SOURCE as a set that a trainer takes as it is: each sprite pixel an exact block, nothing resampled.

    SOURCE is a folder or a zip; it is only read. Stopped in the middle, the same command goes on. The last line on
    standard output is the set's folder: name it as a preset's dataset.path.
    """
    from dataclasses import asdict

    from pixelkit.dataset.augment import Augmentation
    from pixelkit.dataset.build import check_target, plan_set
    from pixelkit.dataset.make import Making
    from pixelkit.dataset.prepare import prepare as prepare_set

    check_target(source, out)
    wish = _wish(options)
    planned = plan_set(source, wish)
    making = Making(
        background=_background(options["background"], planned),
        alpha=options["alpha"],
        masks=options["masks"],
        augment=Augmentation(
            mirror=options["mirror"],
            hues=options["hues"],
            moves=options["moves"],
            asymmetric=options["asymmetric"],
        ),
        holdout=options["holdout"],
        keep_going=options["keep_going"],
    )
    about = {**asdict(wish), "source": str(source), "resolution": planned.resolution, "step": planned.spec.bucket_step}
    with _mapper(options["ray"], out, planned) as mapper, report.progressing("preparing sprites") as show:
        prepared = prepare_set(planned.sprites, out, making, about=about, on_progress=show, mapper=mapper)
    report.print_notes(planned.remarks, [*planned.skipped, *prepared.skipped])
    made = (
        prepared.images if not prepared.reused else f"{prepared.images} ({prepared.reused} sprites were there already)"
    )
    click.echo(f"{made} images of {len(planned.sprites)} sprites, fingerprint {prepared.fingerprint[:12]}", err=True)
    click.echo(out)


@data.command()
@click.argument("source", type=FILE)
@layout_options
@click.option("--batch-size", type=click.IntRange(1, 4096), default=1, help="For the count of batches.")
@click.option("--picture", type=FILE, metavar="FILE", help="Draw the canvases, as a PNG.")
def buckets(source: Path, *, batch_size: int, picture: Path | None, **options: Any) -> None:
    """Which canvas each size of sprite gets: count, enlargement, padding, batches per epoch."""
    from pixelkit.dataset.buckets import draw_buckets, list_buckets
    from pixelkit.dataset.build import plan_set

    planned = plan_set(source, _wish(options))
    rows = list_buckets(planned.sprites, batch_size=batch_size)
    table = []
    for row in rows:
        canvas = row.canvas
        table.append(
            (
                f"{canvas.sprite_width}x{canvas.sprite_height}",
                row.images,
                f"{canvas.width}x{canvas.height}",
                canvas.scale,
                f"{canvas.padding:.0%}",
                row.batches,
            )
        )
    report.print_table(table, header=("sprites", "images", "canvas", "scale", "padding", "bucket's batches"))
    batches = sum({(row.canvas.width, row.canvas.height): row.batches for row in rows}.values())
    click.echo(f"{batches} batches per epoch at batch size {batch_size}")
    report.print_notes(planned.remarks, planned.skipped)
    if picture:
        from PIL import ImageColor

        from pixelkit.dataset.blocks import save_png

        background = ImageColor.getrgb(planned.background or "#808080")[:3]
        save_png(draw_buckets(rows, background, title=f"{source.name} for {options['base']}"), picture)
        click.echo(picture)


@data.command()
@click.argument("folder", metavar="SET", type=FILE)
@click.option("--base", required=True, metavar="NAME", help="The base model, e.g. sdxl, sd15, flux.")
@click.option("--resolution", type=click.IntRange(16, 4096), help="As in training; default: the set's, or the base's.")
@click.option("--view", "view_folder", type=FILE, metavar="DIR", help="Write each image as the VAE would see it.")
@click.option("--sd-scripts", type=FILE, metavar="PATH", help="The sd-scripts checkout.")
def check(
    folder: Path, *, base: str, resolution: int | None, view_folder: Path | None, sd_scripts: Path | None
) -> None:
    """Prove that SET reaches the VAE untouched, and that each image reduces to its source, pixel by pixel.

    Runs each image through sd-scripts' own functions where it is found. SET may be any folder: then this says what a
    trainer would do to it.
    """
    from pixelkit.catalog import find_spec
    from pixelkit.dataset.ahead import map_ahead
    from pixelkit.dataset.check import Proof, list_candidates
    from pixelkit.dataset.looking import Looking

    spec = find_spec(base)
    proof = Proof.of(folder)
    side = resolution or (proof.manifest or {}).get("resolution") or spec.resolution
    location = locate_sd_scripts(sd_scripts)
    candidates = list(list_candidates(folder))
    problems, proved = [], {"source": 0, "hash": 0, "": 0}
    with ExitStack() as stack:
        look = stack.enter_context(
            Looking(location.path if location else None, resolution=side, step=spec.bucket_step, folder=view_folder)
        )
        show = stack.enter_context(report.progressing("looking at images"))
        seen = ((image, look.at(image)) for image in candidates)
        for done, verdict in enumerate(map_ahead(lambda pair: proof.judge(*pair), seen), start=1):
            if verdict.problem:
                problems.append(verdict.problem)
            else:
                proved[verdict.proved] += 1
            show(done, len(candidates))
    by = "sd-scripts' own functions" if location else "pixelkit's copy of sd-scripts' rules"
    click.echo(f"{len(candidates) - len(problems)} of {len(candidates)} images reach the VAE untouched ({by})")
    for kind, text in (("source", "equal to their source, pixel by pixel"), ("hash", "equal to what was prepared")):
        if proved[kind]:
            click.echo(f"{proved[kind]} are {text}")
    if problems:
        hint = "" if proof.manifest else "`pixelkit data prepare` makes a set that is"
        raise DataError(f"{len(problems)} of {len(candidates)} images are not pixel-true", hint=hint, problems=problems)


def _wish(options: dict[str, Any]) -> Wish:
    from pixelkit.dataset.build import Wish

    return Wish(
        base=options["base"],
        resolution=options["resolution"],
        scale=options["scale"],
        caption=options.get("caption", "{name}"),
        trigger=options.get("trigger", ""),
        reading=read_reading(options),
    )


@contextmanager
def _mapper(ray: str | None, out: Path, planned: Planned) -> Iterator[Mapper]:
    from pixelkit.dataset.ahead import map_ahead

    if ray is None:
        yield map_ahead
        return
    from pixelkit.dataset.spread import spread_over

    with spread_over(ray, folder=out, source=planned.sprites[0].sprite.path) as mapper:
        yield mapper


def _background(wanted: str, planned: Planned) -> str:
    from PIL import ImageColor

    if wanted == "auto":
        return planned.background or "auto"
    try:
        ImageColor.getrgb(wanted)
    except ValueError:
        raise PresetError(
            f"--background {wanted}: no colour", hint="write #rrggbb, a colour's English name, or auto"
        ) from None
    return wanted
