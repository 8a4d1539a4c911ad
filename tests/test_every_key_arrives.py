"""Every key of a preset, set to something else than its default: where it stands in the files that the trainer reads.

A key that has no effect for a script is a warning; nothing is lost in silence.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import toml

from pixelkit.catalog import Base, list_bases, list_hardware
from pixelkit.engines.adapter import EngineData, Subset
from pixelkit.engines.diffusers import adapter as diffusers
from pixelkit.engines.kohya import adapter as kohya
from pixelkit.errors import PresetError
from pixelkit.hardware import Machine
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.plan.terms import KOHYA_TERMS
from pixelkit.preset import Preset
from pixelkit.preset_file import load_preset
from pixelkit.render import render
from pixelkit.rundir import RunDir
from pixelkit.sources import Sprite, Survey

if TYPE_CHECKING:
    from collections.abc import Mapping

MACHINE = Machine(kind="cuda", device="H100", memory_gib=80, available_gib=79, capability=(9, 0), cores=8)
SCRIPTS = {  # script: (base, method)
    "train_network": ("sd15", "lora"),
    "sdxl_train_network": ("sdxl", "lora"),
    "flux_train_network": ("flux-dev", "lora"),
    "sd3_train_network": ("sd35", "lora"),
    "train_db": ("sd15", "dreambooth"),
    "sdxl_train": ("sdxl", "dreambooth"),
    "sd3_train": ("sd35", "finetune"),
    "flux_train": ("flux-dev", "finetune"),
    "train_textual_inversion": ("sd15", "textual-inversion"),
    "sdxl_train_textual_inversion": ("sdxl", "textual-inversion"),
}
LORA = frozenset(script for script, (_, method) in SCRIPTS.items() if method == "lora")
WORD = frozenset(script for script, (_, method) in SCRIPTS.items() if method == "textual-inversion")
WHOLE = SCRIPTS.keys() - LORA  # no network
FLOW = frozenset(script for script, (base, _) in SCRIPTS.items() if base in {"flux-dev", "sd35"})
FLUX = frozenset(script for script, (base, _) in SCRIPTS.items() if base == "flux-dev")
NO_TEXT = WORD | {"flux_train"}
UNWEIGHED = frozenset({"sdxl_train", "sd3_train", "flux_train"})
CLIP = frozenset({"train_network", "train_db", "train_textual_inversion"})
NONE: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """`value` in TOML; `lands`: file and key of kohya's files -> value; `diffusers`: the same in config.toml of that engine.

    `idle`: the scripts where it has no effect; `refused`: those where it cannot be. `also`: what it needs beside it to matter.
    """

    value: str
    lands: Mapping[str, object]
    diffusers: Mapping[str, object] = dataclasses.field(default_factory=dict)
    idle: frozenset[str] | set[str] = NONE
    refused: frozenset[str] = NONE
    also: str = ""


TE = "train.text_encoder = true\n"
KEYS: dict[str, Key] = {
    "name": Key(value='"other"', lands={"config output_name": "other"}, diffusers={"output_name": "other"}),
    "dataset.path": Key(value='"elsewhere"', lands={"plan dataset.source": Path("elsewhere")}),
    "dataset.trigger": Key(value='"pix, el"', lands={"plan caption": "pix, el, a sword", "config metadata_tags": "pix, el"},
                           refused=WORD,
                           diffusers={"metadata modelspec.trigger_phrase": "pix, el"}),
    "dataset.caption": Key(value='"a {name}!"', lands={"plan bare": "a bow!"}),
    "dataset.background": Key(value='"#102030"', lands={"plan dataset.background": "#102030"}),
    "dataset.alpha": Key(value='"mask"', lands={"plan dataset.alpha": "mask", "subset alpha_mask": True}),
    "dataset.resolution": Key(value="1024", lands={"config resolution": "1024,1024", "dataset resolution": [1024, 1024]}),
    "dataset.scale": Key(value="4", lands={"plan scale": 4}),
    "dataset.repeats": Key(value="3", lands={"subset num_repeats": 3}, diffusers={"dataset repeats": [3]}),
    "dataset.class_path": Key(value='"c"', lands={"class image_dir": "/r/class", "class is_reg": True},
                              diffusers={"dataset class_images": "/r/class"}),
    "dataset.instance_prompt": Key(value='"sks dog"', lands={"plan caption": "sks dog", "plan bare": "sks dog"}),
    "dataset.class_prompt": Key(value='"dog"', lands={"plan class": "dog"}, also='dataset.class_path = "c"\n'),
    "dataset.prior_weight": Key(value="0.5", lands={"config prior_loss_weight": 0.5}, idle=UNWEIGHED,
                                diffusers={"train prior_loss_weight": 0.5}, also='dataset.class_path = "c"\n'),
    "network.rank": Key(value="7", lands={"config network_dim": 7}, diffusers={"network rank": 7}, idle=WHOLE),
    "network.alpha": Key(value="3.0", lands={"config network_alpha": 3.0}, diffusers={"network alpha": 3.0}, idle=WHOLE),
    "network.dropout": Key(value="0.2", lands={"config network_dropout": 0.2}, diffusers={"network dropout": 0.2}, idle=WHOLE),
    "network.conv_rank": Key(value="5", lands={"config network_args": ["conv_dim=5", "conv_alpha=5"]},
                             diffusers={"network conv_rank": 5, "network conv_alpha": 5.0}, idle=WHOLE | FLOW),
    "network.conv_alpha": Key(value="2.0", lands={"config network_args": ["conv_dim=5", "conv_alpha=2"]},
                              diffusers={"network conv_alpha": 2.0}, idle=WHOLE | FLOW, also="network.conv_rank = 5\n"),
    "network.kind": Key(value='"oft"', lands={"config network_module": "networks.oft"}, idle=WHOLE,
                        refused=frozenset({"sd3_train_network"})),
    "network.factor": Key(value="4", lands={"config network_args": ["algo=lokr", "preset=attn-mlp", "factor=4"]},
                          idle=WHOLE, refused=LORA & FLOW,
                          also='network.kind = "lokr"\n'),
    "network.unit": Key(value="2", lands={"config network_args": ["unit=2"]}, idle=WHOLE, refused=LORA & FLOW,
                        also='network.kind = "dylora"\n'),
    "embedding.vectors": Key(value="3", lands={"config num_vectors_per_token": 3}, idle=SCRIPTS.keys() - WORD),
    "embedding.start_word": Key(value='"bow"', lands={"config init_word": "bow"}, idle=SCRIPTS.keys() - WORD),
    "train.gpus": Key(value="2", lands={"processes": "num_processes: 2"}),
    "train.steps": Key(value="77", lands={"config max_train_steps": 77}, diffusers={"train steps": 77}),
    "train.epochs": Key(value="3", lands={"config max_train_steps": 36}, diffusers={"train steps": 36},
                        also="train.batch_size = 1\n"),
    "train.batch_size": Key(value="3", lands={"dataset batch_size": 3}, diffusers={"dataset batch_size": 3}),
    "train.gradient_accumulation": Key(value="2", lands={"config gradient_accumulation_steps": 2},
                                       diffusers={"train gradient_accumulation": 2}),
    "train.effective_batch": Key(value="6", lands={"dataset batch_size": 2, "config gradient_accumulation_steps": 3},
                                 diffusers={"dataset batch_size": 2, "train gradient_accumulation": 3},
                                 also="train.batch_size = 2\n"),
    "train.learning_rate": Key(value="3e-5", lands={"config learning_rate": 3e-5}, diffusers={"train learning_rate": 3e-5}),
    "train.text_encoder": Key(value="true", lands={"trained": True}, diffusers={"network train_text_encoder": True},
                              idle=NO_TEXT),
    "train.text_encoder_learning_rate": Key(value="7e-6", lands={"text encoder rate": 7e-6}, idle=NO_TEXT,
                                            diffusers={"train text_encoder_learning_rate": 7e-6}, also=TE),
    "train.optimizer": Key(value='"prodigy"', lands={"config optimizer_type": "Prodigy"}),
    "train.scheduler": Key(value='"linear"', lands={"config lr_scheduler": "linear"}, diffusers={"train scheduler": "linear"}),
    "train.warmup_steps": Key(value="9", lands={"config lr_warmup_steps": 9}, diffusers={"train warmup_steps": 9}),
    "train.max_grad_norm": Key(value="0.7", lands={"config max_grad_norm": 0.7}, diffusers={"train max_grad_norm": 0.7}),
    "train.min_snr_gamma": Key(value="3.0", lands={"config min_snr_gamma": 3.0}, diffusers={"train min_snr_gamma": 3.0},
                               idle=FLOW),
    "train.noise_offset": Key(value="0.05", lands={"config noise_offset": 0.05}, diffusers={"train noise_offset": 0.05},
                              idle=FLOW),
    "train.caption_dropout": Key(value="0.1", lands={"subset caption_dropout_rate": 0.1},
                                 diffusers={"dataset caption_dropout": 0.1}, idle=WORD),
    "train.shuffle_caption": Key(value="true", lands={"general shuffle_caption": True, "general keep_tokens": 1},
                                 also='dataset.trigger = "pix"\n'),
    "train.gradient_checkpointing": Key(value="true", lands={"config gradient_checkpointing": True},
                                        diffusers={"train gradient_checkpointing": True}),
    "train.precision": Key(value='"fp16"', lands={"config mixed_precision": "fp16", "accelerate": "mixed_precision: 'fp16'"},
                           diffusers={"precision": "fp16"}),
    "train.seed": Key(value="5", lands={"config seed": 5}, diffusers={"seed": 5}),
    "train.save_every_steps": Key(value="11", lands={"config save_every_n_steps": 11}, diffusers={"train save_every_steps": 11}),
    "train.save_every_epochs": Key(value="2", lands={"config save_every_n_steps": 24}, diffusers={"train save_every_steps": 24},
                                   also="train.batch_size = 1\n"),
    "train.clip_skip": Key(value="2", lands={"config clip_skip": 2}, idle=SCRIPTS.keys() - CLIP),
    "sample.prompts": Key(value='["{trigger}, x"]', lands={"prompts prompt": "pix, x"}, diffusers={"sample prompts": ["pix, x"]},
                          also='dataset.trigger = "pix"\n'),
    "sample.negative": Key(value='"blur"', lands={"prompts negative_prompt": "blur"}, diffusers={"sample negative": "blur"},
                           idle=FLUX),
    "sample.every_steps": Key(value="13", lands={"config sample_every_n_steps": 13}, diffusers={"sample every_steps": 13}),
    "sample.every_epochs": Key(value="2", lands={"config sample_every_n_steps": 24}, diffusers={"sample every_steps": 24},
                               also="train.batch_size = 1\n"),
    "sample.steps": Key(value="17", lands={"prompts sample_steps": 17}, diffusers={"sample steps": 17}),
    "sample.guidance": Key(value="2.5", lands={"guidance": 2.5}, diffusers={"sample guidance": 2.5}),
    "sample.seed": Key(value="19", lands={"prompts seed": 19}, diffusers={"sample seed": 19}),
    "sample.sampler": Key(value='"dpm++"', lands={"prompts sample_sampler": "dpmsolver++"}, diffusers={"sample sampler": "dpm++"},
                          idle=FLOW),
    "sample.width": Key(value="256", lands={"prompts width": 256}, diffusers={"sample width": 256}),
    "sample.height": Key(value="320", lands={"prompts height": 320}, diffusers={"sample height": 320}),
    "export.title": Key(value='"T"', lands={"config metadata_title": "T"}, diffusers={"metadata modelspec.title": "T"}),
    "export.author": Key(value='"A"', lands={"config metadata_author": "A"}, diffusers={"metadata modelspec.author": "A"}),
    "export.license": Key(value='"L"', lands={"config metadata_license": "L"}, diffusers={"metadata modelspec.license": "L"}),
    "export.description": Key(value='"D"', lands={"config metadata_description": "D"},
                              diffusers={"metadata modelspec.description": "D"}),
}  # fmt: skip
# What no trainer reads: it chooses base, script and profile, shipping reads it (tests/test_ship.py), or a tracker
# (tests/test_track.py).
# What decides how the source is read stands in tests/test_survey.py and tests/test_grids.py.
ELSEWHERE = {
    "dataset.sheet",
    "dataset.grid",
    "dataset.repair",
    "network.start_from",
    "base_loras",
    "extends",
    "base",
    "family",
    "method",
    "engine",
    "hardware",
    "kohya",
    "export.formats",
    "export.strength",
    "track.tensorboard",
    "track.wandb",
    "track.wandb_mode",
}
REFUSED_BY_DIFFUSERS = {
    "dataset.alpha", "network.kind", "train.gpus", "train.optimizer", "train.shuffle_caption", "train.clip_skip",
}  # fmt: skip


def test_the_table_is_complete() -> None:
    names = set()
    for name, field in Preset.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        names |= {f"{name}.{key}" for key in inner} if inner else {name}
    assert KEYS.keys() | ELSEWHERE == names
    assert not KEYS.keys() & ELSEWHERE


@cache
def catalogue() -> tuple[Any, Any]:
    return list_bases(), list_hardware()


def make_plan(folder: Path, lines: str, *, base: str, method: str = "lora", engine: str = "kohya") -> Plan:
    """A plan of 11 captioned 32 px sprites and one without caption; class images where the preset names some."""
    given = {line.partition(" ")[0] for line in lines.splitlines()}
    defaults = {"name": '"p"', "base": f'"{base}"', "method": f'"{method}"', "dataset.path": '"s"'}
    defaults |= {"dataset.trigger": '"pixword"'} if method == "textual-inversion" else {}
    defaults |= {"sample.prompts": '["x"]'} if "sample.prompts" not in given else {}
    text = "".join(f"{key} = {value}\n" for key, value in defaults.items() if key not in given) + lines
    file = folder / "p.toml"
    file.write_text(text, "utf-8")
    loaded = absorb_kohya(load_preset(str(file)))
    bases, profiles = catalogue()
    spec = bases[base]
    found = Base(name=base, spec=spec, location="/m/base", local=True, files={key: f"/m/{key}" for key in spec.needs})
    sprites = [
        Sprite(path=Path(f"/s/orc{n}.png"), name=f"orc{n}", width=32, height=32, caption="a sword") for n in range(11)
    ]
    sprites.append(Sprite(path=Path("/s/bow.png"), name="bow", width=32, height=32, caption=None))
    return resolve(
        loaded,
        found,
        "cuda-80gb",
        profiles["cuda-80gb"],
        MACHINE,
        engine=engine,  # type: ignore[arg-type]
        survey=Survey(sprites=tuple(sprites)),
        class_survey=Survey(sprites=tuple(sprites[:3])) if loaded.preset.dataset.class_path else None,
    )


def rendered(plan: Plan, folder: Path) -> dict[str, Any]:
    """Everything that the trainer will read, by short names."""
    adapter = kohya if plan.engine == "kohya" else diffusers
    class_images = Path("/r/class") if plan.dataset.class_sprites else None
    data = EngineData(
        root=Path("/r"),
        images=(Subset(folder=Path("/r/images"), repeats=plan.dataset.sprites[0].repeats),),
        class_images=class_images,
        latents=Path("/l"),
        sd_scripts=Path("/sd"),
    )
    files = render(plan.engine, adapter.context(plan, RunDir(path=folder), data), folder).files
    assert not [problem for problem in adapter.verify(plan, files) if "not installed" not in problem.what]
    config = toml.load(files["config.toml"])
    if plan.engine == "diffusers":
        return config
    dataset = toml.load(files["dataset.toml"])
    subsets = dataset["datasets"][0]["subsets"]
    return {
        "config": {key: value for section in config.values() for key, value in section.items()},
        "general": dataset["general"],
        "dataset": dataset["datasets"][0],
        "subset": subsets[0],
        "class": subsets[1] if len(subsets) > 1 else {},
        "prompts": json.loads(files["prompts.json"].read_text("utf-8"))[0] if "prompts.json" in files else {},
        "accelerate": files["accelerate.yaml"].read_text("utf-8"),
    }


def look_up(place: str, plan: Plan, files: Mapping[str, Any], script: str) -> object:
    section, _, key = place.partition(" ")
    config = files["config"]
    if place == "trained":
        frozen = config.get("network_train_unet_only") or config.get("stop_text_encoder_training") == -1
        return bool(config.get("train_text_encoder")) if script == "sdxl_train" else not frozen
    if place == "text encoder rate":
        rates = [config[name] for name in config if name.startswith(("text_encoder_lr", "learning_rate_te"))]
        flat = {rate for item in rates for rate in (item if isinstance(item, list) else [item])}
        return flat.pop() if len(flat) == 1 else flat
    if place == "guidance":
        return files["prompts"].get("guidance_scale", files["prompts"]["scale"])
    if place in {"accelerate", "processes"}:
        start = {"accelerate": "mixed_precision", "processes": "num_processes"}[place]
        return next(line for line in files["accelerate"].splitlines() if line.startswith(start))
    if place == "config network_module":
        return str(config.get(key)).replace("_flux", "")
    if section == "plan":
        dataset = plan.dataset
        found = {
            "caption": dataset.sprites[0].caption,
            "bare": dataset.sprites[-1].caption,
            "scale": dataset.sprites[0].canvas.scale,
            "class": dataset.class_sprites[0].caption if dataset.class_sprites else None,
            "dataset.source": Path(dataset.source.name),
            "dataset.background": dataset.background,
            "dataset.alpha": dataset.alpha,
        }
        return found[key].removeprefix("pixword, ") if key == "bare" else found[key]
    return files[section].get(key)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", KEYS)
def test_kohya(tmp_path: Path, name: str, script: str) -> None:
    key = KEYS[name]
    base, method = SCRIPTS[script]
    if script in key.refused:
        with pytest.raises(PresetError):
            make_plan(tmp_path, f"{key.also}{name} = {key.value}\n", base=base, method=method)
        return
    plan = make_plan(tmp_path, f"{key.also}{name} = {key.value}\n", base=base, method=method)
    assert kohya.script_of(plan) == script
    files = rendered(plan, tmp_path)
    idle = any(f" {name.partition('.')[2]} has no effect" in warning for warning in plan.warnings)
    assert idle == (script in key.idle), plan.warnings
    if not idle:
        assert {place: look_up(place, plan, files, script) for place in key.lands} == key.lands


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.diffusers or name in REFUSED_BY_DIFFUSERS])
def test_diffusers(tmp_path: Path, name: str) -> None:
    key = KEYS[name]
    plan = make_plan(tmp_path, f"{key.also}{name} = {key.value}\n", base="tiny-sd", engine="diffusers")
    problems = [str(problem) for problem in diffusers.check(plan, None)]
    if name in REFUSED_BY_DIFFUSERS:
        assert any(f"{name} = " in problem and "p.toml:" in problem for problem in problems)
        return
    assert not problems
    files = rendered(plan, tmp_path)
    for place, expected in key.diffusers.items():
        section, _, inner = place.partition(" ")
        assert (files[section][inner] if inner else files[section]) == expected, place


@pytest.mark.parametrize("option", KOHYA_TERMS)
def test_kohyas_own_names_arrive_too(tmp_path: Path, option: str) -> None:
    table, key = KOHYA_TERMS[option]
    value = KEYS[f"{table}.{key}"].value
    also = "dataset.class_path = 'c'\n" if option == "prior_loss_weight" else ""
    said = make_plan(tmp_path, f"{also}kohya.{option} = {value}\n", base="sd15")
    meant = make_plan(tmp_path, f"{also}{table}.{key} = {value}\n", base="sd15")
    assert getattr(said, table) == getattr(meant, table)
    assert option not in said.kohya


class TestKohyaTable:
    """[kohya] beside what pixelkit itself sets."""

    def config(self, folder: Path, lines: str, base: str = "sdxl", method: str = "lora") -> dict[str, Any]:
        return rendered(make_plan(folder, lines, base=base, method=method), folder)["config"]  # type: ignore[no-any-return]

    def test_lists_of_arguments_add_to_pixelkits(self, tmp_path: Path) -> None:
        config = self.config(
            tmp_path,
            'train.optimizer = "adafactor"\nnetwork.conv_rank = 4\n'
            'kohya.optimizer_args = ["weight_decay=0.1"]\nkohya.network_args = ["conv_alpha=1"]\n',
        )
        assert (
            config["optimizer_args"][0] == "relative_step=False" and config["optimizer_args"][-1] == "weight_decay=0.1"
        )
        assert config["network_args"] == ["conv_dim=4", "conv_alpha=4", "conv_alpha=1"]  # the last one wins

    def test_another_optimizer_gets_no_arguments_of_the_profiles(self, tmp_path: Path) -> None:
        lines = 'train.optimizer = "adafactor"\nkohya.optimizer_type = "SGDNesterov"\nkohya.lr_scheduler = "constant"\n'
        plan = make_plan(tmp_path, lines, base="sdxl")
        assert (plan.train.optimizer, plan.train.scheduler, plan.train.warmup_steps) == ("SGDNesterov", "constant", 0)
        assert "kohya" in plan.sources["train.optimizer"]
        config = rendered(plan, tmp_path)["config"]
        assert "optimizer_args" not in config and config["lr_scheduler"] == "constant"

    def test_paths_start_from_the_preset(self, tmp_path: Path) -> None:
        (tmp_path / "vae.safetensors").touch()
        lines = 'kohya.vae = "vae.safetensors"\nkohya.logging_dir = "logs"\nkohya.network_weights = "not there"\n'
        plan = make_plan(tmp_path, lines, base="sdxl")
        assert plan.kohya["vae"] == str(tmp_path / "vae.safetensors")
        assert plan.kohya["logging_dir"] == str(tmp_path / "logs")
        assert plan.kohya["network_weights"] == "not there"

    @pytest.mark.parametrize("option", kohya.OWNED)
    def test_what_pixelkit_sets_itself_is_refused(self, tmp_path: Path, option: str) -> None:
        plan = make_plan(tmp_path, f"kohya.{option} = 1\n", base="sd15")
        assert [str(found) for found in kohya.check(plan, None) if f"p.toml:6 [kohya] {option}:" in str(found)]

    def test_what_no_toml_can_carry_is_told_with_its_line(self, tmp_path: Path) -> None:
        plan = make_plan(tmp_path, f"kohya.min_timestep = {10**20}\n", base="sd15")
        assert any("p.toml:6 [kohya] min_timestep: an integer" in str(found) for found in kohya.check(plan, None))

    def test_parts_of_the_trigger_stay_in_front(self, tmp_path: Path) -> None:
        lines = 'dataset.trigger = "pix, el,"\ntrain.shuffle_caption = true\n'
        assert rendered(make_plan(tmp_path, lines, base="sd15"), tmp_path)["general"]["keep_tokens"] == 2
        plan = make_plan(tmp_path, lines + "kohya.keep_tokens = 3\n", base="sd15")
        assert rendered(plan, tmp_path)["general"]["keep_tokens"] == 3

    def test_a_whole_models_text_encoder_follows_the_learning_rate(self, tmp_path: Path) -> None:
        config = self.config(tmp_path, "train.learning_rate = 2e-6\n", base="sd15", method="dreambooth")
        assert config["learning_rate_te"] == config["learning_rate"] == 2e-6
