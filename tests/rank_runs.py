"""What the processes of `rank_processes` run: evaluations by Lightning and by loops of one's own.

The same functions give what one process says, where there is no process group.
"""

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from class_rank_runs import by_class as by_class
from lightning_models import TRAIN, Classifier, loader
from own_warnings import of_coverage, ours
from rank_models import (
    ODD,
    ExactClassifier,
    Failing,
    FailsOnOne,
    Flattening,
    Learning,
    OneSided,
    Stream,
    dealt,
    dicts,
    ended,
    group,
    many,
    n_ranks,
    quietly,
    rank,
    tokens,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from torch_models import images, small_net

from tensorstate_callbacks import EfficiencyReport, ProbeError, RankError
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch import ProbeSet, record, record_training
from tensorstate_callbacks.torch.distributed import process_groups
from tensorstate_callbacks.torch.distributed.state_exchange import StateExchange

DIED_ON_PURPOSE = 3
TIMEOUT = timedelta(seconds=60)


def lightning_fit() -> dict[str, Any]:
    """Three epochs with two callbacks, then a test: all that is logged and kept."""
    first = EfficiencyCallback()
    second = EfficiencyCallback(
        "Linear", prefix="x_", method="both", every_n_epochs=2, alpha=2, layer_metrics=["dead"]
    )
    model, fitted = ExactClassifier(), many(first, second, num_sanity_val_steps=2)

    def run() -> None:
        fitted.fit(model, loader(TRAIN), loader(ODD, 8))
        fitted.test(model, loader(ODD, 8), verbose=False)

    _, told = quietly(run, list)
    return {
        "told": ours(told),
        "coverage": of_coverage(told),
        "first": dicts(first.history),
        "second": dicts(second.history),
        "logged": {k: v.item() for k, v in fitted.callback_metrics.items() if "train" not in k},
    }


def lightning_validate(**options: Any) -> dict[str, Any]:
    callback, model = EfficiencyCallback(), ExactClassifier()
    _, told = quietly(
        lambda: many(callback, **options).validate(model, loader(ODD, 8), verbose=False)
    )
    return {"told": told, "history": dicts(callback.history)}


def lightning_alone() -> dict[str, Any]:
    """Accuracy that each rank logs of its own samples, without sync_dist."""
    callback, model = EfficiencyCallback(), ExactClassifier()
    model.alone = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many(callback).validate(model, loader(ODD, 8), verbose=False)
    return {"accuracy": callback.history[0].accuracy}


def lightning_stream() -> dict[str, Any]:
    callback = EfficiencyCallback(missing_accuracy="ignore")
    fitted = many(callback)

    def run() -> None:
        for _ in range(2):
            fitted.validate(Classifier("never"), DataLoader(Stream(), 8), verbose=False)

    _, told = quietly(run)
    return {"told": told, "history": dicts(callback.history)}


def accelerated() -> dict[str, Any]:
    """The reports of loops over loaders that Accelerate has prepared in several ways."""
    from accelerate import Accelerator, skip_first_batches
    from accelerate.utils import DataLoaderConfiguration
    from tqdm import tqdm

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(images(11))

    class Sized(IterableDataset[Any]):
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            return iter(images(3))

    def skip(loader: Any) -> Any:
        return skip_first_batches(skip_first_batches(loader, 2 // n_ranks()), 2 // n_ranks())

    def peek(loader: Any) -> Any:
        next(iter(loader))
        for _ in loader:
            break
        return loader

    def run(
        kind: str, dataset: Any, size: int = 4, change: Any = lambda loader: loader, **options: Any
    ) -> dict[str, Any]:
        config = DataLoaderConfiguration(**options)
        accelerator = Accelerator(cpu=True, dataloader_config=config)
        model = small_net()
        loader = change(accelerator.prepare(DataLoader(dataset, size)))

        def report() -> EfficiencyReport:
            with record(model, ["Conv2d", "Linear"]) as recording, torch.no_grad():
                given = tqdm(loader, disable=True) if "bar" in kind else loader
                for batch in recording.batches(given) if "batches" in kind else given:
                    model(batch)
            return recording.report(process_group=group(), accuracy=0.75)

        found, told = quietly(report)
        return {"told": told, "report": found.to_dict()}

    return {
        "plain": run("plain", images(10)),
        "batches": run("batches", images(10)),
        "split": run("plain", images(10), split_batches=True),
        "uneven": run("plain", images(10), even_batches=False),
        "dispatched": run("plain", images(11), dispatch_batches=True),
        "dispatched_split": run("batches", images(11), dispatch_batches=True, split_batches=True),
        "stream": run("plain", Stream()),
        "stream_batches": run("batches", Stream()),
        "few": run("plain", images(3), 64),
        "few_split": run("plain", Sized(), dispatch_batches=False, split_batches=True),
        "peeked": run("plain", images(10), change=peek),
        "peeked_dispatched": run("plain", images(11), change=peek, dispatch_batches=True),
        "skipped": run("plain", images(11), 2, skip),
        "skipped_batches": run("batches", images(11), 2, skip),
        "bar": run("bar", images(10)),
        "bar_batches": run("bar batches", images(10)),
        "unknown": run("batches", Stream(), dispatch_batches=False),
        "unknown_bar": run("bar batches", Stream(), dispatch_batches=False),
    }


def hugging_face() -> dict[str, Any]:
    """The figures of evaluations by Hugging Face's Trainer."""
    import huggingface_runs

    found, told = quietly(huggingface_runs.evaluations)
    return {"told": told, "figures": found}


def loop(
    model: nn.Module,
    inputs: torch.Tensor,
    batch_size: int = 4,
    axis: int = 0,
    which: Callable[[Any], list[str]] = ours,
    **options: Any,
) -> dict[str, Any]:
    """The report of a loop of one's own, by which `model` gets batches along an axis."""

    def run() -> EfficiencyReport:
        with record(model, ["Conv2d", "Linear"], **options) as recording, torch.no_grad():
            for (batch,) in recording.batches(dealt(inputs, batch_size)):
                model(batch.movedim(0, axis))
        return recording.report(process_group=group(), accuracy=0.75)

    report, told = quietly(run, which)
    return {"told": told, "report": report.to_dict()}


def loops() -> dict[str, Any]:
    torch.manual_seed(5)
    linear = nn.Sequential(nn.Linear(6, 9))
    return {
        "images": loop(small_net(), images(13), method="both"),
        "sequence_first": loop(linear, tokens(), axis=1),
        "wide": loop(nn.Sequential(nn.Linear(6, 70)), tokens(), which=of_coverage),
        "flat": loop(Flattening(), tokens()),
    }


def no_data() -> dict[str, Any]:
    """All ranks but the first run nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with record(small_net()) as recording:
            if rank() == 0:
                recording._model(images(5))
    return recording.report(process_group=group()).to_dict()


def one_sided() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with record(OneSided(), "Linear") as recording:
            recording._model(torch.ones(3, 6))
    return list(recording.report(process_group=group()).layers)


def windows_of_fit() -> dict[str, Any]:
    """Windows of a fit in which each rank has its part of every batch, and weights stay."""
    callback = EfficiencyCallback(
        "Linear", on="train", every_n_train_steps=3, window=2, method="both", prefix="w_"
    )
    fitted = many(callback)
    # Lightning's own sampler would shuffle.
    sampler = DistributedSampler(TRAIN, n_ranks(), rank(), shuffle=False)
    batches = DataLoader(TRAIN, 16 // n_ranks(), sampler=sampler)

    def run() -> None:
        fitted.fit(ExactClassifier(), batches, loader(ODD, 8))

    _, told = quietly(run, list)
    keys = [key for key in fitted.callback_metrics if "train_w" in key]
    return {
        "told": ours(told),
        "history": dicts(callback.train_history),
        "logged": {key: fitted.callback_metrics[key].item() for key in keys},
    }


def windows_of_uneven_fit() -> list[int]:
    """States of windows of one batch: samples that a sampler repeats are trained on, and count."""
    callback = EfficiencyCallback("net.0", on="train", every_n_train_steps=1, window=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many(callback, max_epochs=1).fit(ExactClassifier(), loader(ODD, 8), loader(ODD, 8))
    return [report.layers["net.0"].n_states for report in callback.train_history]


def windows_of_loops() -> list[list[dict[str, Any]]]:
    """Windows of whole layers, groups, positions and budgets that are short."""
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 70, 3), nn.ReLU(), nn.Conv2d(70, 9, 3)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2304, 4))
    # As many a rank in each batch, in the order in which a sampler deals them.
    data = torch.randn(24, 3, 22, 22, generator=torch.Generator().manual_seed(8))
    found = []
    for options in ({}, *SAMPLED):
        if "max_memory" in options:
            # Half of it is for the batches, which share it.
            options = {**options, "max_memory": options["max_memory"] * 6}
        training = record_training(
            model,
            ["Conv2d", "Linear"],
            every_n_train_steps=1,
            window=3,
            process_group=group(),
            **options,
        )
        reports = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for (batch,) in dealt(data, 6 // n_ranks()):
                with training.batch():
                    model(batch).sum().backward()
                reports.append(training.report(step=training.n_batches).to_dict())
        found.append(reports)
    return found


def windows_without_data() -> dict[str, Any]:
    """All ranks but the first run nothing in one batch, and another layer in the next."""
    model = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(6, 40), "c": nn.Linear(6, 7)})
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(8))
    training = record_training(
        model, "Linear", every_n_train_steps=1, window=3, process_group=group()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for first, others in (("a", ""), ("ab", "b"), ("b", "c")):
            with training.batch():
                for name in first if rank() == 0 else others:
                    model[name](x + rank())
                # One process sees what both do.
                for name in others if n_ranks() == 1 else ():
                    model[name](x + 1)
        return training.report().to_dict()


def windows_that_fail() -> str:
    """One rank's batch fails: the others, which wait for it, learn why."""
    if n_ranks() == 1:
        return ""
    model = nn.Sequential(nn.Linear(6, 5))
    training = record_training(model, "0", every_n_train_steps=1, process_group=group())

    def run() -> None:
        with training.batch():
            model(torch.ones(3, 6))
            if rank() == 1:
                raise ArithmeticError("this batch is bad")

    return ended(run)


def windows() -> dict[str, Any]:
    return {
        "fit": windows_of_fit(),
        "loops": windows_of_loops(),
        "without_data": windows_without_data(),
    }


def planted_net() -> nn.Sequential:
    """A layer of 14 neurons: 3 never fires, 5 always does, 7 is 2, 9 is 2 inverted, 10 is 4."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(6, 14))
    with torch.no_grad():
        net[0].bias[3], net[0].bias[5] = -1e3, 1e3
        for neuron, like, sign in ((7, 2, 1), (9, 2, -1), (10, 4, 1)):
            net[0].weight[neuron] = sign * net[0].weight[like]
            net[0].bias[neuron] = sign * net[0].bias[like]
    return net


def neurons() -> dict[str, Any]:
    """Which neurons agree, in a loop and in windows; of each rank's own data more do."""
    own, given = {"neurons": True}, torch.randn(26, 6, generator=torch.Generator().manual_seed(6))
    loops = [loop(planted_net(), given, **own, **more) for more in ({}, {"group_size": 8})]
    training = record_training(
        planted_net(), "0", every_n_train_steps=1, window=2, process_group=group(), **own
    )
    reports = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (batch,) in dealt(given[:24], 6 // n_ranks()):
            with training.batch():
                training._recording._model(batch)
            reports.append(training.report().to_dict())
    return {"loops": [each["report"] for each in loops], "windows": reports}


def followed(model: nn.Module, layer: nn.Module, **options: Any) -> Any:
    """How states of probe data change as one of five and more neurons is inverted."""
    probe = ProbeSet(images(4))
    for _ in range(2):
        with record(model, "Conv2d", probe_data=probe, **options) as recording, torch.no_grad():
            model(images(2))
            # Of sharded weights, also those that other ranks have.
            layer.weight.mul_(-1)
            layer.bias.mul_(-1)
    report = recording.report(process_group=group())
    return {name: found.to_dict()["probe"] for name, found in report.layers.items()}


def probes() -> dict[str, Any]:
    """Probe data in loops of one's own and in fits, and that which ranks don't share."""
    plain, split = small_net(), small_net()
    if n_ranks() > 1:
        from torch.distributed.fsdp import fully_shard

        for layer in (split[0], split[4]):
            fully_shard(layer, mesh=mesh())
        fully_shard(split, mesh=mesh())
    found = {"loop": followed(plain, plain[0]), "sharded": followed(split, split[0])}

    def fit(model: Any, probe_data: Any) -> tuple[Any, list[str]]:
        callback = EfficiencyCallback(probe_data=probe_data, layer_metrics=["turnover"])
        fitted = many(callback, max_epochs=2)
        _, told = quietly(lambda: fitted.fit(model, loader(TRAIN, 64), loader(ODD, 8)))
        layers = [report.layers.items() for report in callback.history]
        return [{name: layer.to_dict()["probe"] for name, layer in each} for each in layers], told

    found["fit"] = fit(Learning(), TRAIN[:20])
    if n_ranks() > 1:
        found["unlike"] = ended(lambda: fit(Learning(), TRAIN[rank() : 20]))
        found["failed"] = fit(FailsOnOne(), TRAIN[:20])
    return found


def two_ranks() -> dict[str, Any]:
    """All that works, on two ranks or on one."""
    return {
        "fit": lightning_fit(),
        "validate": lightning_validate(),
        "alone": lightning_alone(),
        "stream": lightning_stream(),
        "loops": loops(),
        "no_data": no_data(),
        "one_sided": one_sided(),
        "sharded": sharded(),
        "tensor_parallel": tensor_parallel(),
        "side_group": side_group(),
        "many_rounds": many_rounds(),
        "sampled": sampled(),
        "accuracies": accuracies(),
        "unlike": unlike(),
        "probes": probes(),
        "windows": windows(),
        "windows_uneven": windows_of_uneven_fit(),
        "neurons": neurons(),
        "windows_that_fail": windows_that_fail(),
    }


def three_ranks() -> dict[str, Any]:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    return neurons()


def mesh() -> Any:
    return init_device_mesh("cpu", (n_ranks(),))


def sharded() -> dict[str, Any]:
    """FSDP2: parameters are split over ranks, activations are whole."""
    model = small_net()
    if n_ranks() > 1:
        from torch.distributed.fsdp import fully_shard

        for layer in (model[0], model[4]):
            fully_shard(layer, mesh=mesh())
        fully_shard(model, mesh=mesh())
    return loop(model, images(13), method="both")


def tensor_parallel() -> list[str]:
    """What is said of each probe's layer where tensor parallelism splits some."""
    if n_ranks() == 1:
        return []
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    torch.manual_seed(5)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 4)]
    model = nn.Sequential(*layers)
    parallelize_module(model, mesh(), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    told = []
    for name in "0123":
        try:
            with record(model, name) as recording:
                model(torch.ones(5, 6))
            told.append(str(recording.report().layers[name].n_neurons))
        except ProbeError as error:
            told.append(str(error))
    return told


def side_group() -> dict[str, Any]:
    """Where the group's backend carries no tensors of the host, as NCCL's."""
    carries = process_groups._carries_host_tensors
    process_groups._carries_host_tensors = lambda group: False
    try:
        return loop(small_net(), images(13))
    finally:
        process_groups._carries_host_tensors = carries


def many_rounds() -> dict[str, Any]:
    """States sent a few at a time, of which ranks have different numbers."""
    bytes_at_once, StateExchange.round_bytes = StateExchange.round_bytes, 64
    try:
        return loop(small_net(), images(13))
    finally:
        StateExchange.round_bytes = bytes_at_once


SAMPLED: list[dict[str, Any]] = [
    {"group_size": 8},
    {"group_size": 1, "positions": 5},
    {"positions": 5},
    # Of one rank's own data all of it would fit; and of that of all ranks nothing but one position.
    *(
        {"max_memory": n_bytes, "neurons": True}
        for n_bytes in (600_000, 250_000, 100_000, 30_000, 10_000, 1_000)
    ),
]


def sampled() -> list[dict[str, Any]]:
    """Groups, positions and budgets that are short, of states that are nearly all distinct."""
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 70, 3), nn.ReLU(), nn.Conv2d(70, 9, 3)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2304, 4)).eval()
    data = torch.randn(13, 3, 22, 22, generator=torch.Generator().manual_seed(8))
    found: list[dict[str, Any]] = []
    for options in SAMPLED:
        with warnings.catch_warnings():
            # What each rank says of itself.
            warnings.simplefilter("ignore")
            with record(model, ["Conv2d", "Linear"], **options) as recording, torch.no_grad():
                for (batch,) in recording.batches(dealt(data, 3)):
                    model(batch)
        try:
            found.append(recording.report(process_group=group()).to_dict())
        except ProbeError as error:
            found.append({"error": str(error)})
    return found


def accuracies() -> list[Any]:
    """Accuracies of each rank's own data: 3 of 4 samples right on the first, else 1 of 2."""
    model, n = small_net(), 4 if rank() == 0 else 2
    with record(model) as recording:
        model(images(n))
    if n_ranks() == 1:
        return []
    report = recording.report(process_group=group(), accuracy=3 / 4 if rank() == 0 else 1 / 2)
    told = [report.accuracy]
    for wrong in (97.0, 2.0):
        try:
            # The first rank gives a percentage, the second a share.
            recording.report(process_group=group(), accuracy=wrong if rank() == 0 else 0.5)
        except (RankError, ValueError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def unlike() -> dict[str, str]:
    """What ends recordings that the second rank makes with another argument than the first."""
    if n_ranks() == 1:
        return {}
    other: dict[str, Any] = {
        "attach_to": "Linear",
        "exclude": "0",
        "method": "both",
        "threshold": 0.5,
        "alpha": 2,
        "beta": 1,
        "channel_axis": {"Conv2d": -1},
        "neurons": True,
        "output_fn": lambda name, output: output,
    }

    def merge(**options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with record(small_net(), **options) as recording:
                recording._model(images(2))
        recording.report(process_group=group())

    def fit(**options: Any) -> None:
        callback = EfficiencyCallback()
        # An attribute is checked as the run begins: here the others wait for it.
        vars(callback).update(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            many(callback).fit(ExactClassifier(), loader(TRAIN), loader(ODD, 8))

    told = {
        name: ended(lambda name=name: merge(**({name: other[name]} if rank() else {})))
        for name in other
    }
    told["same"] = ended(lambda: merge(attach_to=["Conv2d", "0"][:: 1 - 2 * rank()], threshold=0.0))
    for name, value in (
        ("every_n_epochs", 2),
        ("window", 3),
        ("dataloader_idx", 1),
        ("beta", 0),
    ):
        told[f"fit {name}"] = ended(lambda n=name, v=value: fit(**({n: v} if rank() else {})))
    told["fit attach_to"] = ended(lambda: fit(attach_to=["net.0", "net.2"][rank()]))
    return told


def four_ranks() -> dict[str, Any]:
    """An evaluation; one in which rank 1 fails; another; then rank 2 dies, and then rank 0."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    fresh = dist.new_group(timeout=TIMEOUT)
    short = dist.new_group(timeout=timedelta(seconds=3))
    left = dist.new_group([0, 1, 3], timeout=TIMEOUT)
    pair = dist.new_group([0, 1], timeout=timedelta(seconds=30))
    found: dict[str, Any] = {"validate": lightning_validate()}
    callbacks = EfficiencyCallback(), EfficiencyCallback(prefix="x_")
    found["raised"] = ended(lambda: many(*callbacks).validate(Failing(), loader(ODD, 8)))
    with record(small_net()) as recording:
        recording._model(images(2))
        # Merges, though of the groups of these ranks one was left waiting.
        found["again"] = recording.report(process_group=fresh).layers["0"].n_states
        if rank() == 2:
            os._exit(DIED_ON_PURPOSE)
        recording._model(images(4))
    found["died"] = ended(lambda: recording.report(process_group=short))
    if rank() != 2:
        dist.barrier(left)
    # Rank 0 returns here, and the store that it holds is gone.
    if rank() == 1:
        found["no_store"] = ended(lambda: recording.report(process_group=pair))
    if rank() == 3:
        found["outside"] = ended(lambda: recording.report(process_group=pair))
    return found
