"""What several processes run whose states are counted by class, and one process as well."""

import warnings
from typing import Any

import torch
from lightning_models import loader
from rank_models import ODD, ExactClassifier, dicts, group, many, n_ranks, quietly, rank
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torch_models import images, small_net

from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch import record

N_SAMPLES = 13
OPTIONS: list[dict[str, Any]] = [
    {},
    {"group_size": 8},
    {"group_size": 3, "positions": 5, "method": "both"},
    # Of which half is for classes: for fewer and fewer layers.
    *({"max_memory": n_bytes} for n_bytes in (700_000, 300_000, 100_000, 10_000)),
]


def labelled(batch_size: int) -> DataLoader[Any]:
    """Images, of which no number of ranks up to 12 has equally many, and their labels."""
    dataset = TensorDataset(images(N_SAMPLES), torch.arange(N_SAMPLES) // 2 % 4 - 1)
    sampler = DistributedSampler(dataset, shuffle=False) if n_ranks() > 1 else None
    return DataLoader(dataset, batch_size, sampler=sampler)


def class_loop(model: nn.Module, batch_size: int = 4, **options: Any) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record(model, ["Conv2d", "Linear"], classes=True, **options) as recording:
            for batch, _ in recording.batches(labelled(batch_size)):
                model(batch).detach()
        report = recording.report(process_group=group(), accuracy=0.75)
    told = [str(each.message) for each in caught]
    return {"report": report.to_dict(), "told": [text for text in told if "of classes of" in text]}


def labels_of_one_rank_only() -> dict[str, Any]:
    """All ranks but the first have no data."""

    model = small_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with record(model, "Conv2d", classes=torch.arange(5) % 2) as recording, torch.no_grad():
            if rank() == 0:
                model(images(5))
    return recording.report(process_group=group()).to_dict()


def lightning_classes() -> list[dict[str, Any]]:
    callback = EfficiencyCallback(classes=True, group_size=3)
    _, told = quietly(
        lambda: many(callback).validate(ExactClassifier(), loader(ODD, 8), verbose=False)
    )
    assert told == []
    return dicts(callback.history)


def by_class() -> dict[str, Any]:
    return {
        # First: Lightning connects the processes.
        "lightning": lightning_classes(),
        "loops": [class_loop(small_net(), **options) for options in OPTIONS],
        "one_only": labels_of_one_rank_only(),
    }
