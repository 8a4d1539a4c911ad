"""The plan: nothing open, every number with its source, steps and epochs by the true bucketed batch count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pixelkit.catalog import Base, find_base, list_hardware
from pixelkit.errors import CatalogError, DataError, PresetError
from pixelkit.hardware import Machine, choose_profile
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.preset_file import load_preset
from pixelkit.sources import Sprite, Survey

H100 = Machine(
    kind="cuda", device="NVIDIA H100 80GB HBM3", memory_gib=79.6, available_gib=79, capability=(9, 0), cores=16
)
GB10 = Machine(
    kind="cuda", device="NVIDIA GB10", memory_gib=121.7, available_gib=110, capability=(12, 1), unified=True, cores=20
)
CPU = Machine(kind="cpu", device="x86_64", memory_gib=24, available_gib=20, unified=True, cores=2)


def sprites(*sizes: tuple[int, int], caption: str | None = "a sword") -> tuple[Sprite, ...]:
    return tuple(
        Sprite(path=Path(f"/s/orc_{n}.png"), name=f"orc_{n}", width=w, height=h, caption=caption)
        for n, (w, h) in enumerate(sizes)
    )


def plan(
    tmp_path: Path,
    text: str = "",
    *,
    base: str = "sdxl",
    method: str = "lora",
    machine: Machine = GB10,
    images: tuple[Sprite, ...] = sprites(*[(32, 32)] * 50),
    class_images: tuple[Sprite, ...] = (),
) -> Plan:
    file = tmp_path / "p.toml"
    file.write_text(f'name = "p"\nbase = "{base}"\nmethod = "{method}"\n[dataset]\npath = "s"\n{text}', "utf-8")
    loaded = absorb_kohya(load_preset(str(file)))
    profiles = list_hardware()
    name, _ = choose_profile(loaded.preset.hardware, machine, profiles)
    found = find_base(base, None, folder=tmp_path, models=None)
    return resolve(
        loaded,
        found,
        name,
        profiles[name],
        machine,
        engine="kohya",
        survey=Survey(sprites=tuple(images)),
        class_survey=Survey(sprites=tuple(class_images)),
    )


def test_nothing_is_left_open(tmp_path: Path) -> None:
    def walk(value: object, path: str) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                if field.name not in {"preset", "spec", "embedding", "start_from"}:  # None: there is none
                    walk(getattr(value, field.name), f"{path}.{field.name}")
        else:
            assert value is not None, path
            assert value != "auto" or path.endswith("background"), path

    walk(plan(tmp_path), "plan")


def test_steps_from_epochs_count_each_bucket(tmp_path: Path) -> None:
    mixed = sprites(*[(32, 32)] * 9, *[(32, 48)] * 2)
    made = plan(tmp_path, "[train]\nepochs = 10\nbatch_size = 4\ngradient_accumulation = 2\n", images=mixed)
    assert (made.train.steps_per_epoch, made.train.steps) == (2, 20)  # 3 + 1 batches, two a step
    assert made.sources["train.steps"] == "10 epochs (p.toml:7)"


def test_class_images_double_the_epoch(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        "[train]\nbatch_size = 1\nepochs = 1\n",
        images=sprites(*[(32, 32)] * 6),
        class_images=sprites((64, 64), (32, 32)),
    )
    assert made.train.steps == 12


def test_an_effective_batch_is_split_by_the_machine(tmp_path: Path) -> None:
    text = "[train]\nsteps = 100\neffective_batch = 8\n"
    big, small = plan(tmp_path, text, machine=H100), plan(tmp_path, "[train]\nsteps = 100\neffective_batch = 6\n")
    assert (big.train.batch_size, big.train.gradient_accumulation) == (8, 1)
    assert (small.train.batch_size, small.train.gradient_accumulation) == (3, 2)
    assert big.train.effective_batch == 8 and small.train.effective_batch == 6


def test_a_batch_of_the_machine_keeps_the_steps_and_says_so(tmp_path: Path) -> None:
    made = plan(tmp_path, "[train]\nsteps = 100\n")
    assert (made.train.batch_size, made.train.steps) == (4, 100)
    assert any("hardware gb10" in warning and "100 steps are kept" in warning for warning in made.warnings)


def test_sources(tmp_path: Path) -> None:
    made = plan(tmp_path, "[network]\nrank = 8\n")
    assert made.sources["network.rank"] == "p.toml:7"
    assert made.sources["network.alpha"] == "the rank"
    assert made.sources["train.precision"] == "hardware gb10"
    assert made.sources["sample.sampler"] == "base sdxl"
    assert made.sources["train.learning_rate"] == "default"
    assert (made.network.alpha, made.train.precision, made.train.optimizer, made.train.fused_optimizer) == (
        8.0,
        "bf16",
        "adamw",
        True,
    )


def test_kohyas_own_names_are_the_same_thing(tmp_path: Path) -> None:
    made = plan(tmp_path, "[train]\nepochs = 3\n[kohya]\nmax_train_steps = 77\nnetwork_dim = 4\nmin_timestep = 10\n")
    assert (made.train.steps, made.network.rank) == (77, 4)
    assert made.sources["train.steps"] == "p.toml:9"
    assert made.kohya["min_timestep"] == 10 and "max_train_steps" not in made.kohya


def test_kohyas_names_are_checked_as_ours_are(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="max_train_steps"):
        plan(tmp_path, "[kohya]\nmax_train_steps = -1\n")


def test_captions(tmp_path: Path) -> None:
    text = 'trigger = "pix"\ncaption = "{name}, sprite"\n'
    assert plan(tmp_path, text).dataset.sprites[0].caption == "pix, a sword"
    bare = plan(tmp_path, text, images=sprites((32, 32), caption=None))
    assert bare.dataset.sprites[0].caption == "pix, orc, sprite"
    assert any("no .txt caption" in warning for warning in bare.warnings)
    assert (
        plan(tmp_path, text, images=sprites((32, 32), caption="pix, a bow")).dataset.sprites[0].caption == "pix, a bow"
    )
    assert plan(tmp_path, text + 'instance_prompt = "photo of sks"\n').dataset.sprites[0].caption == "photo of sks"


def test_a_trigger_is_whole_words(tmp_path: Path) -> None:
    text = 'trigger = "hero"\n'
    images = sprites((32, 32), caption="heroic pose")
    assert plan(tmp_path, text, images=images).dataset.sprites[0].caption == "hero, heroic pose"
    images = sprites((32, 32), caption="hero: standing")
    assert plan(tmp_path, text, images=images).dataset.sprites[0].caption == "hero: standing"


def test_a_caption_is_one_line(tmp_path: Path) -> None:
    made = plan(tmp_path, 'instance_prompt = "a cat\\nand  a dog"\n')
    assert made.dataset.sprites[0].caption == "a cat and a dog"


def test_samples_have_a_size_that_can_be_drawn(tmp_path: Path) -> None:
    made = plan(tmp_path, base="pixelkit-tiny", images=sprites((26, 18)))
    assert made.sample.width % 8 == 0 and made.sample.height % 8 == 0


def test_a_whole_model_needs_more_memory(tmp_path: Path) -> None:
    file = "[train]\nbatch_size = 1\n"
    lora, whole = plan(tmp_path, file, base="sd15"), plan(tmp_path, file, base="sd15", method="dreambooth")
    assert lora.memory_gib < 6 and 15 < whole.memory_gib < 19


def test_warmup_longer_than_the_run_is_lowered(tmp_path: Path) -> None:
    made = plan(tmp_path, "[train]\nsteps = 50\nwarmup_steps = 100\nbatch_size = 1\n")
    assert made.train.warmup_steps == 5
    assert any("lowered to 5" in warning for warning in made.warnings)


def test_unusual_values_warn_and_pass(tmp_path: Path) -> None:
    made = plan(tmp_path, "[network]\nrank = 512\n[train]\nlearning_rate = 0.01\n")
    assert any("p.toml:7 [network] rank = 512 is outside the usual" in warning for warning in made.warnings)
    assert any("learning_rate = 0.01" in warning for warning in made.warnings)


def test_too_little_memory_is_told(tmp_path: Path) -> None:
    small = dataclasses.replace(H100, memory_gib=24, available_gib=10)
    assert any(
        "GiB of memory are expected" in warning
        for warning in plan(tmp_path, "[train]\nbatch_size = 64\n", machine=small).warnings
    )


def test_old_cards_have_no_bf16(tmp_path: Path) -> None:
    turing = Machine(kind="cuda", device="RTX 2060", memory_gib=11.6, available_gib=11, capability=(7, 5), cores=8)
    made = plan(tmp_path, machine=turing)
    assert (made.train.precision, made.sources["train.precision"]) == ("fp16", "RTX 2060 has no bf16")


def test_sprites_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        plan(tmp_path, images=sprites((32, 32), (4000, 300), (1200, 1200), (4000, 300)))
    assert [problem.where for problem in caught.value.problems] == ["orc_1.png and 1 more:", "orc_2.png"]
    assert "p.toml:5 [dataset] path: 3 of 4 sprites do not fit" in str(caught.value)


def test_a_family_the_machine_cannot_train(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="cannot train flux"):
        plan(tmp_path, base="flux-dev", machine=CPU)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (GB10, "gb10"),
        (H100, "cuda-80gb"),
        (dataclasses.replace(H100, device="NVIDIA H200", memory_gib=139.8), "cuda-80gb"),
        (dataclasses.replace(H100, device="L40S", memory_gib=44.5), "cuda-48gb"),
        (dataclasses.replace(H100, device="RTX 4090", memory_gib=23.5), "cuda-24gb"),
        (dataclasses.replace(H100, device="RTX 3060", memory_gib=11.6), "cuda-12gb"),
        (dataclasses.replace(H100, device="GTX 1650", memory_gib=3.9), "cuda-8gb"),
        (CPU, "cpu"),
        (Machine(kind="mps", device="Apple GPU", memory_gib=32, available_gib=20), "mps"),
    ],
)
def test_the_profile_that_fits(machine: Machine, expected: str) -> None:
    assert choose_profile("auto", machine, list_hardware())[0] == expected


def test_a_named_profile(tmp_path: Path) -> None:
    assert choose_profile("gb10", CPU, list_hardware()) == ("gb10", "asked for")
    with pytest.raises(CatalogError) as caught:
        choose_profile("gb11", CPU, list_hardware())
    assert "did you mean gb10?" in str(caught.value)


class TestBases:
    def find(self, folder: Path, name: str, family: str | None = None) -> Base:
        return find_base(name, family, folder=folder, models=folder)  # type: ignore[arg-type]

    def test_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError) as caught:
            self.find(tmp_path, "sdlx")
        assert "did you mean sdxl?" in str(caught.value)

    def test_a_hub_id_needs_its_family(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="family must be given"):
            self.find(tmp_path, "someone/model")
        assert self.find(tmp_path, "someone/model", "sdxl").location == "someone/model"

    def test_a_wrong_family(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="is of the family sdxl"):
            self.find(tmp_path, "sdxl", "flux")

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("m.safetensors", b"this is a text file, not a model", "no safetensors"),
            ("m.safetensors", b"", "no safetensors"),
            ("m.safetensors", (2).to_bytes(8, "little") + b"{]", "no safetensors"),
            (
                "m.safetensors",
                (62).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}        ' + b"abc",
                "cut off",
            ),
            ("m.ckpt", b"x", "pickle"),
        ],
    )
    def test_files_that_are_no_model(self, tmp_path: Path, name: str, content: bytes, said: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CatalogError, match=said):
            self.find(tmp_path, name, "sdxl")

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        with pytest.raises(CatalogError, match=r"model_index\.json"):
            self.find(tmp_path, "m", "sdxl")

    def test_a_file_of_the_models_folder_is_preferred(self, tmp_path: Path) -> None:
        header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
        file = tmp_path / "deep" / "sd_xl_base_1.0.safetensors"
        file.parent.mkdir()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
        found = self.find(tmp_path, "sdxl")
        assert found.local and found.location == str(file)
