"""What trainers say when they fail, as they say it, and what pixelkit makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pixelkit.diagnosis import Diagnosis, diagnose, read_errors, trainer_returncode
from pixelkit.symptoms import ERRORS, LINES, MODULES, SIGNALS


@dataclass(frozen=True, kw_only=True)
class Ended:
    returncode: int = 1
    reason: str = "ended"
    peak_memory: int = 0
    oom_killed: bool = False
    memory_note: str = ""


ACCELERATE = """Traceback (most recent call last):
  File "/usr/lib/python3.11/runpy.py", line 198, in _run_module_as_main
    return _run_code(code, main_globals, None,
  File "/site-packages/accelerate/commands/launch.py", line 794, in simple_launcher
    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)
subprocess.CalledProcessError: Command '['/bin/python', '-m', 'kohya.entry']' returned non-zero exit status 1.
"""


def traceback(*ends: str, joint: str = "During handling of the above exception, another exception occurred:") -> str:
    block = 'Traceback (most recent call last):\n  File "/engine/train_network.py", line 1, in <module>\n    x()\n'
    return f"\n\n{joint}\n\n".join(block + end for end in ends) + "\n"


def find(log: str, code: int = 1, *, launcher: bool = True) -> Diagnosis:
    return diagnose(Ended(returncode=code), "INFO loading\n" + log + (ACCELERATE if launcher else ""))


@pytest.mark.parametrize(
    ("kind", "said", "advice"),
    [
        (
            "oom",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has",
            "train.batch_size",
        ),
        ("oom", "torch.cuda.OutOfMemoryError: HIP out of memory. Tried to allocate", "gradient_checkpointing"),
        (
            "oom",
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "batch_size",
        ),
        ("oom", "RuntimeError: MPS backend out of memory (MPS allocated: 17.8 GB, other allocations:", "batch_size"),
        (
            "oom",
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
            "smaller base",
        ),
        ("oom", "MemoryError", "smaller base"),
        (
            "oom",
            "OSError: The paging file is too small for this operation to complete. (os error 1455)",
            "smaller base",
        ),
        ("oom", "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array", "smaller base"),
        (
            "oom",
            "RuntimeError: DataLoader worker (pid 4101) is killed by signal: Killed. ",
            "max_data_loader_n_workers",
        ),
        ("nonfinite", "RuntimeError: NaN detected in latents: /data/a.png", "no_half_vae"),
        ("module", "ModuleNotFoundError: No module named 'bitsandbytes'", 'train.optimizer = "adamw"'),
        (
            "module",
            "ImportError: No bitsandbytes / bitsandbytesがインストールされていないようです",
            "pip install bitsandbytes",
        ),
        ("module", "ImportError: No xformers / xformersがインストールされていないようです", "sdpa = true"),
        ("module", "ModuleNotFoundError: No module named 'lycoris.kohya'", "lycoris_lora"),
        ("module", "ModuleNotFoundError: No module named 'wandb'", "log_with"),
        ("module", "ModuleNotFoundError: No module named 'tensorboard'", "log_with"),
        ("module", "ModuleNotFoundError: No module named 'library'", "pixelkit doctor"),
        ("module", "ModuleNotFoundError: No module named 'nonesuch'", "pixelkit[train]"),
        (
            "offline",
            "OSError: We couldn't connect to 'https://huggingface.co', and couldn't find",
            "tokenizer_cache_dir",
        ),
        (
            "offline",
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find it, outgoing traffic has been disabled.",
            "local files",
        ),
        (
            "offline",
            "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api: offline",
            "local",
        ),
        (
            "offline",
            "OSError: Can't load tokenizer for 'openai/clip-vit-large-patch14'. If you were trying to load it from",
            "tokenizer_cache_dir",
        ),
        (
            "offline",
            "requests.exceptions.ConnectionError: HTTPSConnectionPool: Max retries exceeded with url: /",
            "connect",
        ),
        (
            "access",
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1)",
            "accept the licence",
        ),
        ("no-model", "OSError: nosuch/model is not a local folder and is not a valid model identifier", "check base"),
        ("disk", "OSError: [Errno 28] No space left on device: '/runs/a.safetensors'", "--runs"),
        (
            "disk",
            "safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull })",
            "--runs",
        ),
        ("disk", "RuntimeError: basic_ios::clear: iostream error", "free space"),
        (
            "disk",
            "RuntimeError: [enforce fail at inline_container.cc:626] . PytorchStreamWriter failed writing file",
            "free",
        ),
        ("permission", "PermissionError: [Errno 13] Permission denied: '/runs/x'", "permissions"),
        ("permission", "OSError: [Errno 30] Read-only file system: '/runs/x'", "--runs"),
        (
            "broken-weights",
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
            "again",
        ),
        (
            "broken-weights",
            "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
            "hash",
        ),
        ("broken-weights", "_pickle.UnpicklingError: invalid load key, '<'.", "download base"),
        ("broken-image", "PIL.UnidentifiedImageError: cannot identify image file '/data/knight.png'", "pixelkit check"),
        ("broken-image", "OSError: image file is truncated (2 bytes not processed)", "mend or remove"),
        (
            "gpu-unsupported",
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "driver",
        ),
        (
            "gpu-unsupported",
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update",
            "update the driver",
        ),
        (
            "no-gpu",
            "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
            "--hardware cpu",
        ),
        ("no-gpu", "AssertionError: Torch not compiled with CUDA enabled", "--hardware cpu"),
        ("gpu-crash", "torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "sdpa"),
        (
            "wrong-base",
            "RuntimeError: Error(s) in loading state_dict for UNet2DConditionModel:\n\tsize mismatch for conv_in",
            "family",
        ),
        ("wrong-base", "RuntimeError: mat1 and mat2 shapes cannot be multiplied (77x2048 and 768x320)", "family"),
        ("wrong-base", "KeyError: 'model.diffusion_model.time_embed.0.weight'", "family"),
        (
            "port",
            "RuntimeError: The server socket has failed to listen: port: 29500, errno: 98, name: EADDRINUSE",
            "other training",
        ),
        (
            "precision",
            "ValueError: bf16 mixed precision requires PyTorch >= 1.10 and a supported device.",
            "train.precision",
        ),
        ("precision", "ValueError: Attempting to unscale FP16 gradients.", "full_fp16"),
        (
            "environment",
            "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
            "pixelkit[train]",
        ),
        ("environment", "RuntimeError: operator torchvision::nms does not exist", "pixelkit doctor"),
        (
            "missing-file",
            "FileNotFoundError: [Errno 2] No such file or directory: '/models/base.safetensors'",
            "check base",
        ),
        (
            "shared-memory",
            "RuntimeError: DataLoader worker (pid 9) is killed by signal: Bus error. It is possible",
            "--shm-size",
        ),
        ("worker", "RuntimeError: DataLoader worker (pid(s) 91, 92) exited unexpectedly", "max_data_loader_n_workers"),
        ("too-many-files", "OSError: [Errno 24] Too many open files: '/data/x.png'", "ulimit"),
        ("timeout", "RuntimeError: DataLoader timed out after 60 seconds", "local disk"),
        (
            "resume",
            "AssertionError: max_train_steps should be greater than initial step / 最大学習ステップ数",
            "train.steps",
        ),
        ("interrupted", "KeyboardInterrupt", "again"),
    ],
)
def test_exceptions(kind: str, said: str, advice: str) -> None:
    found = find(traceback(said))
    assert found.kind == kind
    assert found.what == said.splitlines()[0].strip()
    assert advice in found.do
    assert found.why
    assert "{" not in found.why + found.do


@pytest.mark.parametrize(
    ("kind", "line", "code"),
    [
        (
            "no-data",
            "ERROR    No data found. Please verify arguments (train_data_dir must be    train_network.py:576",
            0,
        ),
        ("no-data", "WARNING  not directory: /data/sprites                                     train_util.py:1974", 0),
        ("arguments", "train_network.py: error: unrecognized arguments: --learning_ratee 1", 2),
        ("arguments", "train_network.py: error: argument --resolution: expected one argument", 2),
        ("oom", "terminate called after throwing an instance of 'c10::Error'  what():  CUDA error: out of memory", -6),
        ("disk", "OSError: [Errno 28] No space left on device", 1),
    ],
)
def test_lines(kind: str, line: str, code: int) -> None:
    found = find(f"INFO prepare\n{line}\nusage\n", code, launcher=False)
    assert found.kind == kind
    assert found.what == line.strip()


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (-9, "killed", "17.8 GiB"),
        (137, "killed", "SIGKILL"),
        (-15, "killed", "SIGTERM"),
        (-11, "crash", "SIGSEGV"),
        (-7, "shared-memory", "SIGBUS"),
        (-2, "interrupted", "SIGINT"),
        (-31, "killed", "signal"),
    ],
)
def test_signals(code: int, kind: str, word: str) -> None:
    found = diagnose(Ended(returncode=code, peak_memory=int(17.8 * 2**30)), "INFO fine\n")
    assert found.kind == kind
    assert word in found.why
    assert str(abs(code) % 128) in found.what


def test_a_kill_wins_over_an_old_traceback() -> None:
    assert diagnose(Ended(returncode=-9), traceback("ValueError: was handled")).kind == "killed"


@pytest.mark.parametrize("ended", [Ended(returncode=65), Ended(returncode=-15, reason="nonfinite")])
def test_nonfinite(ended: Ended) -> None:
    found = diagnose(ended, "")
    assert found.kind == "nonfinite"
    assert "train.learning_rate" in found.do


def test_killed_by_the_user() -> None:
    assert diagnose(Ended(returncode=-9, reason="killed"), "").what == "killed as you asked"


def test_the_real_error_stands_above_the_launchers() -> None:
    found = find(traceback("ValueError: rank must be even"))
    assert found.kind == "unknown"
    assert found.what == "ValueError: rank must be even"


def test_the_real_error_stands_below_what_it_came_from() -> None:
    found = find(traceback("KeyError: 'x'", "ValueError: nothing we know"))
    assert found.what == "ValueError: nothing we know"


@pytest.mark.parametrize(
    "joint",
    [
        "During handling of the above exception, another exception occurred:",
        "The above exception was the direct cause of the following exception:",
    ],
)
def test_a_known_cause_explains_an_unknown_error(joint: str) -> None:
    found = find(traceback("OSError: [Errno 28] No space left on device", "ValueError: cannot go on", joint=joint))
    assert found.kind == "disk"


def test_an_unrelated_traceback_explains_nothing() -> None:
    log = (
        traceback("ModuleNotFoundError: No module named 'triton'") + "WARNING no triton\n" + traceback("ValueError: x")
    )
    assert find(log).kind == "unknown"


def test_data_loader_workers() -> None:
    log = traceback(
        "RuntimeError: Caught UnidentifiedImageError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in _worker_loop\n    data = fetch()\n'
        "PIL.UnidentifiedImageError: cannot identify image file '/data/a b.png'"
    )
    found = find(log)
    assert found.kind == "broken-image"
    assert "/data/a b.png" in found.why


def test_ranks_and_indents() -> None:
    log = "\n".join(
        f"[rank0]: {line}" for line in traceback("torch.OutOfMemoryError: CUDA out of memory.").splitlines()
    )
    assert find(log + "\n").kind == "oom"


def test_bare_assertion_shows_the_line() -> None:
    found = find('Traceback (most recent call last):\n  File "a.py", line 3, in f\n    assert a == b\nAssertionError\n')
    assert found.what == "AssertionError: assert a == b"


@pytest.mark.parametrize(
    "log", ["", "\n\n", "Traceback (most recent call last):\n", "Traceback (most recent call last):"]
)
@pytest.mark.parametrize("code", [0, 1, 3, 200, -1, -200])
def test_little_to_go_by(log: str, code: int) -> None:
    found = diagnose(Ended(returncode=code), log)
    assert found.what
    assert found.do
    assert str(found)


def test_the_last_line_serves_where_nothing_else_does() -> None:
    assert "last words" in diagnose(Ended(returncode=3), "first\nlast words\n\n").what


def test_no_model_without_error() -> None:
    assert "left no model" in diagnose(Ended(returncode=0), "all well\n").what


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("Command '['python', '-m', 'x']' returned non-zero exit status 65.", 65),
        ("Command '['python', '-m', 'x']' died with <Signals.SIGKILL: 9>.", -9),
        ("Command '['python', '-m', 'x']' died with unknown signal 40.", None),
    ],
)
def test_the_trainers_own_code(end: str, code: int | None) -> None:
    assert trainer_returncode(f"INFO\nsubprocess.CalledProcessError: {end}\n") == code


def test_no_code_without_a_launcher() -> None:
    assert trainer_returncode(traceback("ValueError: x")) is None


def test_errors_of_a_cut_log() -> None:
    assert read_errors('  File "x.py", line 2\nValueError: x\n' + ACCELERATE) == []


def test_every_text_is_complete() -> None:
    for rule in (*ERRORS, *LINES):
        assert rule.why
        assert rule.do
    for _, why, do in SIGNALS.values():
        assert why
        assert do
    assert all(MODULES.values())
