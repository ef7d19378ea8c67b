"""Whole validation passes on one thread and on two: does a watched one gain as much as a plain one?

By the clock on the wall. Passes of one round follow each other, so that what slows the machine down
for a while slows all of them down; ratios are taken within a round.
"""

import os
import statistics
from importlib.util import find_spec

from torch import nn

from benchmarks.networks_torch import Batches, batches_of, lenet5, smooth_images, untrained
from benchmarks.rows import Options, Row, Target, not_installed, relative
from benchmarks.scale import BATCH, FEW, Setting, run_pass, use_threads

PART = "scale-threads"
NETWORKS = {"ResNet-50": "resnet50", "ConvNeXt-tiny": "convnext_tiny"}
NO_WORSE = Target(1, False)


def run(options: Options) -> list[Row]:
    """Measure LeNet-5 on digits, and two networks at 224×224 with random weights."""
    if (os.cpu_count() or 1) < 2:
        note = "there is one processor"
        return [Row(PART, "LeNet-5, 2 threads", 0, 0, "", "1 thread", 0, NO_WORSE, note)]
    rows = _compare("LeNet-5", *lenet5(options.quick), options)
    if not find_spec("timm"):
        return rows + [not_installed(PART, name, "timm") for name in NETWORKS]
    for name, timm_name in {} if options.quick else NETWORKS.items():
        batches = batches_of(smooth_images(BATCH, 224), BATCH)
        rows += _compare(name, untrained(timm_name), batches, options)
    return rows


def _compare(name: str, model: nn.Module, batches: Batches, options: Options) -> list[Row]:
    runs = options.runs(15)
    ratios: dict[tuple[Setting, int], list[float]] = {}
    for number in range(-min(1, runs - 1), runs):
        for threads in (1, 2):
            use_threads(threads)
            plain = run_pass(model, batches, None).wall
            for setting in FEW:
                ratio = run_pass(model, batches, setting).wall / plain
                if number >= 0:
                    ratios.setdefault((setting, threads), []).append(ratio)
    rows = []
    for setting in FEW:
        ours, theirs = (statistics.median(ratios[setting, threads]) for threads in (2, 1))
        case = f"{name}, {setting}, watched over plain, 2 threads"
        rows.append(relative(PART, case, "1 thread", ours, theirs, "", NO_WORSE))
    return rows
