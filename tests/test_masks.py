"""Masked positions are left out: what counts is what samples give without padding, to the bit."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.masked_probes import MaskedProbes
from tensorstate_callbacks.recording.masks import MaskedSamples, check_mask
from tensorstate_callbacks.recording.pass_counts import ProbeCounts, Width
from tensorstate_callbacks.recording.recorder import Recorder

N_NEURONS = 20
SAMPLINGS = [
    Sampling(None, None, None),
    Sampling(3, 2, None),
    Sampling(None, 3, 1 << 30),
    # So small that positions are given up.
    Sampling(None, None, 500),
]


def counted(recorder: Recorder) -> tuple[Any, list[int]]:
    """Return all that was counted of the probe."""
    counts = ProbeCounts.of(recorder.counts().probes[Width("p", N_NEURONS)])
    distribution = counts.counted
    if isinstance(distribution, np.ndarray):
        distribution = distribution.tolist()
    return distribution, counts.fired.tolist()


def masked_counts(
    batches: list[tuple[np.ndarray, np.ndarray]],
    sampling: Sampling,
    channel_axis: int = -1,
    sample_axis: int | None = 0,
) -> tuple[Any, list[int]]:
    """Count batches with their masks."""
    recorder, probes = Recorder(["p"], sampling=sampling), MaskedProbes()
    for batch, mask in batches:
        masked = MaskedSamples(mask)
        for part, axis, samples, _ in probes.parts("p", batch, channel_axis, sample_axis, masked):
            recorder.observe("p", part, axis, sample_axis=samples)
    assert probes.warnings() == {}
    return counted(recorder)


def counts_alone(samples: list[np.ndarray], sampling: Sampling) -> tuple[Any, list[int]]:
    """Count samples of shape (positions..., neurons) one by one."""
    recorder = Recorder(["p"], sampling=sampling)
    for sample in samples:
        recorder.observe("p", sample[None], -1)
    return counted(recorder)


@st.composite
def sequences(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draw a batch of shape (samples, positions, neurons) and its mask, with gaps anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any))
    width = max(lengths) + draw(st.integers(0, 2))
    mask = np.zeros((len(lengths), width), bool)
    for row, length in zip(mask, lengths, strict=True):
        row[rng.permutation(width)[:length]] = True
    # Few distinct states, so that they meet.
    batch = rng.integers(0, 2, (len(lengths), width, 1)) * np.ones(N_NEURONS, np.float32)
    batch[..., 0] = rng.integers(0, 2, batch.shape[:2])
    return batch.astype(np.float32), mask


@given(sequences(), st.sampled_from(SAMPLINGS))
def test_masked_batch_equals_its_samples_without_padding(case: Any, sampling: Sampling) -> None:
    batch, mask = case
    alone = [row[keep] for row, keep in zip(batch, mask, strict=True) if keep.any()]
    expected = counts_alone(alone, sampling)
    assert masked_counts([(batch, mask)], sampling) == expected
    # And so in batches of any size, in any order of axes.
    halves = [(batch[:2], mask[:2]), (batch[2:], mask[2:])]
    if mask[:2].any():
        assert masked_counts(halves, sampling) == expected
    if len(batch) != mask.shape[1]:
        moved = (batch.transpose(2, 1, 0), mask)
        assert masked_counts([moved], sampling, channel_axis=0, sample_axis=2) == expected


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("heads_first", [True, False])
def test_other_axes_of_positions_keep_their_order(
    rng: np.random.Generator, sampling: Sampling, heads_first: bool
) -> None:
    batch = rng.normal(size=(4, 3, 7, N_NEURONS)).astype(np.float32)
    mask = np.arange(7) < np.array([7, 2, 5, 5])[:, None]
    # As if each sample had come without its padding, heads before positions or after them.
    alone = [row[:, keep] for row, keep in zip(batch, mask, strict=True)]
    if not heads_first:
        batch, alone = batch.swapaxes(1, 2), [sample.swapaxes(0, 1) for sample in alone]
    assert masked_counts([(batch, mask)], sampling) == counts_alone(alone, sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_images_of_several_sizes_equal_those_without_padding(
    rng: np.random.Generator, sampling: Sampling
) -> None:
    batch = rng.normal(size=(3, N_NEURONS, 6, 5)).astype(np.float32)
    sizes = [(6, 5), (2, 4), (3, 1)]
    mask = np.zeros((3, 6, 5), bool)
    for row, (height, width) in zip(mask, sizes, strict=True):
        row[:height, :width] = True
    images = [batch[i, :, :h, :w].transpose(1, 2, 0) for i, (h, w) in enumerate(sizes)]
    found = masked_counts([(batch, mask)], sampling, channel_axis=1)
    assert found == counts_alone(images, sampling)


def test_gaps_within_an_image_leave_its_other_pixels(rng: np.random.Generator) -> None:
    batch = rng.normal(size=(2, 4, 3, N_NEURONS)).astype(np.float32)
    mask = np.ones((2, 4, 3), bool)
    mask[1, 2, 1] = False
    alone = [row[keep] for row, keep in zip(batch, mask, strict=True)]
    assert masked_counts([(batch, mask)], SAMPLINGS[0]) == counts_alone(alone, SAMPLINGS[0])


def test_neurons_on_several_axes_stay_together(rng: np.random.Generator) -> None:
    batch = rng.normal(size=(3, 5, 4, N_NEURONS // 4)).astype(np.float32)
    mask = np.arange(5) < np.array([5, 1, 3])[:, None]
    recorder = Recorder(["p"])
    for part, axis, samples, _ in MaskedProbes().parts(
        "p", batch, (-2, -1), 0, MaskedSamples(mask)
    ):
        recorder.observe("p", part, axis, sample_axis=samples)
    alone = [row[keep].reshape(-1, N_NEURONS) for row, keep in zip(batch, mask, strict=True)]
    assert counted(recorder) == counts_alone(alone, SAMPLINGS[0])


def test_one_mask_for_all_samples_and_for_one_without_their_axis(rng: np.random.Generator) -> None:
    batch = rng.normal(size=(3, 5, N_NEURONS)).astype(np.float32)
    expected = counts_alone([row[[0, 3]] for row in batch], SAMPLINGS[0])
    for mask in ([1, 0, 0, 1, 0], [[True, False, False, True, False]]):
        assert masked_counts([(batch, np.array(mask))], SAMPLINGS[0]) == expected
        lone = masked_counts([(batch[0], np.array(mask))], SAMPLINGS[0], sample_axis=None)
        assert lone == counts_alone([batch[0][[0, 3]]], SAMPLINGS[0])


def test_masks_of_scores_lose_the_axes_of_heads_and_queries() -> None:
    assert MaskedSamples(np.ones((4, 1, 1, 7))).keep.shape == (4, 7)
    assert MaskedSamples(np.ones((4, 1, 1))).keep.shape == (4, 1)


@pytest.mark.parametrize("lengths", [(5, 1, 3), (5, 5, 5)])
def test_mask_tells_samples_from_time(rng: np.random.Generator, lengths: Any) -> None:
    batch = rng.normal(size=(5, 3, N_NEURONS)).astype(np.float32)
    mask = np.arange(5) < np.array(lengths)[:, None]
    alone = [batch[:length, at] for at, length in enumerate(lengths)]
    assert masked_counts([(batch, mask)], SAMPLINGS[1]) == counts_alone(alone, SAMPLINGS[1])


def parts_of(probes: MaskedProbes, shape: tuple[int, ...], mask: Any) -> list[tuple[int, ...]]:
    values = np.zeros(shape, np.float32)
    return [p.shape for p, *_ in probes.parts("layer", values, -1, 0, MaskedSamples(mask))]


MASK = np.arange(6) < np.array([6, 2, 3])[:, None]


@pytest.mark.parametrize("shape", [(3, 7, 4), (9, 4), (3, 2, 3, 4)])
def test_layer_that_the_mask_does_not_fit_is_counted_whole_and_told_of(shape: Any) -> None:
    probes = MaskedProbes()
    for _ in range(2):
        assert parts_of(probes, shape, MASK) == [shape]
    (text,) = probes.warnings().values()
    assert f"doesn't fit the positions of layer {shape}, so" in text
    assert "mask=(name, batch) -> mask" in text
    assert probes.warnings(without=["layer"]) == {}


def test_one_state_for_each_sample_is_of_no_position() -> None:
    probes = MaskedProbes()
    assert parts_of(probes, (3, 4), MASK) == [(3, 4)]
    assert parts_of(probes, (3, 1, 4), MASK) == [(3, 1, 4)]
    assert probes.warnings() == {}


def test_mask_that_fits_several_axes_goes_where_it_went_before() -> None:
    heads_first = (3, 8, 6, 4)
    square = (3, 6, 6, 4)
    probes = MaskedProbes()
    assert parts_of(probes, heads_first, MASK)[0] == (1, 8, 2, 4)
    assert [shape[2] for shape in parts_of(probes, square, MASK)] == [2, 3, 6]
    assert probes.warnings() == {}
    probes = MaskedProbes()
    assert [shape[1] for shape in parts_of(probes, square, MASK)] == [2, 3, 6]
    (text,) = probes.warnings().values()
    assert "fits several axes of layer (3, 6, 6, 4), axis 1 or 2; the first was taken" in text


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        ({"a": 1}, TypeError, "mask takes a key of the batch"),
        (["a", "b"], TypeError, "mask takes a key of the batch"),
        (1j, TypeError, "mask takes a key of the batch"),
        ("", ValueError, "mask is an empty key"),
        (3, ValueError, "has an axis of positions; got a single number"),
        ([[0.0, -np.inf]], ValueError, "numbers below 0.*give mask == 0"),
    ],
)
def test_what_is_no_mask_is_refused(mask: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        check_mask(mask)


@pytest.mark.parametrize("mask", [None, "attention_mask", len, [[True, False]], np.ones((2, 3))])
def test_masks_are_taken(mask: Any) -> None:
    assert check_mask(mask) is mask
