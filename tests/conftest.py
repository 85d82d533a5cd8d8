"""Every test sees eight CPU devices, no hub, and the package's assets only through the fixtures below."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# Nearly all of the time goes into compiling; what is asserted to the last bit is compared with what is compiled alike.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest

gc.set_threshold(100_000, 50, 20)  # tracing allocates much that no cycle holds; a seventh of all time went into looking


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real MiniLM checkpoint as a Hugging Face folder; skips where no package index answers."""
    from jaxptft.data.assets import AssetUnavailable, minilm_folder

    try:
        return minilm_folder()
    except AssetUnavailable as error:
        pytest.skip(f"MiniLM is not at hand: {error}")
