"""The stored table, the rules' line numbers and the dataset schema, against the engine itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pixelkit.engines.kohya.options import (
    TABLE_FILE,
    list_changed_files,
    load_table,
    recognise_commit,
    verify_config,
    verify_dataset_config,
)
from pixelkit.engines.kohya.rules import RULES
from pixelkit.errors import RenderError
from pixelkit.toml_text import format_value

ROOT = Path(__file__).parents[2]
# the engine's modules with its real voluptuous and toml, and stand-ins for the rest
PRELUDE = """
import json, logging, sys
from pathlib import Path
from pixelkit.engines.kohya import extract
logging.disable()
stub = extract._Finder.find_spec
real = {"voluptuous", "toml"}
extract._Finder.find_spec = lambda self, name, *rest: None if name.split(".")[0] in real else stub(self, name, *rest)
"""


def run_python(code: str, *arguments: str, text: str = "", flags: tuple[str, ...] = ()) -> str:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stored_table_is_what_the_engine_gives(sd_scripts: Path) -> None:
    """Without site-packages (-S): the standard library suffices."""
    started = time.monotonic()
    code = "from pixelkit.engines.kohya.extract import main; main(sys.argv[1:])"
    found = run_python(code, str(sd_scripts), "--commit", load_table().commit, flags=("-I", "-S"))
    assert found == TABLE_FILE.read_text("utf-8")
    assert time.monotonic() - started < 10  # 0.3 s on an idle machine


def test_the_checkout_is_recognised(sd_scripts: Path) -> None:
    assert list_changed_files(sd_scripts) == []
    assert (recognise_commit(sd_scripts) or "").startswith(load_table().commit)


def test_a_folder_that_is_no_checkout_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        AssertionError, match=r"is no sd-scripts checkout that pixelkit knows: train_network\.py is missing"
    ):
        run_python(
            "from pixelkit.engines.kohya.extract import main; main(sys.argv[1:])", str(tmp_path), "--commit", "x"
        )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_still_mirrors_its_line(rule: Any, sd_scripts: Path) -> None:
    file, _, line = rule.mirrors.partition(":")
    assert rule.quote in (sd_scripts / file).read_text("utf-8").split("\n")[int(line) - 1]


def test_the_engine_reads_what_was_verified(sd_scripts: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "learning_rate": 1e-4,
        "unet_lr": 1,
        "cache_latents": True,
        "mixed_precision": "bf16",
        "metadata_title": 'the "hero", [v2] # 1 \\ スプライト',
        "network_args": ["conv_dim=8", "conv_alpha=4"],
        "max_train_steps": 12,
        "lr_warmup_steps": 0.05,
    }
    lines = [f"{key} = {format_value(value)}" for key, value in values.items()]
    config = tmp_path / "config.toml"
    config.write_text("\n".join([*lines[:2], "[a]", *lines[2:5], "", "[b]", *lines[5:]]) + "\n", encoding="utf-8")
    assert verify_config(config, "train_network") == []
    code = f"""{PRELUDE}
checkout, config = Path(sys.argv[1]), sys.argv[2]
sys.argv = ["train_network.py", "--config_file", config]
with extract._stubbed_imports(checkout):
    import train_network
    from library import train_util
    parser = train_network.setup_parser()
    args = train_util.read_config_from_file(parser.parse_args(), parser)
print(json.dumps(vars(args), default=str))
"""
    read = json.loads(run_python(code, str(sd_scripts), str(config)).splitlines()[-1])
    assert {key: read[key] for key in values} == values
    defaults = {name: option.default for name, option in load_table().options_of("train_network").items()}
    different = {key for key in read.keys() | defaults.keys() if read.get(key) != defaults.get(key)}
    assert different == {*values, "config_file"}


VALUES: tuple[Any, ...] = (True, 1, 0.5, "nearest", [1, 2], [0.5, 1.5], [1, 2, 3], ["a", "b"], {"a": 1})


def make_probe(level: str, key: str, value: Any) -> dict[str, Any]:
    subset: dict[str, Any] = {"image_dir": "/x"}
    dataset: dict[str, Any] = {"subsets": [subset]}
    general: dict[str, Any] = {}
    {"general": general, "datasets": dataset, "subsets": subset}[level][key] = value
    return {"general": general, "datasets": [dataset]}


def write_probe(probe: dict[str, Any]) -> str:
    def write(table: dict[str, Any]) -> str:
        return "".join(f"{key} = {format_value(value)}\n" for key, value in table.items() if key != "subsets")

    dataset = probe["datasets"][0]
    subsets = dataset["subsets"]
    tail = "".join(f"[[datasets.subsets]]\n{write(subset)}" for subset in subsets) if isinstance(subsets, list) else ""
    return f"[general]\n{write(probe['general'])}[[datasets]]\n{write(dataset)}{tail}"


@pytest.mark.parametrize("script", ["train_network", "train_textual_inversion"])
def test_dataset_files_are_judged_as_the_engine_judges_them(script: str, sd_scripts: Path, tmp_path: Path) -> None:
    """Never more lenient; stricter only on truth values for numbers and on the names of interpolations."""
    keys = [*load_table().dataset, "prior_loss_weight", "num_repeat", "metadata_file"]
    cases = [(level, key, value) for level in ("general", "datasets", "subsets") for key in keys for value in VALUES]
    cases = [case for case in cases if case[1] != "metadata_file" or case[0] != "subsets"]  # fine-tuning, not ours
    code = f"""{PRELUDE}
with extract._stubbed_imports(Path(sys.argv[1])):
    from library.config_util import ConfigSanitizer
    import voluptuous
    sanitizer = ConfigSanitizer(True, True, False, sys.argv[2] == "train_network")
    judged = []
    for probe in json.load(sys.stdin):
        try:
            sanitizer.user_config_validator(probe)
            judged.append(True)
        except voluptuous.MultipleInvalid:
            judged.append(False)
print(json.dumps(judged))
"""
    probes = [make_probe(*case) for case in cases]
    accepted = json.loads(run_python(code, str(sd_scripts), script, text=json.dumps(probes)).splitlines()[-1])
    assert sum(accepted) > 100
    path = tmp_path / "dataset.toml"
    for (level, key, value), probe, engine in zip(cases, probes, accepted, strict=True):
        try:
            path.write_text(write_probe(probe), encoding="utf-8")
        except RenderError:
            continue
        ours = verify_dataset_config(path, script) == []
        if engine and (value is True or key == "resize_interpolation"):
            continue
        assert ours == engine, (level, key, value, verify_dataset_config(path, script))
