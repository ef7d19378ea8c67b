"""Lightning: masked positions of validation batches are left out, whatever the batches."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import QUIET, LightningModule, trainer
from own_warnings import ours
from torch import nn
from torch.utils.data import DataLoader

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch import record

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

LENGTHS = [7, 2, 5, 1, 7, 3, 6, 4]
X = torch.randn(8, 7, 6, generator=torch.Generator().manual_seed(5))
MASK = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


class Tagger(LightningModule):
    """Takes batches of `x`, padded, and of `mask`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(batch["x"])[batch["mask"]].square().mean()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.step(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_acc", 1 / (1 + self.step(batch)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def loader(size: int, width: int | None = None) -> DataLoader[Any]:
    """Return padded batches of several samples, each as wide as its longest, or all alike."""

    def collate(items: list[int]) -> dict[str, torch.Tensor]:
        longest = width or max(LENGTHS[item] for item in items)
        return {"x": X[items, :longest], "mask": MASK[items, :longest]}

    return DataLoader(list(range(8)), size, collate_fn=collate)


def expected(model: Tagger, **options: Any) -> Any:
    with record(model, "net.0", **options) as recording, torch.no_grad():
        for x, length in zip(X, LENGTHS, strict=True):
            model.net(x[None, :length])
    return recording.report().layers["net.0"]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize(
    "mask", ["mask", lambda name, batch: batch["mask"], MASK, MASK.numpy().tolist()]
)
def test_padded_batches_count_as_their_samples_alone(mask: Any, size: int) -> None:
    width = None if isinstance(mask, str) or callable(mask) else 7
    callback, model = EfficiencyCallback(mask=mask), Tagger()
    fit = trainer(callback, max_epochs=2, num_sanity_val_steps=1)
    fit.fit(model, loader(2, 7), loader(size, width))
    layer = callback.last.layers["net.0"]
    assert layer.n_states == sum(LENGTHS)
    assert (layer.entropy, layer.spectrum) == (expected(model).entropy, expected(model).spectrum)
    assert len(callback.history) == 2


def test_array_that_does_not_match_is_told_of() -> None:
    callback = EfficiencyCallback(mask=np.ones((9, 7)))
    with pytest.warns(TensorStateWarning, match="mask has 9 samples, and 8 came") as caught:
        trainer(callback, max_epochs=1).validate(Tagger(), loader(3, 7), verbose=False)
    assert len(ours(caught)) == 1
    callback = EfficiencyCallback(mask=np.ones((5, 7)))
    with pytest.raises(ProbeError, match="mask has 5 samples, and 6 came so far"):
        trainer(callback, max_epochs=1).validate(Tagger(), loader(3, 7), verbose=False)


def test_key_that_is_not_there_is_told_of_at_the_sanity_check() -> None:
    callback = EfficiencyCallback(mask="masks")
    with pytest.raises(ProbeError, match=r"mask='masks': the batch has no such key \(x, mask\)"):
        trainer(callback, max_epochs=1, num_sanity_val_steps=1).fit(Tagger(), loader(2), loader(3))


def test_array_is_refused_where_processes_share_the_samples() -> None:
    fit = trainer(EfficiencyCallback(mask=MASK.numpy()), devices=2, strategy="ddp_spawn")
    with pytest.raises(ValueError, match="each of the 2 processes has some: give the key"):
        fit.callbacks[0].setup(fit, Tagger(), "fit")


def test_training_batches_are_masked_too() -> None:
    callback = EfficiencyCallback(
        "net.0", group_size=3, mask="mask", on="train", every_n_train_steps=1, window=3
    )
    fit = trainer(callback, max_epochs=1, num_sanity_val_steps=0)
    model = Tagger()
    # The weights stay, so that each batch counts as its samples would at the end.
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)  # type: ignore[method-assign]
    fit.fit(model, loader(3), loader(8))
    layer = callback.train_history[-1].layers["net.0"]
    alone = expected(model, group_size=3)
    assert (layer.entropy, layer.firing_rate) == (alone.entropy, alone.firing_rate)
    assert layer.n_states == sum(LENGTHS)


def test_array_is_refused_for_training_batches() -> None:
    with pytest.raises(ValueError, match='on has "train", whose samples come in another'):
        EfficiencyCallback(mask=MASK.numpy(), on=("val", "train"))
    assert EfficiencyCallback(mask=[True, False], on="train").mask == [True, False]
