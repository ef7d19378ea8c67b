"""What groups and positions show of today's networks: `python -m benchmarks.scale_metrics`.

Efficiency and memory of ResNet-50, ConvNeXt-tiny and ViT-small at 224×224 with random weights, on
smooth noise; all settings count the same pass. `--save` writes the tables into
`docs/how_to/scale.md`.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from benchmarks.estimators import save
from benchmarks.footprint import in_child

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # it has what imports timm

from benchmarks.networks_torch import batches_of, smooth_images, untrained  # noqa: E402
from benchmarks.scale import NETWORKS, SETTINGS, held_bytes  # noqa: E402
from benchmarks.validation_torch import validate  # noqa: E402
from tensorstate_callbacks import network_efficiency  # noqa: E402
from tensorstate_callbacks.torch import record  # noqa: E402

PAGE = ROOT / "docs" / "how_to" / "scale.md"
BATCH = 8


def measure(model: nn.Module, n_images: int) -> Iterator[str]:
    """Yield the lines of a network's table: one for each setting."""
    with ExitStack() as stack:
        recordings = {
            setting: stack.enter_context(record(model, max_memory=math.inf, **setting._asdict()))
            for setting in SETTINGS
        }
        for seed in range(-(-n_images // BATCH)):
            images = smooth_images(min(BATCH, n_images - seed * BATCH), 224, seed)
            validate(model, batches_of(images, BATCH))
    for number, (setting, recording) in enumerate(recordings.items()):
        report = recording.report()
        layers = list(report.layers.values())
        shown = [layers[0], layers[len(layers) // 2], layers[-1]]
        if number == 0:
            names = " | ".join(f"η of `{layer.name}` ({layer.n_neurons})" for layer in shown)
            yield f"| unit | positions | memory | lowest coverage | network η | {names} |"
            yield "|---|--:|--:|--:|--:|--:|--:|--:|"
        unit = "layer" if setting.group_size is None else f"groups of {setting.group_size}"
        cells = [
            unit,
            str(setting.positions or "all"),
            f"{held_bytes(recording.recorder) / 1e6:,.1f} MB",
        ]
        cells += [f"{min(layer.coverage for layer in layers):.3f}", f"{report.efficiency:.4f}"]
        cells += [f"{layer.efficiency:.4f}" for layer in shown]
        yield f"| {' | '.join(cells)} |"
    bounds = [layer.rate_bound for layer in layers]
    cells = [f"{network_efficiency(bounds):.4f}", *(f"{layer.rate_bound:.4f}" for layer in shown)]
    yield f"| rate bound | all | | | {' | '.join(cells)} |"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_metrics", description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="how many")
    parser.add_argument("--save", action="store_true", help=f"write the tables of {PAGE.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    for name, timm_name in NETWORKS.items():
        # What one network has taken is not there for the next.
        lines = in_child(lambda it=timm_name: list(measure(untrained(it), arguments.images)))
        print(name, *lines, "", sep="\n", flush=True)
        tables[name] = lines
    if arguments.save:
        save(tables, PAGE)


if __name__ == "__main__":
    main()
