"""Who gets which model: stable, monotonic, in the right shares, and the same for a program that knows no pixelkit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkit.errors import PresetError
from pixelkit.registry.rollout import Deployment, Rollout, find_place, is_chosen, parse_percent, pick_model

USERS = [f"player-{number}" for number in range(10_000)]
SALTS = st.text("0123456789abcdef", min_size=32, max_size=32)
PERCENTS = st.floats(0, 100)


@given(SALTS, st.text(), PERCENTS, PERCENTS)
def test_a_share_that_grows_loses_nobody(salt: str, user: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert is_chosen(salt, user, large) or not is_chosen(salt, user, small)
    assert is_chosen(salt, user, 100)
    assert not is_chosen(salt, user, 0)


@pytest.mark.parametrize("salt", ["00" * 16, "5a" * 16, "9f3c" * 8])
@pytest.mark.parametrize("percent", [0.5, 10, 20, 50, 99])
def test_the_share_is_what_was_asked_for(salt: str, percent: float) -> None:
    share = sum(is_chosen(salt, user, percent) for user in USERS) / len(USERS)
    deviation = (percent / 100 * (1 - percent / 100) / len(USERS)) ** 0.5
    assert abs(share - percent / 100) < 4 * deviation


def test_from_10_to_20_percent_moves_only_those_who_join() -> None:
    before = Deployment(
        style="hero", salt="ab" * 16, current="hero_v1.0", rollouts=(Rollout(model="hero_v1.1", percent=10),)
    )
    after = before.roll_out(Rollout(model="hero_v1.1", percent=20))
    moved = [user for user in USERS if before.pick(user) != after.pick(user)]
    assert all((before.pick(user), after.pick(user)) == ("hero_v1.0", "hero_v1.1") for user in moved)
    assert 0.08 < len(moved) / len(USERS) < 0.12


def test_the_answer_is_a_fixed_one() -> None:
    """Not only the same within this process: these were computed once, by sha256sum."""
    expected = {"ada": 0xF86AF087, "bob": 0xF46C0334, "ü": 0x0C9FDED9}
    assert {user: find_place("salt", user) for user in expected} == expected
    assert [is_chosen("salt", user, 12.5) for user in expected] == [False, False, True]


def test_segments() -> None:
    one = Deployment(style="hero", salt="ab" * 16, current="hero_v1.0")
    beta = one.roll_out(Rollout(model="hero_v1.1", percent=100, segment="beta"))
    assert {beta.pick(user, "beta") for user in USERS[:50]} == {"hero_v1.1"}
    assert (
        {beta.pick(user) for user in USERS[:50]} == {beta.pick(user, "other") for user in USERS[:50]} == {"hero_v1.0"}
    )
    both = beta.roll_out(Rollout(model="hero_v1.2", percent=50))
    assert {both.pick(user) for user in USERS[:50]} == {"hero_v1.0", "hero_v1.2"}
    assert {both.pick(user, "beta") for user in USERS[:50]} == {"hero_v1.1"}
    spared = both.roll_out(Rollout(model="hero_v1.2", percent=0, segment="beta"))
    assert {spared.pick(user, "beta") for user in USERS[:50]} == {"hero_v1.0"}, "left out of the rollout to all"
    assert spared.roll_out(Rollout(model="hero_v1.2", percent=0)).rollouts == ()


def test_where_releases_and_rollbacks_lead() -> None:
    one = Deployment(style="hero", salt="", current=None)
    for version in ("1.0", "1.1", "1.2"):
        one = one.release(f"hero_v{version}")
    assert (one.current, one.earlier) == ("hero_v1.2", ("hero_v1.0", "hero_v1.1"))
    back = one.roll_back("hero_v1.1")
    assert (back.current, back.earlier) == ("hero_v1.1", ("hero_v1.0",))
    fixed = back.release("hero_v1.3")
    assert fixed.earlier[-1] == "hero_v1.1", "a rollback never leads to 1.2, which was rolled back"
    assert one.roll_back("hero_v0.9").earlier == ()


@pytest.mark.parametrize("text", ["10", "0.1", "101%", "-1%", "ten%", "%", "1e1%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(PresetError, match="no share"):
        parse_percent(text)
    assert parse_percent(" 12.5 %") == 12.5


def test_the_snippet_in_the_docs_agrees(tmp_path: Path) -> None:
    """docs/models.md shows ten lines that need no pixelkit."""
    page = Path(__file__).parent.parent / "docs" / "models.md"
    code = re.search(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert code
    scope: dict[str, object] = {}
    exec(compile(code[1], "models.md", "exec"), scope)
    rollouts = (Rollout(model="hero_v1.2", percent=33), Rollout(model="hero_v1.1", percent=60, segment="beta"))
    deployment = Deployment(style="hero", salt="ab" * 16, current="hero_v1.0", rollouts=rollouts)
    (tmp_path / "current").mkdir()
    (tmp_path / "production").mkdir()
    (tmp_path / "current" / "hero.json").write_text(deployment.as_text())
    for version in ("1.0", "1.1", "1.2"):
        (tmp_path / "production" / f"hero_v{version}.safetensors").touch()
    theirs = scope["pick"]
    assert callable(theirs)
    for user in USERS[:500]:
        for segment in ("", "beta", "other"):
            file = tmp_path / theirs(tmp_path, "hero", user, segment or None)
            assert file == pick_model(tmp_path, "hero", user, segment)[1]
    assert json.loads((tmp_path / "current" / "hero.json").read_text())["file"] == "production/hero_v1.0.safetensors"
