"""Real images that reach a machine inside a package."""

from pathlib import Path

from jaxptft.data.assets import Asset, fetch

FASHION_MNIST = Asset(
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    archive="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    folder="usr/share/datasets/fashion-mnist/",
    suffixes=("-ubyte.gz",),
    index="apt",
)
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def fashion_folder() -> Path:
    """The folder with Fashion-MNIST's four IDX files.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747; MIT. Raises AssetUnavailable where no index answers.
    """
    return fetch(FASHION_MNIST)
