"""What modules give: the tensor meant is found, and read from memory of any kind."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from state_oracle import counted_states, expected_states
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.torch import record
from tensorstate_callbacks.torch.activations import find_tensor, to_host

A, B = torch.zeros(1), torch.ones(2)
Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "output",
    [
        A,
        (A, B),
        [None, [A], B],
        Pair(A, B),
        {"logits": A, "loss": B},
        OrderedDict(attentions=B, last_hidden_state=A),
        SimpleNamespace(last_hidden_state=A),
        ({"last_hidden_state": (A, B)}, B),
    ],
)
def test_tensor_meant_is_found(output: Any) -> None:
    assert find_tensor(output) is A


@pytest.mark.parametrize("output", [None, "text", 3, (), {}, [None, {}], np.ones(3)])
def test_no_tensor_is_none(output: Any) -> None:
    assert find_tensor(output) is None


class Gives(nn.Module):
    """A layer that gives what it is told."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor) -> Any:
        return self.output


def counted(output: Any, **options: Any) -> dict[bytes, int]:
    model = nn.Sequential(Gives(output))
    with record(model, "Gives", **options) as recording:
        model(torch.ones(1))
    return counted_states(recording.counters["0"])


VALUES = torch.tensor([[1.5, -2.0, 0.0], [0.25, 3.0, -0.0], [-1.0, 0.5, 8.0], [1.0, -2.0, 0.0]])


@pytest.mark.parametrize(
    "output",
    [
        VALUES.clone().requires_grad_(),
        VALUES.to(torch.float8_e4m3fn),
        VALUES.mul(4).to(torch.int8),
        VALUES > 0,
        VALUES.to_sparse(),
        VALUES.to_mkldnn(),
        VALUES.t().contiguous().t(),
        torch.complex(torch.zeros(4, 3), -VALUES).conj().imag,
    ],
    ids=lambda tensor: f"{tensor.layout}-{tensor.dtype}-{tensor.is_neg()}",
)
def test_tensors_of_all_kinds_are_read(output: torch.Tensor) -> None:
    assert counted(output) == expected_states([VALUES], 1)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_tensor_is_read() -> None:
    quantized = torch.quantize_per_tensor(VALUES, 0.25, 0, torch.qint8)
    assert counted(quantized) == expected_states([VALUES], 1)


def test_memory_of_the_host_is_read_in_place() -> None:
    tensor = VALUES.clone().requires_grad_()
    assert np.shares_memory(to_host(tensor).values, tensor.detach().numpy())
    view = torch.randn(2, 6, 4, dtype=torch.bfloat16)[:, ::2]
    array = to_host(view)
    assert array.bfloat16
    assert array.values.strides == (48, 16, 2)


def test_packed_sequence_counts_no_padding() -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 5, batch_first=True)})
    packed = pack_padded_sequence(torch.randn(2, 7, 3), torch.tensor([7, 4]), batch_first=True)
    with record(model, "lstm", method="both") as recording:
        model["lstm"](packed)
    assert [c.n_states for c in recording.counters.values()] == [11, 11]
    assert [c.n_neurons for c in recording.counters.values()] == [3, 5]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("padded", [False, True])
def test_transformer_encoder_counts_one_state_per_token(padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    model = nn.Sequential(OrderedDict(encoder=nn.TransformerEncoder(layer, 2))).eval()
    tokens = torch.randn(2, 5, 6)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    with torch.no_grad():
        plain = model.encoder(tokens, src_key_padding_mask=mask)
        with record(model, ["Linear", "TransformerEncoderLayer"], exclude="*out_proj") as recording:
            probed = model.encoder(tokens, src_key_padding_mask=mask)
    assert torch.allclose(plain, probed, atol=1e-5)
    assert list(recording.counters) == [
        f"encoder.layers.{number}{part}"
        for number in (0, 1)
        for part in (".linear1", ".linear2", "")
    ]
    assert {c.n_states for c in recording.counters.values()} == {8 if padded else 10}
    assert recording.counters["encoder.layers.0.linear1"].n_neurons == 8


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensor_is_one_state_per_row() -> None:
    nested = torch.nested.nested_tensor([VALUES[:1], VALUES[1:]])
    assert counted(nested) == expected_states([VALUES], 1)


def test_output_fn_chooses_the_tensor_or_leaves_it_to_the_rules() -> None:
    second = lambda name, output: output[1] if name == "0" else None  # noqa: E731
    assert counted((A, VALUES), output_fn=second) == expected_states([VALUES], 1)
    assert counted(VALUES, output_fn=lambda *_: None) == expected_states([VALUES], 1)


def test_output_without_a_tensor_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(ProbeError, match="'0' gave a str without a tensor.*output_fn"):
        counted("text")
    model = nn.Sequential(Gives(VALUES))
    text = "'0' was called without a tensor"
    with pytest.raises(ProbeError, match=text), record(model, "Gives", method="before"):
        model[0]("text")


def test_scalar_output_is_an_error() -> None:
    with pytest.raises(ProbeError, match="'0'.*axis of neurons"):
        counted(torch.tensor(1.0))


def test_tensor_without_numbers_is_passed_over() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).to("meta")
    text = "no activations came from 0"
    with pytest.warns(TensorStateWarning, match=text), record(model, "Linear"):
        model(torch.ones(4, 3, device="meta"))


def test_autocast_activations_are_bfloat16() -> None:
    model = nn.Sequential(nn.Linear(6, 20))
    kept: list[torch.Tensor] = []
    model.register_forward_hook(lambda m, i, output: kept.append(output))
    with torch.autocast("cpu", torch.bfloat16), record(model, "Linear") as recording:
        model(torch.randn(30, 6))
    assert kept[0].dtype == torch.bfloat16
    assert counted_states(recording.counters["0"]) == expected_states(kept, 1)


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as libraries make them."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any, **__: Any) -> Any:
        return NotImplemented


def freed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    ("make", "message"),
    [(Wrapper, "could not be counted"), (freed, "have no memory: it was freed")],
)
def test_tensor_without_memory_is_an_error(make: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    watched = record(model, output_fn=lambda *_: make(torch.ones(2, 3)))
    with pytest.raises(ProbeError, match=rf"'0'.*{message}"), watched:
        model(torch.ones(2, 3))
