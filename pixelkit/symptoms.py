"""What the words of a failing trainer mean and what to change, as tables; diagnosis.py reads them.

The first rule of a table that fits wins, so causes that speak through others' errors (disk, memory) stand above.
`why` and `do` may name groups of `pattern`, {file} and {module}, and {advice} on the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULES: Final[Mapping[str, str]] = {
    "bitsandbytes": 'train.optimizer = "adamw" does without it; or `pip install bitsandbytes`',
    "xformers": "[kohya] xformers = false and sdpa = true do without it; or `pip install xformers` (x86-64)",
    "lycoris": "plain LoRA (no network_module in [kohya]) does without it; or `pip install lycoris_lora`",
    "wandb": "remove log_with from [kohya] (pixelkit writes metrics.jsonl anyway); or `pip install wandb`",
    "tensorboard": "remove log_with from [kohya] (pixelkit writes metrics.jsonl anyway); or `pip install tensorboard`",
    "triton": "[kohya] torch_compile = false does without it; or `pip install triton` (Linux)",
    "library": "the folder of sd-scripts is incomplete or of another version: see `pixelkit doctor`",
    "networks": "the folder of sd-scripts is incomplete or of another version: see `pixelkit doctor`",
}
INSTALL: Final = "install what training needs: `pip install 'pixelkit[train]'`, then see `pixelkit doctor`"
_LESS_MEMORY: Final = (
    "lower train.batch_size (train.gradient_accumulation keeps the effective batch), set "
    'train.gradient_checkpointing = true, train.optimizer = "adamw8bit", '
    "a lower dataset.resolution or network.rank; close what else uses the GPU"
)
LESS_MAIN_MEMORY: Final = (
    "lower train.batch_size, set train.gradient_checkpointing = true and train.precision, choose a smaller base, "
    "set [kohya] max_data_loader_n_workers = 0; close other programs"
)

MACHINE_FULL: Final = "GPU and processor share this machine's memory, and a machine without any left hangs"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Text that means something; `kind` is the Diagnosis's."""

    kind: str
    pattern: str
    why: str
    do: str


ERRORS: Final[tuple[Rule, ...]] = (
    Rule(
        kind="disk",
        pattern=r"No space left on device|Errno 28\b|Disk quota exceeded|not enough space on the disk|StorageFull"
        r"|PytorchStreamWriter failed|basic_ios::clear: iostream error",
        why="the disk is full",
        do="free space (`pixelkit runs list` shows what old runs hold), keep fewer checkpoints "
        "(train.save_every_steps), or put the runs on another disk with --runs DIR",
    ),
    Rule(
        kind="shared-memory",
        pattern=r"killed by signal: Bus error|insufficient shared memory"
        r"|unable to (?:open|mmap|write to) .*shared memory",
        why="the helper processes that load images ran out of shared memory (/dev/shm, small in containers)",
        do="set [kohya] max_data_loader_n_workers = 0, or start the container with --shm-size=8g",
    ),
    Rule(
        kind="oom",
        pattern=r"(?:CUDA|HIP|XPU) out of memory|OutOfMemoryError|CUDA error: out of memory|cudaErrorMemoryAllocation"
        r"|CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)",
        why="the GPU's memory is full",
        do=_LESS_MEMORY,
    ),
    Rule(kind="oom", pattern=r"MPS backend out of memory", why="the memory for graphics is full", do=_LESS_MEMORY),
    Rule(
        kind="oom",
        pattern=r"DefaultCPUAllocator|\bMemoryError\b|Cannot allocate memory|std::bad_alloc|paging file is too small"
        r"|Unable to allocate [\d.]+ [KMGT]iB|killed by signal: Killed",
        why="the machine's main memory is full",
        do=LESS_MAIN_MEMORY,
    ),
    Rule(
        kind="nonfinite",
        pattern=r"NaN detected in latents: (?P<file>.+)",
        why="the VAE made no numbers of {file}: SDXL's VAE overflows in fp16, or the image is broken",
        do='set [kohya] no_half_vae = true (or train.precision = "bf16"), and delete the cached .npz files',
    ),
    Rule(
        kind="nonfinite",
        pattern=r"NaN detected|Non-finite|loss is nan|Function '\w+' returned nan values",
        why="the training left the range of numbers",
        do='lower train.learning_rate, or set train.precision = "bf16" or "no"',
    ),
    Rule(
        kind="gpu-crash",
        pattern=r"illegal memory access|device-side assert|unspecified launch failure|CUDNN_STATUS_EXECUTION_FAILED"
        r"|GPU is lost|CUBLAS_STATUS_EXECUTION_FAILED|uncorrectable ECC|hipErrorIllegalAddress|misaligned address",
        why="the GPU's program crashed: mostly a fault of driver, PyTorch or an overclocked card, not of the preset",
        do="start again from the last state; if it comes back: update the driver, set [kohya] xformers = false and "
        "sdpa = true, CUDA_LAUNCH_BLOCKING=1 names the true line",
    ),
    Rule(
        kind="gpu-unsupported",
        pattern=r"no kernel image is available|is not compatible with the current PyTorch"
        r"|driver version is insufficient"
        r"|NVIDIA driver on your system is too old|HIP error: invalid device function"
        r"|PTX was compiled with an unsupported",
        why="this PyTorch was not built for this GPU, or the driver is too old for it",
        do="update the driver, or install the PyTorch build for this GPU (pytorch.org/get-started); "
        "see `pixelkit doctor`",
    ),
    Rule(
        kind="no-gpu",
        pattern=r"Found no NVIDIA driver|No CUDA GPUs are available|not compiled with CUDA enabled"
        r"|no CUDA-capable device"
        r"|all CUDA-capable devices are busy",
        why="the trainer was to use a GPU that PyTorch does not see",
        do="see `pixelkit doctor`; --hardware cpu trains without a GPU",
    ),
    Rule(
        kind="precision",
        pattern=r"(?:doesn't|does not) support bf16|bf16 mixed precision requires|bfloat16 is not supported"
        r"|does not support bfloat16|fp16 mixed precision requires|Attempting to unscale FP16"
        r"|\"\w+\" not implemented for 'Half'"
        r"|expected scalar type (?:Half|Float|BFloat16)|should be the same|must have the same dtype",
        why="numbers of different precision met, or this machine lacks the chosen one",
        do='set train.precision to another of "bf16", "fp16", "no", and remove full_fp16, full_bf16 '
        "or fp8_base from [kohya]",
    ),
    Rule(
        kind="module",
        pattern=r"No module named '(?P<module>[\w-]+)|^ImportError: No (?P<also>\w+) /"
        r"|(?P<bnb>bitsandbytes) .*(?:setup|library)",
        why="the Python package {module} is missing or broken",
        do="{advice}",
    ),
    Rule(
        kind="environment",
        pattern=r"cannot open shared object file|undefined symbol|DLL load failed|numpy\.dtype size changed"
        r"|operator torchvision::\w+ does not exist|using NumPy 1\.x cannot be run"
        r"|cannot import name|Failed to find C compiler",
        why="the installed packages do not fit one another",
        do=INSTALL,
    ),
    Rule(
        kind="access",
        pattern=r"GatedRepoError|Cannot access gated repo|401 Client Error|403 Client Error|awaiting a review",
        why="the model's page wants you to accept its licence first, and a login",
        do="accept the licence on the model's page, then `huggingface-cli login`; "
        "or download the file and name it in base",
    ),
    Rule(
        kind="offline",
        pattern=r"couldn't connect to|LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled"
        r"|Max retries exceeded|NameResolutionError|name resolution|ReadTimeout|ConnectTimeout|ConnectionError\b"
        r"|Can't load (?:tokenizer|the configuration|image processor|the model) ",
        why="a model or tokenizer must be fetched from the Hugging Face hub, which cannot be reached",
        do="connect once, so that it is cached; or name local files in base and [kohya] tokenizer_cache_dir",
    ),
    Rule(
        kind="no-model",
        pattern=r"RepositoryNotFoundError|is not a (?:valid model identifier|local folder)|404 Client Error"
        r"|EntryNotFoundError",
        why="there is no such model on the Hugging Face hub, and no such folder",
        do="check base, and the paths in [kohya]",
    ),
    Rule(
        kind="broken-weights",
        pattern=r"SafetensorError|HeaderTooLarge|HeaderTooSmall|InvalidHeader|MetadataIncompleteBuffer|invalid load key"
        r"|PytorchStreamReader failed|UnpicklingError|Ran out of input|Weights only load failed"
        r"|Unable to load weights from checkpoint file",
        why="a model file is incomplete or no model file at all: often a download that broke off",
        do="download base (and any file named in [kohya]) again and compare its size or hash with the page's",
    ),
    Rule(
        kind="broken-image",
        pattern=r"cannot identify image file '?(?P<file>[^'\n]+)|image file is truncated|broken data stream|broken PNG"
        r"|DecompressionBomb|cannot decode image",
        why="an image of the data set cannot be read: {file}",
        do="mend or remove it; `pixelkit check` reads every image beforehand",
    ),
    Rule(
        kind="wrong-base",
        pattern=r"Error\(s\) in loading state_dict for (?P<model>\w+)|size mismatch for|Missing key\(s\) in state_dict"
        r"|mat1 and mat2 shapes cannot be multiplied"
        r"|KeyError: '(?:model\.diffusion_model|first_stage_model|conditioner)\.",
        why="the weights do not fit: base is of another kind than the preset says",
        do="set family to what base really is (sd15, sd2, sdxl, sd3, flux), or name another base",
    ),
    Rule(
        kind="port",
        pattern=r"Address already in use|EADDRINUSE|errno: 98\b|WinError 10048",
        why="the launcher's network port is taken, mostly by another training",
        do="wait for the other training, or start again: a free port is chosen",
    ),
    Rule(
        kind="permission",
        pattern=r"Permission denied|Errno 13\b|Errno 30\b|Read-only file system|Access is denied|WinError 5\b",
        why="a file or folder may not be read or written",
        do="mend its permissions, or put the runs elsewhere with --runs DIR",
    ),
    Rule(
        kind="too-many-files",
        pattern=r"Too many open files|Errno 24\b",
        why="the system's limit of open files is reached",
        do="`ulimit -n 65536` before starting, or [kohya] max_data_loader_n_workers = 0",
    ),
    Rule(
        kind="missing-file",
        pattern=r"No such file or directory: '?(?P<file>[^'\n]+)|FileNotFoundError: (?P<other>.+)",
        why="a file is missing: {file}",
        do="check base, dataset.path and the paths in [kohya]",
    ),
    Rule(
        kind="resume",
        pattern=r"max_train_steps should be greater than initial step",
        why="the state that it resumes from is already at the last step",
        do="raise train.steps or train.epochs, or do not resume",
    ),
    Rule(
        kind="timeout",
        pattern=r"[Tt]imed out|TimeoutError|operation timeout|Timeout\(",
        why="something that was waited for did not come: a slow disk or network, or a helper process that hangs",
        do="start again from the last state; with data on a network drive, copy it to a local disk; "
        "[kohya] max_data_loader_n_workers = 0 does without helper processes",
    ),
    Rule(
        kind="worker",
        pattern=r"DataLoader worker .*(?:exited unexpectedly|is killed by signal)",
        why="a helper process that loads images died, mostly for want of memory",
        do="set [kohya] max_data_loader_n_workers = 0; " + LESS_MAIN_MEMORY,
    ),
    Rule(kind="interrupted", pattern=r"^KeyboardInterrupt", why="the trainer was interrupted", do="start it again"),
)
"""Held against the last exception, then against those it came from."""

LINES: Final[tuple[Rule, ...]] = (
    Rule(
        kind="no-data",
        pattern=r"No data found\.|ignore subset with image_dir=.*no images?|not directory: (?P<file>.+)",
        why="not one image reached the trainer, which then ends as if all were well",
        do="check dataset.path, and that there are images in it",
    ),
    Rule(
        kind="arguments",
        pattern=r"error: (?:unrecognized arguments|argument |the following arguments are required|ambiguous option)",
        why="the script does not take an option that it was given",
        do="check [kohya] and your own templates; `pixelkit doctor` tells whether sd-scripts is at the pinned commit",
    ),
    *(
        rule
        for rule in ERRORS
        if rule.kind in {"disk", "oom", "gpu-crash", "gpu-unsupported", "environment", "broken-weights"}
    ),
)
"""Held against the end of the log where no exception stands in it."""

SIGNALS: Final[Mapping[int, tuple[str, str, str]]] = {
    1: ("killed", "SIGHUP: its terminal was closed", "start it in tmux or screen, or with nohup"),
    2: ("interrupted", "SIGINT: somebody interrupted it", "start it again, or resume"),
    4: ("crash", "SIGILL: this processor lacks instructions that a package uses", INSTALL),
    6: ("crash", "SIGABRT: a library gave up", "the lines above tell why; " + INSTALL),
    7: ("shared-memory", "SIGBUS: shared memory (/dev/shm) or a disk is full", "[kohya] max_data_loader_n_workers = 0"),
    9: (
        "killed",
        "SIGKILL: the system or somebody killed it, the system mostly for want of memory{held}",
        LESS_MAIN_MEMORY,
    ),
    11: (
        "crash",
        "SIGSEGV: a library crashed, not Python: mostly packages that do not fit one another, or a GPU driver",
        INSTALL,
    ),
    15: ("killed", "SIGTERM: somebody ended it (a service manager, a job scheduler, a shutdown)", "resume it"),
    24: ("killed", "SIGXCPU: a limit on processor time is reached (ulimit -t, a job scheduler)", "raise the limit"),
}
"""By number: kind, why, what to do; {held} is the memory it held, where that is known."""
