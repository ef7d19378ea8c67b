"""A model that is called with a mask of padding is told of once: its padding is counted."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from lightning_models import QUIET, VAL, Classifier, fit, loader, trainer
from own_warnings import ours
from torch import nn

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch import record
from tensorstate_callbacks.torch.padding import masks_padding

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
# 1 where there is data: the samples have 5, 3, 1 and 5 positions.
DATA = (torch.arange(5) < torch.tensor([5, 3, 1, 5])[:, None]).long()
WHOLE, CAUSAL = torch.ones_like(DATA), torch.ones(5, 5).tril()


class Masked(nn.Module):
    """Takes a mask as Hugging Face's models do, and hands it on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inner, self.other = Inner(), nn.Linear(8, 8)

    def forward(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None = None, *, inside: Any = None
    ) -> torch.Tensor:
        return self.other(self.inner(x, padding_mask=inside))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, *, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.linear(x)


def told(model: nn.Module, *args: Any, n_times: int = 2, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record(model, "Linear") as recording, torch.no_grad():
            for _ in range(n_times):
                model(*args, **kwargs)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert recording.counters
    return ours(caught)


@pytest.mark.parametrize("mask", [DATA, DATA.bool(), DATA.float(), torch.log(DATA.float())])
def test_mask_is_told_of_once_however_it_is_given(mask: torch.Tensor) -> None:
    for args, kwargs in (((X, mask), {}), ((X,), {"attention_mask": mask})):
        (text,) = told(Masked(), *args, **kwargs)
        assert text.startswith("the model is called with attention_mask, which masks padding")
        assert "depend on the batches' sizes" in text
        assert "batch size of 1" in text


def test_mask_of_a_module_inside_is_told_of_with_its_name() -> None:
    (text,) = told(Masked(), X, inside=~DATA.bool())
    assert text.startswith("layer 'inner' is called with padding_mask")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((X, WHOLE), {}),
        ((X, WHOLE.bool()), {"inside": ~WHOLE.bool()}),
        # Which positions see each other.
        ((X, CAUSAL), {}),
        ((X, torch.where(CAUSAL > 0, 0.0, -torch.inf)), {}),
        ((X, CAUSAL.tril() - CAUSAL.tril(-2)), {}),
        ((X, DATA[:, None, None]), {}),
        ((torch.randn(5, 5, 8), CAUSAL), {"inside": ~CAUSAL.bool()}),
    ],
)
def test_what_masks_no_padding_is_not_told_of(args: Any, kwargs: Any) -> None:
    assert told(Masked(), *args, **kwargs) == []


def test_square_batch_is_told_of_unless_its_mask_is_causal() -> None:
    x, mask = torch.randn(5, 5, 8), torch.ones(5, 5)
    mask[1, 3:] = 0
    assert len(told(Masked(), x, mask)) == 1


def test_other_arguments_are_no_masks() -> None:
    class Rest(Masked):
        def forward(self, x: torch.Tensor, *rest: Any, attention_mask: Any = None) -> Any:
            return super().forward(x)

    assert told(Rest(), X, None, DATA) == []
    assert len(told(Rest(), X, attention_mask=DATA)) == 1


@pytest.mark.parametrize("shape", [(5,), (2, 4, 5)])
def test_masks_of_other_axes_are_not_looked_into(shape: tuple[int, ...]) -> None:
    assert not masks_padding("attention_mask", torch.zeros(shape))


def test_later_batch_that_is_padded_is_told_of() -> None:
    model = Masked()
    with (
        pytest.warns(TensorStateWarning, match="masks padding") as caught,
        record(model, "Linear") as recording,
    ):
        run_each(model, [WHOLE, WHOLE.clone(), DATA, DATA])
    assert len(caught) == 1
    # All that is padding is counted.
    assert recording.counters["other"].n_states == 4 * 20


def run_each(model: nn.Module, masks: list[torch.Tensor]) -> None:
    for mask in masks:
        model(X, mask)


def test_paused_recording_does_not_look() -> None:
    model = Masked()
    with record(model, "Linear") as recording:
        model(X)
        recording.pause()
        model(X, DATA)
    model(X, DATA)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_encoder_is_told_of_and_gives_what_it_gives_without(fast: bool) -> None:
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.ModuleDict(
        {"encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=fast), "head": Inner()}
    ).eval()

    hooked: list[bool] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        hooked.append(any(m._forward_pre_hooks for m in model["encoder"].layers.modules()))
        made: torch.Tensor = model["encoder"](x, src_key_padding_mask=~DATA.bool())
        return model["head"](made)

    with torch.no_grad():
        expected = forward(X)
        with (
            pytest.warns(TensorStateWarning, match="layer 'encoder' .* src_key_padding_mask"),
            record(model, "head.linear"),
        ):
            found = forward(X)
    assert torch.equal(found, expected)
    # A hook on one of its layers would end torch's fast path.
    assert hooked == [False, False]


def test_attention_and_its_additive_masks_are_told_of() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention, "linear": nn.Linear(8, 8)})
    for mask in (~DATA.bool(), torch.log(DATA.float())):
        with (
            pytest.warns(TensorStateWarning, match="layer 'attention' .* key_padding_mask"),
            record(model, "linear"),
        ):
            model["linear"](attention(X, X, X, key_padding_mask=mask)[0])
    with record(model, "linear"):
        model["linear"](attention(X, X, X, attn_mask=~CAUSAL.bool())[0])


def test_packed_sequences_need_no_word() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 6, batch_first=True)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, False)
            return self.lstm(packed)

    with record(Packed(), "LSTM") as recording:
        recording._model(X, DATA.sum(1))
    assert recording.counters["lstm"].n_states == int(DATA.sum())


def test_copies_made_meanwhile_say_nothing() -> None:
    model = Masked()
    with record(model, "Linear"):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # noqa: S301
        for clone in copies:
            clone(X, DATA)
        model(X)


def test_masks_without_numbers_are_not_looked_into() -> None:
    model = Masked()
    with record(model, "Linear"):
        model(X)
        model.to("meta")(X.to("meta"), DATA.to("meta"))


class Padded(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.masked = Masked()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.masked(X, DATA)
        return super().forward(x)


@pytest.mark.parametrize("n_sanity", [0, 2])
def test_lightning_tells_once_a_fit(n_sanity: int) -> None:
    callback = EfficiencyCallback()
    for _ in range(2):
        with pytest.warns(TensorStateWarning, match="layer 'masked' is called") as caught:
            fit(Padded(), callback, num_sanity_val_steps=n_sanity)
        assert len(ours(caught)) == 1
    with pytest.warns(TensorStateWarning, match="layer 'masked' is called"):
        trainer(callback).validate(Padded(), loader(VAL), verbose=False)
