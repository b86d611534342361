"""Device, precision, threads and memory of the agent's arithmetic."""

import os

import torch

from atari_dqn.agent.weights import Precision
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.system.linux import libc
from atari_dqn.system.machine import available_memory, usable_cores


def resolve_device(requested: str) -> torch.device:
    """The device; `auto` is cuda if there is one. Raises `ConfigError` if cuda or mps is requested and absent.

    mps, an Apple GPU, has only networks: torch has no float64 there, which the sum tree needs, and its fused Adam does
    not skip a step whose gradient is not finite.
    """
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if absent.get(requested):
        raise ConfigError(f"--device is {requested}, but torch finds no usable GPU; try cpu or auto")
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(requested)


def resolve_precision(requested: str, device: torch.device, deterministic: bool) -> Precision:
    """The precision; `auto` is bf16 if the hardware multiplies it natively and the run need not be deterministic.

    Native are CPUs with AVX512-BF16 or AMX, and GPUs since Ampere.
    """
    if requested == "bf16":
        return "bf16"
    if requested == "fp32" or deterministic:
        return "fp32"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them to the kernel.

    Every update frees and allocates activations of a few megabytes; by default each allocation costs newly zeroed
    pages. This affects the whole process, may be repeated, and does nothing without glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    if mallopt := libc("mallopt"):
        mallopt(m_mmap_threshold, 1 << 25)  # the largest value allowed
        mallopt(m_trim_threshold, 1 << 30)


def threads_asked(config: TrainConfig) -> int:
    """Number of torch threads by `--torch-threads` or else the environment's `OMP_NUM_THREADS`; 0 without either.

    Five digits and more are ignored, as OpenMP ignores numbers that it cannot use.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return config.run.torch_threads or (int(asked) if asked.isdecimal() and len(asked) < 5 else 0)


def threads_by_default(kind: str) -> int:
    """Number of torch threads for a network on observations of a `kind`: those of an MLP would only wait."""
    return usable_cores() if kind == "pixels" else 1


def set_up_torch(config: TrainConfig, kind: str = "pixels", before: int | None = None) -> int:
    """Configure torch as the settings say. Returns the number of threads of its arithmetic.

    `kind` is that of the observations; `before` is the number of threads of the run so far, which a deterministic one
    keeps.
    """
    threads = threads_asked(config) or (config.run.deterministic and before) or threads_by_default(kind)
    # Adam's moments of a weight without gradient shrink until they are denormal and stay so; on a CPU a step over them
    # takes ten times as long. Set before torch makes its threads, which inherit it.
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    # By default torch rounds the fp32 of a GPU's convolutions to TF32, with 10 bits.
    torch.backends.cudnn.allow_tf32 = not config.run.deterministic and config.learner.precision != "fp32"
    # On a GPU some sums (the tree's cumsum) have no deterministic version, so torch warns there instead of raising.
    torch.use_deterministic_algorithms(config.run.deterministic, warn_only=torch.cuda.is_available())
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        # It only guards against reading uninitialised memory, and costs filling every new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return threads


def check_memory(config: TrainConfig, replay_bytes: int) -> None:
    """Raise `ConfigError`, with figures, if the replay needs more memory than its device has free."""
    device = resolve_device(config.run.device)
    on_gpu = device.type == "cuda"
    available = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
    if replay_bytes > available:
        fits = config.replay.replay_capacity * available // replay_bytes
        raise ConfigError(
            f"--replay-capacity {config.replay.replay_capacity} needs {replay_bytes / 1e9:.1f} GB and"
            f" {'the GPU' if on_gpu else 'this machine'} has {available / 1e9:.1f} GB free; try"
            f" {2 ** max(1, fits.bit_length() - 1)}"
        )
