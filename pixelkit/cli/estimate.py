"""`pixelkit estimate`: hours and money, here and on rented GPUs. `pixelkit measures`: the figures that it goes by."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkit.catalog import list_hardware
from pixelkit.cli import report
from pixelkit.cli.options import read_choices, run_options
from pixelkit.errors import PresetError, StorageError
from pixelkit.hardware import choose_profile
from pixelkit.measures import MeasureBook, say_duration
from pixelkit.measures.cost import choose_providers, read_prices
from pixelkit.measures.quote import (
    Quote,
    Speed,
    count_images,
    estimate_hours,
    imagine_machine,
    price_hours,
    read_gpu,
    unknown_hours,
)
from pixelkit.paths import user_path, write_atomically
from pixelkit.ready import make_plan

if TYPE_CHECKING:
    from pixelkit.measures.cost import PriceList, Provider
    from pixelkit.plan import Plan
    from pixelkit.ready import Choices

POSITIVE = click.FloatRange(min=0, min_open=True)
NO_GPU = 'the price list does not say which GPU this is; --gpu "NAME 24GB" or --images-per-second does'


@click.command()
@run_options
@click.option("--provider", "names", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@click.option("--prices", type=click.Path(path_type=Path), metavar="FILE", help="Your own price list (TOML).")
@click.option("--gpu", metavar="NAME", help='The GPU that the prices are for, with its memory: "RTX 4090 24GB".')
@click.option("--images-per-second", type=POSITIVE, metavar="X", help="The speed, where you know it.")
@click.option(
    "--overhead", type=click.FloatRange(min=1), metavar="X", help="Times all the rest takes; 1.2 if not measured."
)
@click.option("--watts", type=POSITIVE, help="What your own machine draws at work.")
@click.option("--kwh-price", type=POSITIVE, help="What a kWh costs you.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def estimate(
    preset: str,
    *,
    names: tuple[str, ...],
    prices: Path | None,
    gpu: str | None,
    images_per_second: float | None,
    overhead: float | None,
    watts: float | None,
    kwh_price: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """How long PRESET trains and what it costs: on this machine, and at each provider of a price list.

    A time is measured here, scaled from what was measured here, measured elsewhere or computed, in this order, and says
    which. Where nothing is known of a GPU no number is printed.
    """
    listed = read_prices(prices)
    providers = choose_providers(listed, names)
    speed = Speed(images_per_second=images_per_second, overhead=overhead)
    plans = _Plans(preset=preset, choices=read_choices(**options), book=MeasureBook())
    named = bool(gpu or any(provider.gpu for provider in providers))
    quotes = [_quote_there(plans, provider, gpu, speed) for provider in providers]
    if not names:
        quotes.insert(0, _quote_here(plans, speed, draw=(watts or 0.0) * (kwh_price or 0.0), needed=not named))
    plan = next(iter(plans.made.values()), None) or plans.here
    if as_json:
        content = {"preset": plan.name, "images": count_images(plan), "currency": listed.currency}
        click.echo(json.dumps({**content, "quotes": [quote.as_dict() for quote in quotes]}, indent=1))
    else:
        _print(plan, listed, quotes)


@dataclass(kw_only=True)
class _Plans:
    """The plan that the preset becomes on this machine and on others, each made once."""

    preset: str
    choices: Choices
    book: MeasureBook
    made: dict[str, Plan] = field(default_factory=dict)

    @cached_property
    def here(self) -> Plan:
        return make_plan(self.preset, self.choices, elsewhere=True).plan

    def on(self, gpu: str, memory_gib: float) -> Plan:
        machine = imagine_machine(gpu, memory_gib, self.book)
        if str(machine) not in self.made:
            profile = self.choices.hardware or choose_profile("auto", machine, list_hardware())[0]
            plan = make_plan(self.preset, replace(self.choices, hardware=profile), elsewhere=True).plan
            self.made[str(machine)] = replace(plan, machine=machine)
        return self.made[str(machine)]


def _quote_here(plans: _Plans, speed: Speed, *, draw: float, needed: bool) -> Quote:
    """`draw`: watts times the price of a kWh. A preset that this machine cannot train is an error only if it is `needed`."""
    try:
        plan = plans.here
    except PresetError as error:
        if needed:
            raise
        return Quote(where="this machine", gpu="", per_hour=None, hours=unknown_hours(error.message), cost=None)
    hours = estimate_hours(plan, plans.book, speed)
    cost = price_hours(hours, (draw / 1000, draw / 1000)) if draw else None
    return Quote(where="this machine", gpu=plan.machine.device, per_hour=None, hours=hours, cost=cost)


def _quote_there(plans: _Plans, provider: Provider, gpu: str | None, speed: Speed) -> Quote:
    """With the plan that a machine with the provider's GPU would get."""
    name, memory = read_gpu(gpu) if gpu else (provider.gpu, provider.memory_gib)
    if name and memory:
        hours = estimate_hours(plans.on(name, memory), plans.book, speed)
    elif speed.images_per_second:
        hours = estimate_hours(plans.here, plans.book, speed)
    else:
        hours = unknown_hours(NO_GPU)
    cost = price_hours(hours, provider.per_hour)
    return Quote(
        where=provider.name, gpu=name, per_hour=provider.per_hour, hours=hours, cost=cost, listed=provider.listed
    )


def _print(plan: Plan, listed: PriceList, quotes: list[Quote]) -> None:
    click.echo(f"{plan.name}: {plan.train.steps} steps, {count_images(plan):.0f} images in all, repeats counted")
    rows = []
    for quote in quotes:
        money = listed.currency if quote.per_hour else ""
        price = _range(*quote.per_hour, money) if quote.per_hour else ""
        hours, cost = quote.hours, quote.cost
        time = "unknown" if hours.likely is None else say_duration(hours.likely * 3600)
        if hours.low is not None and hours.high is not None and hours.high > 1.25 * hours.low:
            time += f" ({say_duration(hours.low * 3600)} to {say_duration(hours.high * 3600)})"
        paid = "" if cost is None else f"{money}{cost[0]:.2f}" if cost[0] >= 0.005 else f"under {money}0.01"
        if cost is not None and cost[2] > 1.25 * cost[1] and cost[2] >= 0.01:
            paid += f" ({_range(cost[1], cost[2], money)})"
        rows.append((quote.where, quote.gpu or "not said", price, time, paid, hours.source))
    report.print_table(rows, header=("where", "gpu", "an hour", "time", "cost", "from"))
    for words in dict.fromkeys(quote.listed for quote in quotes if quote.listed):
        of = ", ".join(quote.where for quote in quotes if quote.listed == words)
        click.echo(f"prices of {of}: {words}; check the provider's own page", err=True)


def _range(low: float, high: float, money: str) -> str:
    return f"{money}{low:.2f}" if low == high else f"{money}{low:.2f} to {high:.2f}"


@click.group()
def measures() -> None:
    """What training took on this machine and on others': the figures that forecasts go by."""


@measures.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(*, as_json: bool) -> None:
    """All measures, newest first."""
    found = MeasureBook(strict=True).list_measures()
    if as_json:
        click.echo(json.dumps([measure.as_dict() for measure in found], indent=1))
        return
    rows = []
    for measure in found:
        setup = measure.setup
        batch = f"{setup.batch_size}{f' x {setup.gradient_accumulation}' if setup.gradient_accumulation > 1 else ''}"
        pace = f"{measure.seconds_per_step:.3g}" if measure.seconds_per_step else f"failed: {measure.failed}"
        memory = f"{measure.peak_memory_gib:.1f}" if measure.peak_memory_gib else ""
        model = f"{setup.base or setup.family} {setup.method}"
        size = f"{setup.canvas_area**0.5:.0f} px"
        who = measure.elsewhere or measure.run or measure.kind
        rows.append((measure.when[:16], setup.machine, model, setup.engine, batch, size, pace, memory, who))
    header = ("when", "machine", "trained", "engine", "batch", "canvas", "s/step", "GiB", "by")
    report.print_table(rows, header=header) if rows else click.echo("nothing was measured yet", err=True)


@measures.command("export")
@click.argument("file", type=click.Path(path_type=Path))
def export_command(file: Path) -> None:
    """Write what was measured here to FILE (JSON), for others to import. Names of runs are left out."""
    write_atomically(file, MeasureBook(strict=True).export_json())
    click.echo(file)


@measures.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Who measured it; the file's name if not given.")
def import_command(file: Path, name: str | None) -> None:
    """Take in the measures of FILE. Forecasts call them measured elsewhere."""
    try:
        text = user_path(str(file)).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError(f"{file} is no text", hint="import what `pixelkit measures export` wrote") from error
    count = MeasureBook(strict=True).import_json(text, name=name or file.stem)
    click.echo(f"{count} new", err=True)


@measures.command()
@click.option("--machine", metavar="NAME", help="Only of this machine, as `measures list` names it.")
@click.option("--elsewhere", metavar="NAME", help="Only what was imported under this name.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
def forget(*, machine: str | None, elsewhere: str | None, everything: bool) -> None:
    """Remove measures, after a change of the machine for example."""
    if not (machine or elsewhere or everything):
        raise click.UsageError("say which: --machine, --elsewhere or --all")
    click.echo(f"{MeasureBook(strict=True).forget(machine=machine, elsewhere=elsewhere)} removed", err=True)
