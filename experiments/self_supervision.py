"""Every way of learning from images without labels, on digits or Fashion-MNIST: what can be read off the features.

Each objective pre-trains a small backbone on the training images, without their labels. Its frozen features are then
judged on the test images by a linear probe and by 20 nearest neighbours, beside those of the same backbone before it
learnt anything, and the pixels themselves. Three seeds. Runs that are done are not run again.

Command:  python experiments/self_supervision.py --data digits      (and --data fashion --steps 400)
Result:   linear probe .919 with SimCLR, .844 from a random backbone; fashion: .795 and .723; all others: README.md
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft.recipes import pretrain_images, probe
from jaxptft.recipes.pretrain_images import Code, Contrast, Masked, Shape, Views
from jaxptft.recipes.training_settings import Optimizer

SOURCES = {"digits": "sklearn:digits", "fashion": "apt:fashion-mnist"}
LONGER = {"mae": 4, "patch_position": 4}  # mae learns but the mean of each pixel in as many steps as the others


def settings(data: str) -> dict[str, dict[str, Any]]:
    """The values of each objective's run."""
    digits = data == "digits"
    # A mirrored digit is none; a mirrored shoe is a shoe.
    views = Views(smallest=0.5 if digits else 0.3, mirrored=not digits, kind="simclr")
    small = Shape(widths=(32, 64), features=32)
    net = {"backbone": "conv", "shape": small}
    small_vit: dict[str, Any] = {"width": 64, "layers": 3, "heads": 4}
    vit = {"shape": Shape(**small_vit, patch_size=2 if digits else 4)}
    code = {"backbone": "conv", "shape": Shape(widths=(32, 64))}  # whose size is that of the features
    return {
        "simclr": {**net, "views": views, "contrast": Contrast(temperature=0.2)},
        "moco": {**net, "views": views, "contrast": Contrast(queue=1024, decay=0.99)},
        "moco_v3": {**net, "views": views},
        "byol": {**net, "views": views, "contrast": Contrast(decay=0.98)},
        "mae": {
            **vit,
            "views": Views(kind="none"),
            "masked": Masked(ratio=0.5 if digits else 0.75, normalise=not digits),
            "learning_rate": 2e-3,
            "optimizer": Optimizer(b2=0.95, weight_decay=0.05),
        },
        "beit": {**vit, "views": Views(kind="none"), "masked": Masked(tokens=64, tokenizer_steps=200)},
        "rotation": {**net},
        # Digits have no room for nine parts, and the small network reads only whole images.
        "patch_position": {} if digits else {"backbone": "vit", "shape": Shape(**small_vit, patch_size=2)},
        "autoencoder": {**code, "code": Code(size=32)},
        "denoising": {**code, "code": Code(size=32)},
        "sparse": {**code, "code": Code(size=32, sparsity_weight=0.1)},
        "vae": {**net, "code": Code(size=16)},
        "gan": {
            **net,
            "code": Code(size=16),
            # At 2e-4, falling, with Adam's usual b1 the discriminator wins and what is drawn goes black.
            "optimizer": Optimizer(b1=0.5, schedule="constant", weight_decay=0.0),
        },
    }


def judged(options: argparse.Namespace, name: str, seed: int) -> dict[str, list[float]]:
    """Accuracy by the probe and by neighbours of one run; with seed 0, of fresh backbones and pixels too."""
    folder = options.out / options.data / f"{name}-{seed}"
    found = folder / "judged.json"
    if found.is_file():
        return json.loads(found.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    chosen = {"learning_rate": 1e-3, **settings(options.data)[name]}
    steps = options.steps * LONGER.get(name, 1)
    pretrain_images.run(
        pretrain_images.Config(
            data=SOURCES[options.data],
            objective=name,  # type: ignore[arg-type]
            out=folder,
            steps=steps,
            batch_size=128,
            monitor="last",
            evaluate_every=steps,
            eval_rows=500,
            seed=seed,
            pictures=seed == 0,
            **chosen,
        ),
        say=lambda line: None,
    )
    asked = probe.Config(
        model=str(folder),
        train=SOURCES[options.data],
        rows=options.rows,
        seeds=options.seeds,
        baselines=() if seed else ("random", "pixels") if name == "simclr" else ("random",),
    )
    result = probe.run(asked, say=lambda line: None)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    values = {f"{kind}, {of}": one[of] for kind, one in result._asdict().items() if kind != "curve" for of in one}
    found.write_text(json.dumps(values, indent=2) + "\n")
    return values


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, list[float]]]:
    """The scores by objective and column, which are printed as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(SOURCES), default="digits")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=5000, help="labelled training images at most for the probe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="objectives, in place of all")
    parser.add_argument("--out", type=Path, default=Path("runs/self-supervision"))
    options = parser.parse_args(arguments)

    rows: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        for name, chosen in settings(options.data).items():
            if (options.only and name not in options.only) or not chosen:
                continue
            found = judged(options, name, seed)
            for key, values in found.items():
                rows.setdefault(name, {}).setdefault(key, []).extend(values)
            print(f"seed {seed}: {name}: {found}", flush=True)
    columns = ("linear, model", "linear, random", "neighbours, model", "neighbours, random")
    print("| objective | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, found in rows.items():
        cells = (f"{np.mean(found[c]):.3f} ± {np.std(found[c], ddof=len(found[c]) > 1):.3f}" for c in columns)
        print(f"| {name} | " + " | ".join(cells) + " |")
    if "linear, pixels" in rows.get("simclr", {}):
        linear, voted = (rows["simclr"][f"{kind}, pixels"][0] for kind in ("linear", "neighbours"))
        print(f"| pixels | {linear:.3f} | | {voted:.3f} | |")
    return rows


if __name__ == "__main__":
    main()
