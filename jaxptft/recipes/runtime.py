"""Settings of JAX itself that every recipe wants."""

import os


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles in the user's cache folder, so that the second run starts at once.

    JAX_COMPILATION_CACHE_DIR, where set, decides instead; JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax

    from jaxptft.data import cache_folder

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
