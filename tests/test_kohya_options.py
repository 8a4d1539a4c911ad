from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelkit.engines.kohya import options as module
from pixelkit.engines.kohya.extract import dump_table, hash_source
from pixelkit.engines.kohya.options import (
    Option,
    check_kohya_table,
    list_changed_files,
    load_table,
    recognise_commit,
    verify_config,
    verify_dataset_config,
)
from pixelkit.errors import EngineError, Problem, StorageError
from pixelkit.toml_text import format_key, format_value

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "48d368fa557731ad0488c07304dfeba8c07910eb"
COUNTS = {
    "train_network": 193,
    "sdxl_train_network": 196,
    "flux_train_network": 215,
    "sd3_train_network": 218,
    "train_db": 169,
    "sdxl_train": 176,
    "train_textual_inversion": 169,
}
DATASET = """\
[general]
caption_extension = ".txt"

[[datasets]]
resolution = [512, 512]
batch_size = 2
enable_bucket = true

[[datasets.subsets]]
image_dir = "/sprites"
num_repeats = 10
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def verify(path: Path, text: str, script: str = "train_network") -> list[str]:
    path.write_bytes(text.encode())
    return [str(problem).replace(str(path), "config.toml") for problem in verify_config(path, script)]


def verify_dataset(path: Path, text: str, script: str = "train_network") -> list[str]:
    path.write_bytes(text.encode())
    return [str(problem).replace(str(path), "dataset.toml") for problem in verify_dataset_config(path, script)]


def test_the_table_is_that_of_the_pinned_commit() -> None:
    table = load_table()
    assert (table.commit, table.version) == (COMMIT, "0.10.1")
    assert {script: len(table.options_of(script)) for script in COUNTS} == COUNTS
    assert len({name for script in COUNTS for name in table.options_of(script)}) == 243
    assert table.options_of("train_network")["learning_rate"] == Option(
        name="learning_rate", type="float", default=2e-06, help="learning rate"
    )
    stored = json.loads(module.TABLE_FILE.read_text("utf-8"))
    assert module.TABLE_FILE.read_text("utf-8") == dump_table(stored)
    assert {script: entry["options"] for script, entry in stored["scripts"].items()} == {
        script: len(options) for script, options in table.scripts.items()
    }


def test_an_unknown_script_is_an_error(config: Path) -> None:
    with pytest.raises(EngineError, match="train_networks"):
        verify(config, "", "train_networks")


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        verify_config(tmp_path / "none.toml", "train_network")


def test_a_good_file_passes(config: Path) -> None:
    text = """
seed = 1
[model]
pretrained_model_name_or_path = "/base.safetensors"
mixed_precision = "bf16"
resolution = "64,64"
[train]
learning_rate = 1e-4
unet_lr = 1
lr_warmup_steps = 0.05
max_train_steps = 4
cache_latents = true
text_encoder_lr = [5e-5]
network_args = ["conv_dim=8"]
max_token_length = 225
"""
    assert verify(config, text) == []
    assert verify(config, text.replace("[5e-5]", "5e-5").replace("\n", "\r\n")) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("learning_ratee = 1e-4", "learning_ratee: no such option of train_network; did you mean learning_rate?"),
        (
            "learning-rate = 1e-4",
            "learning-rate: keys with a dash are dropped; did you mean learning_rate?",
        ),
        (
            "timestep_sampling = 'shift'",
            "timestep_sampling: no such option of train_network; it exists only in flux_train_network, flux_train",
        ),
        (
            "is_reg = true",
            "is_reg: no such option of train_network; it belongs in the dataset file, in [[datasets.subsets]]",
        ),
        ("zzzz = 1", "zzzz: no such option of train_network"),
        ("train.rate = 1", "train: tables within tables are dropped; give options in a table of one level"),
        ('cache_latents = "false"', 'cache_latents: "false" where true or false is due; write false without quotes'),
        ("cache_latents = 1", "cache_latents: 1 where true or false is due; write true"),
        ('learning_rate = "1e-4"', 'learning_rate: "1e-4" where a number is due; write 1e-4 without quotes'),
        ("learning_rate = true", "learning_rate: true where a number is due"),
        ("learning_rate = nan", "learning_rate: nan is no number to train with"),
        ("max_train_steps = 10.0", "max_train_steps: 10.0 where a whole number is due; write 10"),
        ("max_train_steps = true", "max_train_steps: true where a whole number is due"),
        ("resolution = 64", 'resolution: 64 where text in quotes is due; write "64"'),
        ('lr_warmup_steps = "5%"', 'lr_warmup_steps: "5%" where a number is due'),
        ('mixed_precision = "bf61"', 'mixed_precision: "bf61" is none of no, fp16, bf16; did you mean bf16?'),
        ("max_token_length = 75", "max_token_length: 75 is none of 150, 225"),
        ('network_args = "conv_dim=8"', 'network_args: "conv_dim=8" where a list is due; write ["conv_dim=8"]'),
        ("network_args = [8]", 'network_args: 8 where text in quotes is due; write "8"'),
        ('text_encoder_lr = ["5e-5"]', 'text_encoder_lr: "5e-5" where a number is due; write 5e-5 without quotes'),
        ("seed = 2024-01-01", "seed: 2024-01-01 where a whole number is due"),
    ],
)
def test_one_wrong_line(config: Path, line: str, problem: str) -> None:
    assert verify(config, f"# a comment\n\n[train]\n{line}\n") == [f"config.toml:4 [train] {problem}"]


def test_every_problem_is_reported_with_its_line(config: Path) -> None:
    found = verify(config, 'rnak = 1\n[a]\ncache_latents = "true"\n\n[b]\nunet_lrr = 1\n')
    assert [line.partition(": ")[0] for line in found] == [
        "config.toml:1 rnak",
        "config.toml:3 [a] cache_latents",
        "config.toml:6 [b] unet_lrr",
    ]


def test_the_option_must_exist_for_that_very_script(config: Path) -> None:
    text = "[x]\nstop_text_encoder_training = -1\n"
    assert verify(config, text, "train_db") == []
    assert "it exists only in train_db" in verify(config, text, "sdxl_train_network")[0]


def test_a_later_section_that_overrides_an_earlier_one(config: Path) -> None:
    found = verify(config, "seed = 1\n[a]\nseed = 2\n[b]\nseed = 3\n")
    assert found == [
        "config.toml:3 [a] seed is given twice and this one wins; see config.toml:1",
        "config.toml:5 [b] seed is given twice and this one wins; see config.toml:1",
    ]


def test_two_level_tables_are_dropped_by_the_engine(config: Path) -> None:
    found = verify(config, "[train.optimizer]\nlearning_rate = 1e-4\n")
    assert found == [
        "config.toml:1 [train] optimizer: tables within tables are dropped; give options in a table of one level"
    ]


def test_byte_order_mark(config: Path) -> None:
    found = verify(config, "\ufeffseed = 1\nsed = 2\n")
    assert found[0] == (
        "config.toml:1 starts with a byte order mark, which loses the first key; save it as UTF-8 without BOM"
    )
    assert found[1] == "config.toml:2 sed: no such option of train_network; did you mean seed?"


def test_other_encodings(config: Path) -> None:
    config.write_bytes("seed = 1\nmetadata_title = 'Held'\nmetadata_author = 'Jürgen'\n".encode("latin-1"))
    assert [str(problem) for problem in verify_config(config, "train_network")] == [
        f"{config}:3 is not UTF-8; save it as UTF-8 without BOM"
    ]


def test_no_toml_at_all(config: Path) -> None:
    assert "is not valid TOML" in verify(config, "seed = \n")[0]
    assert "is not valid TOML" in verify(config, "\x00\x01")[0]
    assert verify(config, "") == []


def test_toml_that_only_the_engine_cannot_read(config: Path) -> None:
    found = verify(config, "seed = 1\ntext_encoder_lr = [1, 0.5]\n")
    assert "valid TOML that the engine's parser (toml 0.10.2) cannot read: Not a homogeneous array" in found[0]


def test_toml_that_the_engine_misreads(config: Path) -> None:
    found = verify(config, '[a]\nseed = 1\nmetadata_title = "\\"\\"x"\n')
    assert len(found) == 1
    assert found[0].startswith("config.toml:3 a.metadata_title is misread by the engine's parser (toml 0.10.2)")


def test_a_presets_kohya_table() -> None:
    found = check_kohya_table(
        {"min_snr_gamma": 5, "learning_ratee": 1e-4, "cache_latents": "true"},
        "sdxl_train_network",
        lambda key: f"hero.toml:{len(key)} [kohya]",
    )
    assert [str(problem) for problem in found] == [
        "hero.toml:14 [kohya] learning_ratee: no such option of sdxl_train_network; did you mean learning_rate?",
        'hero.toml:13 [kohya] cache_latents: "true" where true or false is due; write true without quotes',
    ]


def options_and_values(script: str) -> st.SearchStrategy[dict[str, object]]:
    by_type: dict[str, st.SearchStrategy[object]] = {
        "bool": st.booleans(),
        "int": st.integers(-9, 10**6),
        "float": st.floats(-1e6, 1e6) | st.integers(-9, 9),
        "int_or_float": st.floats(0, 1) | st.integers(0, 100),
        "str": st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    }

    def values(option: Option) -> st.SearchStrategy[object]:
        one = st.sampled_from(option.choices) if option.choices else by_type[option.type]
        if option.many and option.type == "float":
            one = st.floats(-1e6, 1e6)
        return st.lists(one, max_size=3) if option.many else one

    options = load_table().options_of(script)
    return st.lists(st.sampled_from(sorted(options)), unique=True, max_size=12).flatmap(
        lambda names: st.fixed_dictionaries({name: values(options[name]) for name in names})
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), script=st.sampled_from(sorted(COUNTS)))
def test_whatever_is_right_passes_and_one_wrong_key_is_found(config: Path, data: st.DataObject, script: str) -> None:
    given_options = data.draw(options_and_values(script))
    lines = [f"{format_key(name)} = {format_value(value)}" for name, value in given_options.items()]
    cut = data.draw(st.integers(0, len(lines)))
    good = [*lines[:cut], "[section]", *lines[cut:]]
    assert verify(config, "\n".join(good) + "\n", script) == []

    place = data.draw(st.integers(0, len(good)))
    wrong = data.draw(st.text("abcdefgh_", min_size=1, max_size=8).map(lambda text: f"{text}_q"))
    section = " [section]" if place > cut else ""
    found = verify(config, "\n".join([*good[:place], f"{wrong} = 1", *good[place:]]) + "\n", script)
    assert len(found) == 1
    assert found[0].startswith(f"config.toml:{place + 1}{section} {wrong}: no such option of {script}")


TOMLISH = st.text(st.sampled_from(list("abc=[]{}\"'#.,-_ \n\t\r\\1e0:\x00é")), max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TOMLISH.map(str.encode) | st.binary(max_size=60))
def test_no_content_makes_the_check_itself_fail(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    assert all(isinstance(problem, Problem) for problem in verify_config(config, "train_network"))
    assert verify_dataset_config(config)


def test_a_good_dataset_file_passes(config: Path) -> None:
    assert verify_dataset(config, DATASET) == []
    assert verify_dataset(config, DATASET.replace("[512, 512]", "512"), "train_db") == []
    assert (
        verify_dataset(
            config, DATASET + "alpha_mask = true\ncaption_dropout_rate = 0\nface_crop_aug_range = [1.0, 2.0]"
        )
        == []
    )


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        ("num_repeat = 1", "num_repeat: no such key of a dataset file; did you mean num_repeats?"),
        ('num_repeats = "10"', 'num_repeats: "10" where a whole number is due; write 10 without quotes'),
        ("batch_size = 1", "batch_size is not allowed here; it belongs in [general] or [[datasets]]"),
        ("face_crop_aug_range = [1, 2]", "face_crop_aug_range: 1 without a point is refused by the engine; write 1.0"),
        ("face_crop_aug_range = 1.0", "face_crop_aug_range: 1.0 where a list of two is due"),
        ('resize_interpolation = "nearst"', 'resize_interpolation: "nearst" is none of lanczos, nearest, bilinear,'),
    ],
)
def test_one_wrong_line_of_a_subset(config: Path, new: str, problem: str) -> None:
    found = verify_dataset(config, DATASET.replace("num_repeats = 10", new))
    assert any(line.startswith(f"dataset.toml:11 [[datasets.subsets]] {problem}") for line in found)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("batch_size = 2", "alpha_mask = true", "6 [[datasets]] alpha_mask is not allowed here; it belongs in"),
        ("batch_size = 2", "validation_split = 0", "6 [[datasets]] validation_split: 0 without a point is refused"),
        ("[512, 512]", "[512]", "5 [[datasets]] resolution: [512] where a list of two is due"),
        ("[512, 512]", "512.0", "5 [[datasets]] resolution: 512.0 where a whole number is due; write 512"),
        ('image_dir = "/sprites"\n', "", "9 [[datasets.subsets]] image_dir is missing"),
        ("[general]", "[genral]", "1 genral: no such table of a dataset file; did you mean general?"),
    ],
)
def test_one_wrong_line_of_a_dataset_file(config: Path, old: str, new: str, problem: str) -> None:
    found = verify_dataset(config, DATASET.replace(old, new))
    assert any(line.startswith(f"dataset.toml:{problem}") for line in found)


def test_a_dataset_file_without_data(config: Path) -> None:
    assert "with at least one entry" in verify_dataset(config, "")[0]
    assert "with at least one entry" in verify_dataset(config, "datasets = []")[0]
    assert "with at least one entry" in verify_dataset(config, "[[datasets]]\nresolution = 512\n")[0]
    assert "where a table is due" in verify_dataset(config, "datasets = [3]")[0]
    assert "where a table is due" in verify_dataset(config, "general = 3\n" + DATASET.partition("\n\n")[2])[0]


def test_dropout_needs_a_script_that_supports_it(config: Path) -> None:
    text = DATASET + "caption_dropout_rate = 0.1\n"
    assert verify_dataset(config, text) == []
    found = verify_dataset(config, text, "train_textual_inversion")
    assert found == [
        "dataset.toml:12 [[datasets.subsets]] caption_dropout_rate is not supported by train_textual_inversion"
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "sd-scripts"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("layout", ["detached", "branch", "packed", "submodule", "worktree"])
def test_the_commit_is_read_from_git(checkout: Path, layout: str) -> None:
    git = checkout / ".git"
    if layout == "submodule":
        git = checkout.parent / "modules" / "sd"
        (checkout / ".git").write_text("gitdir: ../modules/sd\n")
    elif layout == "worktree":
        git = checkout.parent / "main" / "worktrees" / "w"
        (checkout / ".git").write_text(f"gitdir: {git}\n")
    git.mkdir(parents=True)
    (git / "HEAD").write_text(f"{COMMIT}\n" if layout in {"detached", "submodule"} else "ref: refs/heads/main\n")
    if layout == "branch":
        (git / "refs" / "heads").mkdir(parents=True)
        (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    if layout == "packed":
        (git / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n{'0' * 40} refs/heads/other\n")
    if layout == "worktree":
        (git / "commondir").write_text("../..\n")
        (checkout.parent / "main" / "refs" / "heads").mkdir(parents=True)
        (checkout.parent / "main" / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert recognise_commit(checkout) == COMMIT


def test_a_checkout_without_git_is_known_by_its_files(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recognise_commit(checkout) is None
    assert "train_network.py" in list_changed_files(checkout)
    monkeypatch.setattr(module, "hash_source", lambda path: load_table().files[path.relative_to(checkout).as_posix()])
    for name in load_table().files:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).touch()
    assert list_changed_files(checkout) == []
    assert recognise_commit(checkout) == f"{COMMIT} (by its files)"
    (checkout / ".git").mkdir()
    assert recognise_commit(checkout) == f"{COMMIT} (by its files)"


def test_line_ends_do_not_change_a_files_hash(tmp_path: Path) -> None:
    (tmp_path / "unix").write_bytes(b"a\nb\n")
    (tmp_path / "windows").write_bytes(b"a\r\nb\r\n")
    assert hash_source(tmp_path / "unix") == hash_source(tmp_path / "windows")


def test_problems_read_as_one_line() -> None:
    problem = check_kohya_table({"rank": 4}, "train_network", lambda _: "hero.toml:3 [kohya]")[0]
    assert isinstance(problem, Problem)
    assert "\n" not in str(problem)
