"""`pixelkit doctor`, `hardware`, `config`: what is here, what it will do, and the user's settings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from pathlib import Path

import click

from pixelkit.catalog import list_hardware
from pixelkit.cli import report
from pixelkit.engines.choice import GET_KOHYA
from pixelkit.engines.kohya.options import list_changed_files, recognise_commit
from pixelkit.errors import PresetError, did_you_mean
from pixelkit.hardware import choose_profile, detect_machine
from pixelkit.paths import (
    ENGINE_COMMIT,
    SETTINGS,
    locate_sd_scripts,
    read_settings,
    settings_file,
    show_setting,
    write_setting,
)
from pixelkit.tuned import machine_name, read_tuned

PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "bitsandbytes",
    "xformers",
)


@click.command()
def doctor() -> None:
    """What is installed, where the engine is and at which commit, which GPU; what to type for what is missing."""
    rows = [("python", platform.python_version())]
    missing = []
    for name in PACKAGES:
        version = _version(name)
        rows.append((name, f"{version or 'not installed'}{_torch_build() if name == 'torch' and version else ''}"))
        if version is None and name not in {"bitsandbytes", "xformers"}:
            missing.append(name)
    rows.append(("machine", str(detect_machine())))
    found = locate_sd_scripts()
    if found is None:
        rows.append(("sd-scripts", f"not found; {GET_KOHYA}"))
    elif not (found.path / "train_network.py").is_file():
        rows.append(("sd-scripts", f"{found.path} ({found.named_by}) holds no train_network.py; {GET_KOHYA}"))
    else:
        commit = recognise_commit(found.path) or "unknown commit"
        changed = list_changed_files(found.path)
        state = f"; differs from the pinned {ENGINE_COMMIT[:8]} in {', '.join(changed)}" if changed else ", as pinned"
        rows.append(("sd-scripts", f"{found.path} ({found.named_by}) at {commit}{state}"))
    report.print_table(rows)
    if missing:
        click.echo(f"to train, install what is missing ({', '.join(missing)}): pip install 'pixelkit[train]'")


def _torch_build() -> str:
    """`, CUDA 13.0` or `, no CUDA`, read from torch's version file: importing torch would take seconds."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    try:
        text = Path(folders[0], "version.py").read_text("utf-8") if folders else ""
    except OSError:
        return ""
    found = re.search(r"^cuda.*?=\s*'([^']+)'", text, re.MULTILINE)
    return f", CUDA {found[1]}" if found else ", no CUDA"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@click.command()
@click.option("--hardware", "wanted", default="auto", metavar="NAME", help="Show this profile instead.")
def hardware(wanted: str) -> None:
    """What was found, which profile it gets and why, and what that profile chooses."""
    machine = detect_machine()
    profiles = list_hardware()
    name, reason = choose_profile(wanted, machine, profiles)
    profile = profiles[name]
    fused = ", fused" if profile.fused_optimizer else ""
    click.echo(f"found    {machine}")
    click.echo(f"profile  {name}: {profile.title} ({reason})")
    click.echo(
        f"chooses  precision {profile.precision}, optimizer {profile.optimizer}{fused}, {profile.workers} data workers"
    )
    rows = []
    for family, settings in profile.families.items():
        above = settings.checkpointing_above
        checkpointing = "off" if above is None else "on" if above == 0 else f"on above batch {above}"
        if settings.unchecked_needs_gib:
            checkpointing += f", or with less than {settings.unchecked_needs_gib:g} GiB free"
        further = ", ".join(f"{key} = {value}" for key, value in {**profile.kohya, **settings.kohya}.items())
        rows.append((family, settings.batch_size, checkpointing, "on" if settings.compile else "off", further))
    report.print_table(rows, header=("family", "batch size", "gradient checkpointing", "compile", "further options"))
    for entry in read_tuned() if wanted == "auto" else ():
        if entry.machine == machine_name(machine):
            click.echo(f"tuned    {entry.summary}, {entry.when}")
    click.echo(f"profiles: {', '.join(profiles)}")


@click.group()
def config() -> None:
    """The user's settings: where sd-scripts, base models and runs lie, and who is told when a run ends."""


@config.command("set")
@click.argument("key")
@click.argument("value")
def set_value(key: str, value: str) -> None:
    """Set KEY to VALUE; an empty VALUE removes it."""
    click.echo(write_setting(key, value))


@config.command("show")
@click.argument("key", required=False)
def show(key: str | None) -> None:
    """Print all settings, or one."""
    settings = read_settings()
    if key is not None and key not in SETTINGS:
        raise PresetError(
            f"no setting is called {key}", hint=did_you_mean(key, SETTINGS) or f"there are {', '.join(SETTINGS)}"
        )
    if key is not None:
        click.echo(show_setting(key, settings[key]) if key in settings else "")
        return
    click.echo(f"{settings_file()}")
    shown = {name: show_setting(name, value) for name, value in settings.items()}
    report.print_table((name, shown.get(name, "(not set)"), setting.meaning) for name, setting in SETTINGS.items())
