"""Real adapters, peft's, around real networks: the layers and their numbers are those of before."""

import warnings
from typing import Any

import pytest
import torch
from case_modules import Conv1D
from state_oracle import counted_states
from sweep_sequences import GPT2, LLAMA, SMALL, ids
from torch import nn

from tensorstate_callbacks.torch import record

States = dict[str, dict[bytes, int]]
NETWORKS = {
    "BertForSequenceClassification": SMALL,
    "GPT2LMHeadModel": {**GPT2, **dict.fromkeys(("bos_token_id", "eos_token_id"), 1)},
    "LlamaForCausalLM": LLAMA,
    "MixtralForCausalLM": {**LLAMA, "num_local_experts": 3},
}


def states(model: nn.Module, inputs: dict[str, torch.Tensor]) -> States:
    """States of the default's layers, under the names that they have without adapters."""
    with warnings.catch_warnings(), torch.no_grad(), record(model) as recording:
        warnings.simplefilter("ignore")  # weights that aren't covered
        model(**inputs)
    counters = recording.counters.items()
    return {name.removeprefix("base_model.model."): counted_states(c) for name, c in counters}


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("name", NETWORKS)
def test_adapted_network_has_the_layers_of_before(name: str, options: Any) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    if options and name.startswith("Mixtral"):
        pytest.skip("peft has no DoRA for experts that are one parameter")
    config = getattr(transformers, name).config_class(**NETWORKS[name])
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    inputs = ids(4, 11)
    plain = states(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, that it transposes weights by itself
        lora = peft.LoraConfig(r=3, target_modules="all-linear", **options)
        adapted = peft.get_peft_model(model, lora).eval()
    assert states(adapted, inputs) == plain


class Adapted(nn.Module):
    """Low-rank changes beside GPT-2's kind of dense layer."""

    def __init__(self, base: Conv1D) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.nx, 2, bias=False)
        self.lora_B = nn.Linear(2, base.nf, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def test_adapted_layer_that_is_dense_by_another_name_is_one_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(8, 6), nn.Tanh(), Conv1D(9, 8), nn.Tanh(), nn.Linear(9, 3))
    inputs = {"input": torch.randn(20, 6)}
    plain = states(model, inputs)
    model[0], model[2] = Adapted(model[0]), Adapted(model[2])
    assert states(model, inputs) == plain
    assert list(plain) == ["0", "2"]
