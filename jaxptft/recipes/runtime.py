"""Settings of JAX itself, and of the process, that every recipe wants."""

import gc
import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
LARGE_PAGES = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        f"glibc.malloc.mmap_threshold={2**31}",
        f"glibc.malloc.trim_threshold={2**32}",
        "glibc.malloc.arena_max=1",  # in others no block above 64 MB is kept, and each holds what it once held
    )
)
"""What GLIBC_TUNABLES is for a command that trains on CPU."""
_ACCELERATORS = ("nvidiactl", "kfd", "accel0", "accel", "vfio")  # in /dev, of GPUs and TPUs


def take_large_pages() -> None:
    """Start this process anew with memory in large pages that is kept between steps, where that makes steps faster.

    That is on CPU under glibc: a sixth less time where each step is a dispatch of its own, a twelfth where several are
    one; and a fifth less memory, since all threads share one heap. Does nothing where an accelerator is in /dev, where
    GLIBC_TUNABLES is set, and under JAXPTFT_LARGE_PAGES=0.
    """
    if os.environ.get("JAXPTFT_LARGE_PAGES") == "0" or _TUNABLES in os.environ or not _has_glibc():
        return
    if any((Path("/dev") / name).exists() for name in _ACCELERATORS) or not sys.executable:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, {**os.environ, _TUNABLES: LARGE_PAGES})


def collect_seldom() -> None:
    """Let Python look for garbage in cycles less often: tracing and importing make many objects, and few cycles.

    A run of one step with a warm cache takes an eighth less CPU time.
    """
    gc.set_threshold(100_000, 50, 20)


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no such question on Windows, macOS, musl
        return False


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles in the user's cache folder, so that the second run starts at once.

    JAX_COMPILATION_CACHE_DIR, where set, decides instead; JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax

    from jaxptft.data import cache_folder

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
