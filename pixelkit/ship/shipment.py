"""ship(): the trained model of a run as files that other programs load, and proof that they do."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from converters import ConversionError
from pixelkit.errors import Problem, ShipError
from pixelkit.evaluate.curve import collect_progress, draw_curve, measure_loss
from pixelkit.evaluate.samples import collect_samples, draw_samples, find_samples, measure_samples
from pixelkit.paths import write_atomically
from pixelkit.ship.describe import describe_for_others, describe_line, describe_model, describe_run, find_cell
from pixelkit.ship.export import export
from pixelkit.ship.loading import Loader, Loading
from pixelkit.ship.pictures import choose_sample, draw_preview, draw_thumbnail
from pixelkit.ship.sidecar import write_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from pixelkit.evaluate.palette import Color
    from pixelkit.evaluate.samples import Samples
    from pixelkit.plan import Plan
    from pixelkit.rundir import RunDir
    from pixelkit.ship.export import Exports
    from pixelkit.ship.loading import Loads


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What was shipped: the model, every file and folder beside it, what was measured, lines that tell a person."""

    model: Path
    exports: tuple[Path, ...]
    metrics: Mapping[str, float | None]
    summary: tuple[str, ...]
    loading: Loading


def ship(
    plan: Plan,
    run: RunDir,
    *,
    palette: Sequence[Color],
    fingerprint: str,
    sd_scripts: Path | None = None,
    start_loader: Callable[[Path | None], Loads] = Loader,
) -> Shipment:
    """Export the trained model of a run: kohya's file always, the other formats as the preset asks; load each again.

    Shipping again replaces what an earlier try left. Raises ShipError or StorageError: an export that its program does
    not load, or loads wrong, is taken away again and fails the whole. The training's own file is only read.
    """
    source = run.model(plan.name)
    run.export.mkdir(parents=True, exist_ok=True)
    trained = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    if plan.makes == "lora":
        with start_loader(sd_scripts) as loader:  # it makes itself ready while we draw and convert
            seen = _look_back(plan, run, palette)
            exports = export(plan, source, run.export, describe_model(plan, trained, thumbnail=seen.thumbnail), trained)
            loading = loader.load(plan.base, exports.files)
    else:
        seen = _look_back(plan, run, palette)
        exports = export(plan, source, run.export, {}, trained)
        loading = Loading(checked=None, why="what is no LoRA is shipped as the trainer wrote it")
    run.update(loading=loading.as_dict())
    _refuse_failed(loading, exports, source)
    model = exports.files["kohya"]
    manifest = run.read_manifest()
    commit = manifest.get("engine_commit")
    sidecar = run.export / f"{plan.name}.pixelkit.json"
    about = describe_run(
        plan,
        trained,
        seen.metrics,
        exports=tuple(exports.files.values()),
        fingerprint=fingerprint,
        loading=loading.as_dict(),
    )
    write_sidecar(sidecar, about, model, engine_commit=commit)
    written = [sidecar, *_write_beside(plan, run.export, model, trained, seen), *seen.save(run.export, plan.name)]
    shipped = (*exports.files.values(), *written)
    seconds = manifest.get("training", {}).get("seconds")
    engine = f"kohya sd-scripts at {commit[:8]}" if commit else f"the {plan.engine} engine"
    summary = [f"trained {plan.train.steps} steps with {engine}{f' in {seconds:.0f} s' if seconds else ''}"]
    summary += [f"shipped to {run.export}: {', '.join(path.name for path in shipped)}"]
    summary += [*exports.remarks, *(loading.tell() if plan.makes == "lora" else ())]
    if seen.shares:
        summary.append(f"pixels in the sprites' palette: {seen.shares[0]:.1%} before, {seen.shares[1]:.1%} after")
    return Shipment(model=model, exports=shipped, metrics=seen.metrics, summary=tuple(summary), loading=loading)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a run's pictures and numbers show."""

    metrics: Mapping[str, float | None]
    shares: tuple[float, float] | None
    best: Path | None
    cell: int
    thumbnail: str
    pictures: Mapping[str, Image.Image | None]

    def save(self, folder: Path, name: str) -> list[Path]:
        """The sheet and the curve, where there are any."""
        found = {folder / f"{name}-{kind}.png": picture for kind, picture in self.pictures.items() if picture}
        for path, picture in found.items():
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            write_atomically(path, stream.getvalue())
        return list(found)


def _look_back(plan: Plan, run: RunDir, palette: Sequence[Color]) -> _Seen:
    events = list(run.read_metrics())
    progress = collect_progress(events)
    samples: Samples = collect_samples(events)
    samples = samples or find_samples(run.output / "sample", plan.sample.prompts, plan.sample.seed)
    shares = measure_samples(samples, palette)
    best, cell = choose_sample(samples, palette), find_cell(plan)[2]
    sheet = draw_samples(samples, title=plan.name, subtitle=describe_line(plan), palette=palette, shares=shares)
    return _Seen(
        metrics={
            "fid": None,
            "clip_score": None,
            "human_rating": None,
            "palette_share_base": round(shares[0], 4) if shares else None,
            "palette_share_lora": round(shares[1], 4) if shares else None,
            "loss": measure_loss(progress),
        },
        shares=shares,
        best=best,
        cell=cell,
        thumbnail=draw_thumbnail(best, cell=cell) if best else "",
        pictures={"sheet": sheet, "loss": draw_curve(progress, title=f"{plan.name}: loss")},
    )


def _refuse_failed(loading: Loading, exports: Exports, source: Path) -> None:
    """Raises ShipError where a program does not load its file right; nothing broken is left under a good name."""
    if not loading.failed:
        return
    for check in loading.failed:
        path = exports.files[check.format]
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    problems = [Problem(where=check.name, what=f"{check.program}: {check.why}") for check in loading.failed]
    raise ShipError(
        f"the model is trained ({source}), but {len(problems)} of its exports did not pass being loaded again, "
        "and were taken away",
        hint="the training is kept; `pixelkit resume` ships it again, export.formats leaves formats out",
        problems=problems,
    )


def _write_beside(plan: Plan, folder: Path, model: Path, trained: datetime, seen: _Seen) -> list[Path]:
    """The preview and what other programs read beside a LoRA."""
    if plan.makes != "lora":
        return []
    preview = folder / f"{plan.name}.preview.png"
    if seen.best:
        write_atomically(preview, draw_preview(seen.best, cell=seen.cell))
    try:
        contents = describe_for_others(plan, model, trained, preview=preview.name if seen.best else "")
    except ConversionError as error:
        raise ShipError(str(error)) from error
    for name, text in contents.items():
        write_atomically(folder / name, text)
    return [*([preview] if seen.best else []), *(folder / name for name in contents)]
