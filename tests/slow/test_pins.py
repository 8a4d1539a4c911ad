"""The `train` extra holds sd-scripts' requirements at their pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
# A display library that servers lack hangs on opencv-python; the headless build of the same version serves.
STAND_INS = {"opencv-python": "opencv-python-headless"}


def parse(requirement: str) -> tuple[str, str]:
    match = re.match(r"([A-Za-z0-9_-]+)(?:\[[^\]]*\])?\s*(==\s*[^;\s]+)?", requirement)
    assert match
    return match[1].lower().replace("_", "-"), (match[2] or "").replace(" ", "")


def test_every_pin_of_sd_scripts_is_ours(sd_scripts: Path) -> None:
    ours = dict(parse(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]])
    lines = (line.split("#")[0].strip() for line in (sd_scripts / "requirements.txt").read_text("utf-8").splitlines())
    theirs = [parse(line) for line in lines if line and not line.startswith("-")]
    assert len(theirs) > 15
    for name, pin in theirs:
        mine = STAND_INS.get(name, name)
        assert mine in ours, f"sd-scripts needs {name}"
        if pin:
            assert ours[mine] == pin, f"{name}: sd-scripts pins {pin}, we have {ours[mine] or 'no pin'}"


def test_the_installed_stack_is_the_pinned_one() -> None:
    from importlib.metadata import version

    for requirement in PROJECT["optional-dependencies"]["train"]:
        name, pin = parse(requirement)
        if pin:
            assert version(name) == pin.removeprefix("=="), name
