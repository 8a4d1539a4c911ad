"""`pixelkit estimate` and `pixelkit measures`: the arithmetic, the price lists, and what is said where nothing is known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from made_files import random_pixels, save
from made_measures import make_measure, make_plan

from pixelkit.cli import main
from pixelkit.errors import PresetError, StorageError
from pixelkit.measures import MeasureBook, setup_of
from pixelkit.measures.cost import choose_providers, read_prices, training_hours
from pixelkit.measures.quote import Hours, Speed, count_images, estimate_hours, price_hours, read_gpu

if TYPE_CHECKING:
    from pathlib import Path


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_the_hours_that_the_guide_meant() -> None:
    """The CatSith guide's calculator: 1000 images x 10 epochs at 2 a second, and 10000 x 50 at 0.5, at $1.10 an hour.

    Its code divides by the batch once more (0.4 h, $0.46 and 83.3 h, $91.67); it prints 1.7 h, $1.83 and 33.3 h, $36.67.
    """
    lora = training_hours(images=1000, epochs=10, images_per_second=2)
    assert (round(lora, 2), round(lora * 1.10, 2)) == (1.67, 1.83)
    distillation = training_hours(images=10_000, epochs=50, images_per_second=0.5)
    assert (round(distillation, 1), round(distillation * 1.10, 2)) == (333.3, 366.67)
    assert training_hours(images=3600, epochs=1, images_per_second=1, overhead=1.0) == 1.0


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_the_batch_is_no_divisor(batch: int) -> None:
    """The same images at the same images per second take the same time, whatever the batch."""
    plan = make_plan("quickstart", f"train.batch_size={batch}", f"train.steps={1200 // batch}")
    assert count_images(plan) == 1200
    hours = estimate_hours(plan, MeasureBook(), Speed(images_per_second=2.0))
    assert hours.likely == pytest.approx(1200 / 2 / 3600 * 1.2)


def test_an_overhead_only_on_what_does_not_hold_it() -> None:
    plan = make_plan()
    book = MeasureBook()
    book.add(make_measure(0.5, setup=setup_of(plan), seconds_before=30.0))
    hours = estimate_hours(plan, book, Speed())
    assert hours.likely == pytest.approx((300 * 0.5 + 30) / 3600 * 1.2), "it drew no pictures, the plan will"
    drawn = {"seconds_per_picture": 2.0, "picture_steps": plan.sample.steps, "picture_area": plan.sample.width**2}
    book.add(make_measure(0.5, setup=setup_of(plan), seconds_before=30.0, **drawn))
    assert estimate_hours(plan, book, Speed()).likely == pytest.approx((300 * 0.5 + 30 + 16) / 3600)
    assert estimate_hours(plan, book, Speed(overhead=2.0)).likely == pytest.approx((300 * 0.5 + 30 + 16) / 1800)


def test_money_between_the_least_and_the_most() -> None:
    hours = Hours(likely=2.0, low=1.0, high=4.0, source="")
    assert price_hours(hours, (0.8, 2.0)) == pytest.approx((2.8, 0.8, 8.0))
    assert price_hours(Hours(likely=None, low=None, high=None, source=""), (1.0, 1.0)) is None


def test_the_shipped_prices_are_the_guides() -> None:
    prices = {provider.name: provider.per_hour for provider in read_prices().providers}
    assert prices == {
        "Lambda": (1.10, 1.10), "RunPod": (1.44, 1.44), "Vast": (0.80, 2.00), "AWS": (3.50, 3.50), "GCP": (3.67, 3.67),
    }  # fmt: skip
    assert all(provider.listed and not provider.gpu for provider in read_prices().providers)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "providers"),
        ("providers = [{name = 'x', per_hour = -1}]", "per_hour"),
        ("providers = [{name = 'x', per_hour = [2, 1]}]", "the lesser first"),
        ("providers = [{name = 'x', per_hour = [1]}]", "two numbers"),
        ("providers = [{name = 'x', per_hour = nan}]", "per_hour"),
        ("providers = [{name = 'x', per_hour = 1, cpu = 3}]", "cpu"),
        ("providers = [", "not valid TOML"),
    ],
)
def test_a_price_list_with_a_mistake_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(StorageError, match=said) as caught:
        read_prices(file)
    assert "prices.toml" in caught.value.message
    with pytest.raises(StorageError, match="cannot read"):
        read_prices(tmp_path / "absent.toml")


def test_providers_by_name() -> None:
    prices = read_prices()
    assert [provider.name for provider in choose_providers(prices, ("gcp", "lambda"))] == ["Lambda", "GCP"]
    with pytest.raises(PresetError, match="Lamda") as caught:
        choose_providers(prices, ("Lamda",))
    assert caught.value.hint == "did you mean Lambda?"


@pytest.mark.parametrize(
    ("text", "read"),
    [("RTX 4090 24GB", ("RTX 4090", 24.0)), ("H100, 80 GiB", ("H100", 80.0)), ("A100-SXM4 40 gb", ("A100-SXM4", 40.0))],
)
def test_a_gpu_as_people_write_it(text: str, read: tuple[str, float]) -> None:
    assert read_gpu(text) == read


@pytest.mark.parametrize("text", ["RTX 4090", "24GB", "", "H100 80"])
def test_a_gpu_without_memory_is_asked_for_it(text: str) -> None:
    with pytest.raises(PresetError, match="which memory"):
        read_gpu(text)


def test_no_number_for_a_gpu_that_nobody_named() -> None:
    result = call("estimate", "quickstart", "--provider", "Lambda", "--provider", "AWS")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith(("Lambda", "AWS"))]
    assert len(lines) == 2
    for line, price in zip(lines, ("1.10", "3.50"), strict=True):
        assert f"${price}" in line and " unknown " in line and line.count("$") == 1, "a price an hour, and no cost"
        assert "does not say which GPU" in line
    assert "check the provider's own page" in result.output


def test_a_speed_of_ones_own() -> None:
    result = call("estimate", "quickstart", "--images-per-second", "0.5", "--provider", "vast", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["images"], content["currency"]) == (1200, "$")
    (quote,) = content["quotes"]
    hours = 1200 / 0.5 / 3600 * 1.2
    assert quote["hours"]["likely"] == pytest.approx(hours)
    assert quote["cost"] == pytest.approx([hours * 1.4, hours * 0.8, hours * 2.0])


def test_a_price_list_that_names_its_gpu(tmp_path: Path) -> None:
    """SDXL on a named GPU: computed, with the plan of that GPU's profile; on an unknown one nothing is printed."""
    (tmp_path / "sprites").mkdir()
    for number in range(12):
        save(tmp_path / "sprites" / f"{number}.png", random_pixels(32, 32, seed=number))
    prices = tmp_path / "prices.toml"
    prices.write_text(
        'currency = "EUR "\nproviders = [\n'
        '{ name = "one", gpu = "RTX 4090", memory_gib = 24, per_hour = 0.5, listed = "2026-11-21" },\n'
        '{ name = "two", gpu = "Made GPU", memory_gib = 24, per_hour = 0.5 } ]\n'
    )
    data = f"dataset.path={tmp_path / 'sprites'}"
    words = ("estimate", "sdxl-balanced", "--set", data, "--prices", str(prices))
    result = call(*words, "--json", "--provider", "one", "--provider", "two")
    if result.exit_code == 5:
        pytest.skip("no sd-scripts, so no plan for SDXL")
    assert result.exit_code == 0, result.output
    one, two = json.loads(result.stdout)["quotes"]
    assert one["hours"]["source"].startswith("computed") and one["hours"]["source"].endswith("x 1.2")
    assert one["cost"][0] == pytest.approx(one["hours"]["likely"] * 0.5)
    assert two["hours"]["likely"] is None and two["cost"] is None


def test_electricity_of_ones_own_machine() -> None:
    result = call("estimate", "quickstart", "--watts", "1000", "--kwh-price", "36", "--json")
    here = json.loads(result.stdout)["quotes"][0]
    assert here["where"] == "this machine"
    assert here["cost"] == pytest.approx([here["hours"][name] * 36 for name in ("likely", "low", "high")])


def test_measures_from_one_machine_to_another(tmp_path: Path) -> None:
    assert "nothing was measured yet" in call("measures", "list").output
    MeasureBook().add(make_measure(0.5, peak_memory_gib=1.5), make_measure(None, kind="probe", failed="oom"))
    listed = call("measures", "list").output
    assert "Made CPU, 16 GiB" in listed and "failed: oom" in listed and "1.5" in listed
    assert call("measures", "export", str(tmp_path / "studio.json")).exit_code == 0
    assert call("measures", "forget").exit_code == 2
    assert "2 removed" in call("measures", "forget", "--all").output
    assert "2 new" in call("measures", "import", str(tmp_path / "studio.json")).output
    assert [measure["elsewhere"] for measure in json.loads(call("measures", "list", "--json").output)] == ["studio"] * 2
    assert "0 removed" in call("measures", "forget", "--machine", "Other").output
    assert "2 removed" in call("measures", "forget", "--elsewhere", "studio").output
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe\x00")
    assert call("measures", "import", str(tmp_path / "bad.json")).exit_code == StorageError.exit_code
    assert call("measures", "import", str(tmp_path / "absent.json")).exit_code == StorageError.exit_code
