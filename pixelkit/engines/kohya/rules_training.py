"""Rules on the length of the training, optimizer, schedule, loss, files and logs."""

from __future__ import annotations

import ast

from pixelkit.engines.kohya.effective import LORA, Effective, Rule

# train_util.py:5265; the names that transformers knows besides get arguments that they do not take
SCHEDULERS = frozenset(
    {
        "adafactor",
        "constant",
        "constant_with_warmup",
        "cosine",
        "cosine_with_min_lr",
        "cosine_with_restarts",
        "inverse_sqrt",
        "linear",
        "piecewise_constant",
        "polynomial",
        "warmup_stable_decay",
    }
)
EIGHT_BIT = frozenset({"adamw8bit", "sgdnesterov8bit", "lion8bit", "pagedadamw8bit", "pagedlion8bit"})
INTERVALS = ("save_every_n_steps", "save_every_n_epochs", "validate_every_n_steps", "validate_every_n_epochs")


def _find_optimizers(it: Effective) -> str:
    named = [f"optimizer_type = {it.get('optimizer_type')}"] if it.get("optimizer_type") else []
    given = [name for name in ("use_8bit_adam", "use_lion_optimizer") if it.get(name)] + named
    return " and ".join(given) if len(given) > 1 else ""


def _find_bad_arguments(it: Effective) -> str:
    """The first of optimizer_args and lr_scheduler_args that the engine cannot split, or whose value is no literal."""
    for text in [*(it.get("optimizer_args") or []), *(it.get("lr_scheduler_args") or [])]:
        if text.count("=") != 1:
            return str(text)
        try:
            ast.literal_eval(text.partition("=")[2])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return str(text)
    return ""


def _find_package(it: Effective) -> str:
    """The package of the chosen optimizer, if it is not installed."""
    name = it.optimizer
    if "." in name:
        package = it.get("optimizer_type").partition(".")[0]
    elif name.endswith("8bit") or name in {"pagedadamw", "pagedadamw32bit"}:
        package = "bitsandbytes"
    elif name.endswith("schedulefree"):
        package = "schedulefree"
    elif name.startswith("dadapt"):
        package = "dadaptation"
    else:
        package = {"lion": "lion_pytorch", "prodigy": "prodigyopt"}.get(name, "")
    return "" if not package or it.environment.has_module(package) else package


def _find_scheduler(it: Effective) -> str:
    if it.optimizer.endswith("schedulefree") or it.get("lr_scheduler_type"):
        return ""
    name = it.scheduler
    return "" if name.partition(":")[0] in SCHEDULERS else name


def _find_needless_warmup(it: Effective) -> str:
    if not it.get("lr_warmup_steps") or it.optimizer.endswith("schedulefree"):
        return ""
    if it.get("lr_scheduler_type"):
        return str(it.get("lr_scheduler_type"))
    return it.scheduler if it.scheduler.partition(":")[0] in {"constant", "adafactor"} else ""


def _is_stray_adafactor(it: Effective) -> bool:
    return str(it.get("lr_scheduler")).startswith("adafactor") and (
        it.optimizer != "adafactor" or it.pairs("optimizer_args").get("relative_step", "").strip() == "False"
    )


def _find_fraction(it: Effective) -> str:
    """A whole number of steps written as a float would be taken as that many times the training."""
    wrong = [
        f"{name} = {it.get(name)}"
        for name in ("lr_warmup_steps", "lr_decay_steps")
        if isinstance(it.get(name), float) and it.get(name) >= 1
    ]
    return ", ".join(wrong)


def _ends_text_encoder(it: Effective) -> bool:
    stop = it.get("stop_text_encoder_training")
    if stop is None or stop < 0:
        return False
    return it.get("max_train_epochs") is not None or stop < it.get("max_train_steps")


TRAINING_RULES = (
    Rule(
        name="output_missing",
        mirrors="train_network.py:1297",
        quote="os.makedirs(args.output_dir",
        broken=lambda it: not it.get("output_dir"),
        message="output_dir is missing: the training would crash after its last step, with nothing saved",
        hint="set output_dir",
    ),
    Rule(
        name="length_missing",
        mirrors="library/train_util.py:3952",
        quote='"--max_train_steps", type=int, default=1600',
        broken=lambda it: not it.is_given("max_train_steps") and not it.is_given("max_train_epochs"),
        message="neither steps nor epochs are set: sd-scripts would train 1600 steps",
        hint="set max_train_steps or max_train_epochs",
    ),
    Rule(
        name="length_given_twice",
        mirrors="train_network.py:799",
        quote="if args.max_train_epochs is not None",
        broken=lambda it: it.is_given("max_train_steps") and it.is_given("max_train_epochs"),
        message="max_train_epochs overrides max_train_steps",
        hint="keep one",
    ),
    Rule(
        name="length_reached",
        mirrors="train_network.py:1254",
        quote="args.max_train_steps > initial_step",
        scripts=LORA,
        broken=lambda it: (
            not it.is_given("max_train_epochs") and it.get("max_train_steps") <= (it.get("initial_step") or 0)
        ),
        message="max_train_steps must be more than initial_step",
        hint="raise max_train_steps",
    ),
    Rule(
        name="interval_zero",
        mirrors="train_network.py:1497",
        quote="global_step % args.save_every_n_steps == 0",
        broken=lambda it: ", ".join(name for name in INTERVALS if (number := it.get(name)) is not None and number < 1),
        message="{found} must be 1 or more: 0 is a division by zero in the middle of the training",
        hint="leave it out for never",
    ),
    Rule(
        name="text_encoder_stop",
        mirrors="train_db.py:346",
        quote="training_models = training_models[0]",
        scripts=frozenset({"train_db"}),
        broken=_ends_text_encoder,
        message="stop_text_encoder_training crashes train_db at that step",
        hint="-1 trains no text encoder; leave it out to train it throughout",
    ),
    Rule(
        name="optimizer_given_twice",
        mirrors="library/train_util.py:4831",
        quote="not args.use_lion_optimizer",
        broken=_find_optimizers,
        message="{found}: more than one optimizer",
        hint="keep optimizer_type",
    ),
    Rule(
        name="optimizer_unknown",
        mirrors="library/train_util.py:4890",
        quote='optimizer_type.endswith("8bit".lower())',
        broken=lambda it: (
            it.optimizer.endswith("8bit") and "." not in it.optimizer and it.optimizer not in EIGHT_BIT and it.optimizer
        ),
        message="optimizer_type: sd-scripts knows no 8-bit optimizer {found}",
        hint="use AdamW8bit, or name the class, as in bitsandbytes.optim.AdEMAMix8bit",
    ),
    Rule(
        name="optimizer_not_installed",
        mirrors="library/train_util.py:4892",
        quote="import bitsandbytes",
        broken=_find_package,
        message="the optimizer needs the package {found}, which is not installed",
        hint="install it, or use AdamW",
    ),
    Rule(
        name="arguments_form",
        mirrors="library/train_util.py:4860",
        quote='key, value = arg.split("=")',
        broken=_find_bad_arguments,
        message="optimizer_args and lr_scheduler_args take key=value with a Python value, and {found} is none",
        hint='as in ["weight_decay=0.01", "betas=(0.9, 0.99)"]',
    ),
    Rule(
        name="fused_optimizer",
        mirrors="library/train_util.py:4850",
        quote='optimizer_type == "Adafactor".lower()',
        broken=lambda it: it.get("fused_backward_pass") and it.optimizer != "adafactor",
        message="fused_backward_pass works only with Adafactor",
        hint='set optimizer_type = "Adafactor", or remove it',
    ),
    Rule(
        name="fused_accumulation",
        mirrors="library/train_util.py:4853",
        quote="args.gradient_accumulation_steps == 1",
        broken=lambda it: it.get("fused_backward_pass") and it.get("gradient_accumulation_steps") != 1,
        message="fused_backward_pass excludes gradient_accumulation_steps",
        hint="set gradient_accumulation_steps = 1, or remove fused_backward_pass",
    ),
    Rule(
        name="scheduler_unknown",
        mirrors="library/train_util.py:5326",
        quote="name = SchedulerType(name)",
        broken=_find_scheduler,
        message="lr_scheduler = {found} is none that sd-scripts can run",
        hint=f"there are {', '.join(sorted(SCHEDULERS))}",
    ),
    Rule(
        name="warmup_needless",
        mirrors="library/train_util.py:5295",
        quote="num_warmup_steps is not None and num_warmup_steps != 0",
        broken=_find_needless_warmup,
        message="the {found} schedule takes no warm-up",
        hint='set lr_warmup_steps = 0, or lr_scheduler = "constant_with_warmup"',
    ),
    Rule(
        name="warmup_fraction",
        mirrors="library/train_util.py:5276",
        quote="isinstance(args.lr_warmup_steps, float)",
        broken=_find_fraction,
        message="{found}: a number with a point is a share of the training",
        hint="write steps without a point, a share below 1",
    ),
    Rule(
        name="adafactor_schedule",
        mirrors="library/train_util.py:5315",
        quote="type(optimizer) == transformers.optimization.Adafactor",
        broken=_is_stray_adafactor,
        message='lr_scheduler = "adafactor" goes only with the Adafactor optimizer and its relative_step',
        hint='use "constant_with_warmup"',
    ),
    Rule(
        name="min_lr_missing",
        mirrors="library/train_util.py:5366",
        quote="min_lr_rate=min_lr_ratio",
        broken=lambda it: (
            it.scheduler == "cosine_with_min_lr"
            and it.get("lr_scheduler_min_lr_ratio") is None
            and "min_lr" not in it.pairs("lr_scheduler_args")
        ),
        message="cosine_with_min_lr needs lr_scheduler_min_lr_ratio",
        hint="set it, for instance to 0.1",
    ),
    Rule(
        name="adaptive_noise",
        mirrors="library/train_util.py:4443",
        quote="args.adaptive_noise_scale is not None and args.noise_offset is None",
        broken=lambda it: it.get("adaptive_noise_scale") is not None and it.get("noise_offset") is None,
        message="adaptive_noise_scale needs noise_offset",
        hint="set noise_offset, or remove it",
    ),
    Rule(
        name="v_loss_scale",
        mirrors="library/train_util.py:4446",
        quote="args.scale_v_pred_loss_like_noise_pred and not args.v_parameterization",
        broken=lambda it: it.get("scale_v_pred_loss_like_noise_pred") and not it.get("v_parameterization"),
        message="scale_v_pred_loss_like_noise_pred is only for bases with v_parameterization",
        hint="remove it",
    ),
    Rule(
        name="v_like_loss",
        mirrors="library/train_util.py:4451",
        quote="args.v_pred_like_loss and args.v_parameterization",
        broken=lambda it: it.get("v_pred_like_loss") and it.get("v_parameterization"),
        message="v_pred_like_loss excludes v_parameterization",
        hint="remove v_pred_like_loss",
    ),
    Rule(
        name="zero_terminal_snr",
        mirrors="library/train_util.py:4456",
        quote="args.zero_terminal_snr and not args.v_parameterization",
        broken=lambda it: it.get("zero_terminal_snr") and not it.get("v_parameterization"),
        message="zero_terminal_snr without v_parameterization trains to something unexpected",
        hint="use it only with bases that predict v",
    ),
    Rule(
        name="log_folder_missing",
        mirrors="library/train_util.py:5451",
        quote="if logging_dir is None",
        broken=lambda it: it.get("log_with") in {"tensorboard", "all"} and not it.get("logging_dir"),
        message="log_with needs logging_dir",
        hint="set logging_dir",
    ),
    Rule(
        name="tensorboard_not_installed",
        mirrors="library/train_util.py:5445",
        quote='log_with = "tensorboard"',
        broken=lambda it: (
            (it.get("log_with") in {"tensorboard", "all"} or (it.get("logging_dir") and not it.get("log_with")))
            and not it.environment.has_module("tensorboard")
            and not it.environment.has_module("tensorboardX")
        ),
        message="tensorboard is not installed, so nothing would be logged",
        hint="install it, or remove logging_dir",
    ),
    Rule(
        name="wandb_not_installed",
        mirrors="library/train_util.py:5457",
        quote="import wandb",
        broken=lambda it: it.get("log_with") in {"wandb", "all"} and not it.environment.has_module("wandb"),
        message="wandb is not installed",
        hint='install it, or use log_with = "tensorboard"',
    ),
    Rule(
        name="deepspeed_not_installed",
        mirrors="library/deepspeed_utils.py:77",
        quote="import deepspeed",
        broken=lambda it: it.get("deepspeed") and not it.environment.has_module("deepspeed"),
        message="deepspeed is not installed",
        hint="install it, or remove deepspeed",
    ),
)
