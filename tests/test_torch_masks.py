"""PyTorch: padding is left out, so that batches count as their samples do one by one."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from own_warnings import ours
from sweep_sequences import GPT2, SMALL, T5, transformers
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.torch import record, record_training, tensor_recorder

LENGTHS = [7, 2, 5, 1, 7, 3, 6, 4]
IDS = torch.randint(5, 50, (8, 7), generator=torch.Generator().manual_seed(7))
MASK = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()
SAMPLINGS: list[dict[str, Any]] = [{}, {"positions": 3}, {"group_size": 4, "positions": 2}]


class Tokens(nn.Module):
    """Layers that look at each token by itself, and one that looks at none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 8)
        self.first, self.second = nn.Linear(8, 18), nn.Linear(18, 6)
        self.pooled, self.out = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        x = self.second(torch.relu(self.first(self.embedding(ids))))
        kept = torch.ones_like(ids) if attention_mask is None else attention_mask
        x = (x * kept[..., None]).sum(1) / kept.sum(1)[:, None]
        return self.out(torch.relu(self.pooled(x)))


def batches(size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the samples in batches that are padded to their longest one, with masks."""
    for ids, mask in zip(IDS.split(size), MASK.split(size), strict=True):
        longest = int(mask.sum(1).max())
        yield ids[:, :longest], mask[:, :longest]


def counts(model: nn.Module, run: Callable[[Any], None], **settings: Any) -> dict[str, Any]:
    """Return what is counted of each layer while the model runs, without any warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record(model.eval().double(), **settings) as recording, torch.no_grad():
            run(recording)
    assert ours(caught) == []
    layers = recording.report().layers
    return {
        name: (layer.n_states, layer.entropy, layer.firing_rate, layer.n_distinct)
        for name, layer in layers.items()
    }


def one_by_one(model: nn.Module, **settings: Any) -> dict[str, Any]:
    def run(_: Any) -> None:
        for ids, length in zip(IDS, LENGTHS, strict=True):
            model(ids[None, :length])

    return counts(model, run, **settings)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("how", ["key", "auto", "callable", "batch", "array"])
def test_padded_batches_count_as_their_samples_alone(
    how: str, size: int, sampling: dict[str, Any]
) -> None:
    model = Tokens()
    expected = one_by_one(model, **sampling)
    n_states = {name: each[0] for name, each in expected.items()}
    n_tokens = sum(min(n, sampling.get("positions", n)) for n in LENGTHS)
    assert n_states == {"first": n_tokens, "second": n_tokens, "pooled": 8}

    def run(_: Any) -> None:
        for ids, mask in batches(size):
            model(ids, mask)

    def run_batches(recording: Any) -> None:
        loader = [{"ids": ids, "seen": mask} for ids, mask in batches(size)]
        for batch in recording.batches(loader):
            model(batch["ids"], batch["seen"])

    def run_padded(_: Any) -> None:
        for ids, mask in zip(IDS.split(size), MASK.split(size), strict=True):
            model(ids, mask)

    masks: dict[str, Any] = {
        "key": "attention_mask",
        "auto": "auto",
        "callable": lambda name, batch: batch["attention_mask"] if name != "pooled" else None,
        "batch": "seen",
        "array": MASK.numpy(),
    }
    runs = {"batch": run_batches, "array": run_padded}
    assert counts(model, runs.get(how, run), mask=masks[how], **sampling) == expected


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_states_on_a_device_are_masked_too(
    monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    tokens, recurrent = Tokens(), Recurrent(True)
    names = ["GRU", "head"]
    expected = one_by_one(tokens, **sampling)
    expected_packed = one_by_one(recurrent, attach_to=names, **sampling)
    # The CPU is taken for a device.
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)
    found = counts(tokens, lambda _: tokens(IDS, MASK), mask="auto", **sampling)
    assert found == expected
    lengths = MASK.sum(1)
    found = counts(recurrent, lambda _: recurrent(IDS, lengths), attach_to=names, **sampling)
    assert found == expected_packed


def test_without_a_mask_padding_is_told_of_and_counted() -> None:
    model = Tokens()
    told = pytest.warns(TensorStateWarning, match='attention_mask.*Give mask="auto"')
    with told, record(model) as recording, torch.no_grad():
        model(IDS, MASK)
    assert recording.counters["first"].n_states == IDS.numel()


def test_masked_states_are_those_that_numpy_counts() -> None:
    model, seen = Tokens(), []
    model.first.register_forward_hook(lambda *args: seen.append(args[2].numpy(force=True)))
    with record(model, "first", mask="auto") as recording, torch.no_grad():
        model(IDS, MASK)
    rows = np.packbits(seen[0][MASK.numpy() > 0] > 0, axis=1, bitorder="little")
    states, numbers = np.unique(rows, axis=0, return_counts=True)
    counter = recording.counters["first"]
    order = np.lexsort(counter.states().T[::-1])
    np.testing.assert_array_equal(counter.states()[order], states)
    np.testing.assert_array_equal(counter.counts()[order], numbers)


ENCODERS: dict[str, Any] = {
    "Bert": SMALL,
    "DistilBert": {"vocab_size": 50, "dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 40},
    "GPT2": {**GPT2, "bos_token_id": 1, "eos_token_id": 1},
    "Roberta": {**SMALL, "pad_token_id": 0},
    "XLMRoberta": {**SMALL, "pad_token_id": 0},
    "Electra": SMALL,
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ENCODERS)
def test_hugging_face_models_leave_padding_out(name: str, attention: str) -> None:
    model = hf_model(name, attn_implementation=attention)
    expected = one_by_one(model, positions=3)
    assert len(expected) > 5

    def run(_: Any) -> None:
        for ids, mask in batches(3):
            model(ids, attention_mask=mask)

    assert counts(model, run, mask="auto", positions=3) == expected


def test_what_comes_after_a_masked_module_is_masked_too() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = hf_model("Bert")
            self.head, self.out = nn.Linear(24, 5), nn.Linear(5, 2)

        def forward(self, ids: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
            hidden = self.inner(ids, attention_mask=kept).last_hidden_state
            made: torch.Tensor = self.out(self.head(hidden))
            return made

    model = Outer()
    expected = one_by_one(model, attach_to="head")
    assert counts(model, lambda _: model(IDS, MASK), attach_to="head", mask="auto") == expected


def test_mask_that_is_written_anew_is_read_anew() -> None:
    model, mask = Tokens(), MASK.clone()

    def run(_: Any) -> None:
        model(IDS, mask)
        model(IDS, mask.fill_(1))

    assert counts(model, run, mask="auto")["first"][0] == sum(LENGTHS) + IDS.numel()


def hf_model(name: str, **options: Any) -> nn.Module:
    return transformers(name, **{**ENCODERS[name], **options})(7)


TARGETS = torch.randint(5, 50, (8, 7), generator=torch.Generator().manual_seed(8))
TARGET_LENGTHS = [2, 7, 5, 3, 7, 1, 4, 6]
TARGET_MASK = (torch.arange(7) < torch.tensor(TARGET_LENGTHS)[:, None]).long()


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("given", ["decoder_attention_mask", "labels"])
@pytest.mark.parametrize("mask", ["auto", "attention_mask"])
def test_encoder_and_decoder_have_masks_of_their_own(mask: str, given: str, size: int) -> None:
    import transformers as hf

    torch.manual_seed(1)
    model = hf.T5ForConditionalGeneration(hf.T5Config(**{**T5, "decoder_start_token_id": 0}))

    def alone(_: Any) -> None:
        for at in range(8):
            ids, targets = IDS[at, : LENGTHS[at]], TARGETS[at, : TARGET_LENGTHS[at]]
            model(ids[None], decoder_input_ids=targets[None])

    def run(_: Any) -> None:
        for at in range(0, 8, size):
            part = slice(at, at + size)
            longest = [int(mask[part].sum(1).max()) for mask in (MASK, TARGET_MASK)]
            ids, its_mask = IDS[part, : longest[0]], MASK[part, : longest[0]]
            targets, kept = TARGETS[part, : longest[1]], TARGET_MASK[part, : longest[1]]
            more = {given: kept}
            if given == "labels":
                more = {given: targets.masked_fill(kept == 0, -100)}
            model(ids, attention_mask=its_mask, decoder_input_ids=targets, **more)

    names = ["Linear", "lm_head"]
    expected = counts(model, alone, attach_to=names)
    assert {each[0] for each in expected.values()} == {sum(LENGTHS), sum(TARGET_LENGTHS)}
    of_memory = next(name for name in expected if name.endswith("EncDecAttention.k"))
    assert expected[of_memory][0] == sum(LENGTHS)
    assert expected["lm_head"][0] == sum(TARGET_LENGTHS)
    assert counts(model, run, attach_to=names, mask=mask) == expected


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_torch_transformers_leave_padding_out(batch_first: bool, training: bool) -> None:
    torch.manual_seed(2)
    model = nn.Transformer(8, 2, 2, 2, 12, 0.0, batch_first=batch_first).double()
    source, target = (torch.randn(8, n, 8, dtype=torch.float64) for n in (7, 6))
    # Another form than the source's, as it comes: sizes tell samples from time.
    target_mask = TARGET_MASK[:, :6] == 0
    target_mask[1] = False

    def order(x: torch.Tensor) -> torch.Tensor:
        return x if batch_first else x.transpose(0, 1)

    def alone(_: Any) -> None:
        for at in range(8):
            parts = source[at : at + 1, : LENGTHS[at]], target[at : at + 1, ~target_mask[at]]
            model(*map(order, parts))

    def run(_: Any) -> None:
        model(
            order(source),
            order(target),
            src_key_padding_mask=MASK == 0,
            tgt_key_padding_mask=target_mask,
            memory_key_padding_mask=MASK == 0,
        )

    names = ["encoder.layers.*.linear1", "decoder.layers.*.linear*"]
    model.eval = lambda: model.train(training)  # type: ignore[method-assign]
    found = [counts(model, each, attach_to=names, mask="auto") for each in (alone, run)]
    assert {each[0] for each in found[0].values()} == {sum(LENGTHS), int((~target_mask).sum())}
    assert found[0] == found[1]


class Recurrent(nn.Module):
    """A recurrent layer on packed sequences, and layers behind it on padded ones."""

    def __init__(self, batch_first: bool, *, before: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(50, 8)
        self.before = nn.Linear(8, 8) if before else nn.Identity()
        self.rnn = nn.GRU(8, 9, batch_first=batch_first, bidirectional=True)
        self.head, self.last = nn.Linear(18, 5), nn.Linear(5, 2)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        x = self.before(self.embedding(ids))
        if not self.rnn.batch_first:
            x = x.transpose(0, 1)
        if lengths is None:
            x = self.rnn(x)[0]
        else:
            first = self.rnn.batch_first
            packed = pack_padded_sequence(x, lengths, first, enforce_sorted=False)
            x = pad_packed_sequence(self.rnn(packed)[0], first)[0]
        made: torch.Tensor = self.last(torch.relu(self.head(x)))
        return made


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_packed_sequences_apply_by_themselves(
    sampling: dict[str, Any], size: int, batch_first: bool
) -> None:
    model = Recurrent(batch_first)

    def run(_: Any) -> None:
        for ids, mask in batches(size):
            model(ids, mask.sum(1))

    names = ["GRU", "head"]
    expected = one_by_one(model, attach_to=names, **sampling)
    assert counts(model, run, attach_to=names, **sampling) == expected
    assert counts(model, run, attach_to=names, method="after", **sampling) == expected


def test_layers_before_a_packed_sequence_are_told_of() -> None:
    model = Recurrent(True, before=True)
    lengths = torch.tensor(LENGTHS)
    told = pytest.warns(TensorStateWarning, match="only after before had been counted")
    with told as caught, record(model, ["before", "head"]) as recording, torch.no_grad():
        model(IDS, lengths)
    assert len(ours(caught)) == 1
    assert recording.counters["head"].n_states == sum(LENGTHS)
    # With the mask that the warning asks for, all is well.
    kept = counts(
        model,
        lambda _: model(IDS, lengths),
        attach_to=["before", "head"],
        mask=lambda name, batch: torch.arange(7) < batch["lengths"][:, None],
    )
    assert {each[0] for each in kept.values()} == {sum(LENGTHS)}


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embedding, self.conv = nn.Embedding(50, 8), nn.Conv1d(8, 6, 3, stride=2)
        self.out = nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.out(self.conv(self.embedding(ids).transpose(1, 2)).mean(2))
        return made


def test_layer_with_other_positions_is_counted_whole_and_told_of() -> None:
    model = Strided()
    told = pytest.warns(TensorStateWarning, match=r"doesn't fit the positions of conv \(8, 6, 3\)")
    with told, record(model, mask="auto") as recording, torch.no_grad():
        model(IDS, MASK == 0)
    assert recording.counters["conv"].n_states == 8 * 3

    def mask(name: str, batch: Any) -> torch.Tensor | None:
        if name != "conv":
            return None
        # A place of the convolution counts where all that it sees is data.
        return (batch["padding_mask"] == 0).unfold(1, 3, 2).all(2)

    kept = counts(model, lambda _: model(IDS, MASK == 0), mask=mask)
    assert kept["conv"][0] == sum(max(0, (n - 3) // 2 + 1) for n in LENGTHS)


def count_all(model: nn.Module, recording: Any, loader: Any) -> None:
    with recording:
        for batch in recording.batches(loader):
            model(batch["ids"])


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ("padding", r"mask='padding': the batch has no such key \(ids, seen\)"),
        (lambda name, batch: batch["seen"].float().log(), "mask: .*numbers below 0"),
        (lambda name, batch: 3, "mask: a mask has an axis of positions"),
        (MASK[:5], "mask has 5 samples, and 6 came so far"),
    ],
)
def test_what_is_wrong_with_a_mask_is_said(mask: Any, match: str) -> None:
    model = Tokens()
    loader = [{"ids": ids, "seen": mask} for ids, mask in batches(3)]
    recording = record(model, mask=mask)
    with pytest.raises(ProbeError, match=match):
        count_all(model, recording, loader)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if isinstance(mask, torch.Tensor):
        # The first batch was counted, and is not lost.
        assert recording.counters["first"].n_states == sum(LENGTHS[:3])


def test_array_of_too_many_samples_is_told_of() -> None:
    model = Tokens()
    told = pytest.warns(TensorStateWarning, match="mask has 8 samples, and 5 came")
    with told, record(model, mask=MASK), torch.no_grad():
        model(IDS[:5])


def test_one_row_holds_for_all_samples() -> None:
    model = Tokens()
    kept = counts(model, lambda _: model(IDS), mask=[True, False, True, False, False, False, True])
    assert kept["first"][0] == 8 * 3


def test_tokens_in_rows_and_heads_of_samples_are_masked_too() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.heads, self.out = nn.Linear(8, 6), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            self.rows(x.reshape(-1, 8))
            by_head = x.reshape(*x.shape[:2], 2, 4).transpose(1, 2).reshape(-1, x.shape[1], 4)
            made: torch.Tensor = self.out(self.heads(by_head))
            return made

    model, x = Flat(), torch.randn(8, 7, 8, dtype=torch.float64)

    def loop(recording: Any) -> None:
        for _ in recording.batches([{"x": x, "attention_mask": MASK}]):
            model(x, MASK)

    for mask in ("auto", "attention_mask"):
        for run in (loop, lambda _: model(x, MASK)):
            kept = counts(model, run, attach_to=["rows", "heads"], mask=mask)
            assert [each[0] for each in kept.values()] == [sum(LENGTHS), 2 * sum(LENGTHS)]


def test_own_samples_come_with_their_part_of_the_mask() -> None:
    from tensorstate_callbacks.torch.distributed.own_samples import BatchSamples

    model = Tokens()

    def run(recording: Any) -> None:
        recording.resume(BatchSamples(8, 5), batch={"seen": MASK})
        model(IDS, MASK)

    kept = counts(model, run, mask="seen")
    assert [each[0] for each in kept.values()] == [sum(LENGTHS[:5])] * 2 + [5]
    recurrent = Recurrent(True)

    def run_packed(recording: Any) -> None:
        recording.resume(BatchSamples(8, 5))
        recurrent(IDS, MASK.sum(1))

    kept = counts(recurrent, run_packed, attach_to=["GRU", "head"], positions=4)
    assert [each[0] for each in kept.values()] == [sum(min(4, n) for n in LENGTHS[:5])] * 2


def test_model_without_masks_is_told_of() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 2))
    told = pytest.warns(TensorStateWarning, match='mask="auto": no layer takes a mask')
    with told as caught, record(model, mask="auto") as recording:
        model(torch.ones(4, 7, 8))
    assert len(ours(caught)) == 1
    assert recording.counters["0"].n_states == 28


@pytest.mark.parametrize("given", [True, False])
def test_batches_of_a_training_are_masked_too(given: bool) -> None:
    model = Tokens()
    mask = "seen" if given else "attention_mask"
    training = record_training(
        model, every_n_train_steps=1, window=8, group_size=4, positions=2, mask=mask
    )
    for ids, kept in batches(3):
        with training.batch({"seen": kept} if given else None), torch.no_grad():
            model(ids, kept)
    expected = one_by_one(model.float(), group_size=4, positions=2)
    found = training.report().layers
    assert {name: layer.n_states for name, layer in found.items()} == {
        name: each[0] for name, each in expected.items()
    }
    assert found["first"].entropy == expected["first"][1]
