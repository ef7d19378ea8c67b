"""What states tell of classes is what NumPy finds, and shuffled labels are shuffled by sample."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from class_oracle import Firing, entropy, of_unit, packed, shuffled, told
from lenet5_torch import digits, trained_lenet5

from tensorstate_callbacks.metrics import class_tables
from tensorstate_callbacks.metrics.class_sums import MOST_PAIRED
from tensorstate_callbacks.metrics.class_tables import _shuffled_places
from tensorstate_callbacks.metrics.classes import ClassMetrics, class_metrics
from tensorstate_callbacks.states.class_counter import ClassCounter
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.partition import partition_states

Labels = npt.NDArray[np.int64]
PAIRS = ("overlap", "divergence")


def metrics(fires: Firing, labels: Labels, group_size: int | None = None) -> ClassMetrics:
    counter = ClassCounter(fires.shape[-1], group_size)
    counter.update_packed(packed(fires), labels)
    return class_metrics(counter)


def alike(rng: np.random.Generator, n_samples: int, n_positions: int, n_neurons: int) -> Firing:
    """Return states of samples whose positions are alike, as those of images are."""
    means = rng.normal(size=(n_samples, 1, n_neurons))
    return means + rng.normal(size=(n_samples, n_positions, n_neurons)) > 0.8


@pytest.mark.parametrize("n_positions", [1, 9])
@pytest.mark.parametrize(
    ("n_neurons", "group_size"), [(6, None), (20, None), (70, None), (20, 8), (10, 3), (7, 22)]
)
def test_figures_are_those_of_numpy(
    rng: np.random.Generator, n_neurons: int, group_size: int | None, n_positions: int
) -> None:
    fires, labels = alike(rng, 60, n_positions, n_neurons), rng.choice([-3, 0, 4], 60)
    found, expected = metrics(fires, labels, group_size), told(fires, labels, group_size)
    assert found.labels.tolist() == [-3, 0, 4]
    for name in ("n_states", "n_distinct"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    for name in ("entropy", "information", *PAIRS):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-11)
    np.testing.assert_allclose(found.efficiency, expected.entropy / n_neurons, atol=1e-12)
    assert found.label_entropy == pytest.approx(entropy(np.unique(labels, return_counts=True)[1]))


@pytest.mark.parametrize("n_positions", [1, 9])
@pytest.mark.parametrize("group_size", [None, 5])
def test_shuffled_figures_are_those_of_labels_dealt_anew(
    rng: np.random.Generator, group_size: int | None, n_positions: int
) -> None:
    fires = alike(rng, 400, n_positions, 12)
    labels = rng.choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])
    # Of samples that have to do with their labels, which a shuffling must not see.
    fires[labels == 1, :, :3] = True
    found = metrics(fires, labels, group_size)
    dealt = shuffled(fires, labels, rng, 40, group_size)
    # As one more of them: within what they differ by, and far from what is not shuffled.
    for name in ("entropy", "information", *PAIRS):
        each = np.array([getattr(its, name) for its in dealt])
        mean, spread = each.mean(axis=0), each.std(axis=0).mean()
        off = np.abs(getattr(found, f"shuffled_{name}") - mean)
        assert off.mean() < 3 * spread + 0.004 * np.abs(mean).mean(), name
    assert found.information > found.shuffled_information + 0.05


def test_the_mean_over_layers_of_shuffled_figures_is_that_of_dealing_anew(
    rng: np.random.Generator,
) -> None:
    """States that nearly all samples show tell dealing from drawing, which would add to them."""
    found, dealt = [], []
    labels = np.arange(40) % 4
    for _ in range(60):
        # With neurons that make other states of them in each layer, which are shuffled otherwise.
        fires = np.repeat(rng.random((1, 1, 20)) < 0.5, 40 * 30, axis=1).reshape(40, 30, 20)
        fires[..., :3] = rng.random((40, 30, 3)) < 0.5
        found.append(metrics(fires, labels).shuffled_information)
        dealt += [its.information for its in shuffled(fires, labels, rng, 3)]
    # Drawn with replacement, they would be 2.6 times as high.
    assert np.mean(found) == pytest.approx(np.mean(dealt), rel=0.1)


def test_samples_of_many_lengths_are_shuffled_as_samples(rng: np.random.Generator) -> None:
    """As masks leave them: of other lengths in one class than in another."""
    found, dealt = [], []
    for _ in range(20):
        labels = np.repeat([0, 1, 2], 30)
        lengths = np.where(labels == 0, 12, 3) + rng.integers(0, 3, 90)
        means = rng.normal(size=(90, 8))
        samples = [m + rng.normal(size=(n, 8)) > 0.5 for m, n in zip(means, lengths, strict=True)]
        counter = ClassCounter(8)
        for sample, label in zip(samples, labels, strict=True):
            counter.update_packed(packed(sample), np.array([label]))
        its = class_metrics(counter)
        rows = np.concatenate(samples)
        whole = of_unit(rows, np.repeat(labels, lengths))
        assert its.information == pytest.approx(whole.information, abs=1e-11)
        assert its.n_states.tolist() == whole.n_states.tolist()
        found.append([its.shuffled_information, its.mean_shuffled_divergence])
        for _ in range(3):
            shuffled_rows = of_unit(rows, np.repeat(rng.permutation(labels), lengths))
            dealt.append([shuffled_rows.information, shuffled_rows.divergence.sum() / 6])
    np.testing.assert_allclose(np.mean(found, axis=0), np.mean(dealt, axis=0), rtol=0.03)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 1025])
def test_a_shuffling_is_a_permutation_and_any_is_as_likely(size: int) -> None:
    n = 3000
    seeds = np.arange(n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    places = np.tile(np.arange(size), n)
    found = _shuffled_places(places, np.repeat(seeds, size), size).reshape(n, size)
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(size), (n, 1)))
    # Each place is as often anywhere; of uniform numbers the mean has this deviation.
    deviation = np.sqrt((size**2 - 1) / 12 / n)
    assert (np.abs(found.mean(axis=0) - (size - 1) / 2) <= 5 * deviation).all()


def planted(rng: np.random.Generator) -> tuple[Firing, Labels]:
    """Return states of 5 classes of 200 samples: 0 and 1 are alike, 4 has states of its own."""
    labels = np.repeat(np.arange(5), 200)
    fires = rng.random((1000, 4, 8)) < 0.5
    fires[..., :3] = False
    fires[labels >= 2, :, 2] = rng.random((600, 4)) < 0.8
    fires[labels == 4, :, 0] = True
    return fires, labels


def test_planted_classes_are_found(rng: np.random.Generator) -> None:
    found = metrics(*planted(rng))
    divergence, by_chance = found.divergence, found.shuffled_divergence
    assert divergence is not None
    assert by_chance is not None
    assert found.overlap is not None
    # A class with states of its own shares none.
    assert (divergence[4, :4] == 1).all()
    assert (found.overlap[4, :4] == 0).all()
    assert (found.overlap[:4, 4] == 0).all()
    assert divergence[0, 2] > 3 * by_chance[0, 2] > 0
    # Two alike are as far apart as if their labels were shuffled.
    (fires, labels) = planted(rng)
    both = metrics(fires[labels < 2], labels[labels < 2])
    assert both.mean_divergence is not None
    assert both.mean_divergence == pytest.approx(both.mean_shuffled_divergence, rel=0.4)
    assert divergence[0, 1] < divergence[0, 2] / 3
    assert np.array_equal(divergence, divergence.T)
    assert (np.diag(divergence) == 0).all()
    assert (np.diag(found.overlap) == 1).all()


def test_labels_that_say_nothing_look_shuffled(rng: np.random.Generator) -> None:
    fires = alike(rng, 600, 6, 8)
    found = metrics(fires, rng.integers(0, 3, 600))
    assert found.mean_divergence is not None
    assert found.mean_divergence == pytest.approx(found.mean_shuffled_divergence, rel=0.25)
    assert found.information == pytest.approx(found.shuffled_information, rel=0.25)


@pytest.mark.parametrize("group_size", [None, 3])
def test_no_bit_depends_on_batches_order_or_on_who_has_which_states(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, group_size: int | None
) -> None:
    fires, labels = alike(rng, 70, 5, 10), rng.integers(0, 4, 70)
    expected = metrics(fires, labels, group_size)
    counter = ClassCounter(10, group_size)
    order = rng.permutation(70)
    for at in range(0, 70, 3):
        some = order[at : at + 3]
        counter.update_packed(packed(fires[some]), labels[some])
    assert class_metrics(counter) == expected
    # In blocks of a few states and draws, too.
    monkeypatch.setattr("tensorstate_callbacks.metrics.class_sums._BLOCK", 7)
    monkeypatch.setattr(class_tables, "_DRAWS", 11)
    assert class_metrics(counter) == expected
    parts = shared_out(counter, 3)
    assert all(part.n_rows for part in parts)
    assert of_parts(parts) == [expected] * 3


def shared_out(counter: ClassCounter, n_parts: int) -> list[ClassCounter]:
    """Return counters of which each has all of some states."""
    rows, counts = counter.joint.snapshot()
    table, sizes = partition_states(rows, counts, n_parts, counter.key_bytes)
    width = rows.shape[1]
    parts = []
    for part in np.split(table, np.cumsum(sizes)[:-1]):
        joint = StateCounter(counter.joint.n_neurons)
        keys = np.ascontiguousarray(part[:, :-1]).view(np.uint8)[:, :width]
        joint.add_counts(np.ascontiguousarray(keys), part[:, -1].astype(np.uint64))
        parts.append(ClassCounter.of_joint(10, counter.group_size, joint, dict(counter.n_samples)))
    return parts


def of_parts(parts: list[ClassCounter]) -> list[ClassMetrics]:
    """Return what each process finds whose arrays are added to those of the others.

    All find the same, so the first pass takes down what each has to add.
    """
    summed: list[npt.NDArray[np.int64]] = []
    for step in range(2):
        given = []
        for part in parts:
            own: list[npt.NDArray[np.int64]] = []

            def add(
                array: npt.NDArray[np.int64], own: list[npt.NDArray[np.int64]] = own
            ) -> npt.NDArray[np.int64]:
                own.append(array)
                return summed[len(own) - 1] if len(own) <= len(summed) else np.maximum(array, 1)

            class_metrics(part, add=add)
            given.append(own[step])
        summed.append(np.sum(given, axis=0))
    found = []
    for part in parts:
        left = iter(summed)
        found.append(class_metrics(part, add=lambda own, left=left: next(left)))  # type: ignore[misc]
    return found


def test_many_classes_have_no_pairs(rng: np.random.Generator) -> None:
    n = MOST_PAIRED + 1
    fires, labels = rng.random((3 * n, 2, 5)) < 0.5, np.arange(3 * n) % n
    found = metrics(fires, labels)
    assert (found.overlap, found.divergence, found.mean_divergence) == (None,) * 3
    assert found.information == pytest.approx(told(fires, labels).information, abs=1e-11)
    assert ClassMetrics.from_dict(found.to_dict()) == found
    paired = metrics(fires, labels % MOST_PAIRED)
    assert paired.divergence is not None
    np.testing.assert_allclose(
        paired.divergence, told(fires, labels % MOST_PAIRED).divergence, atol=1e-11
    )


def test_one_class_tells_nothing(rng: np.random.Generator) -> None:
    found = metrics(rng.random((5, 3, 4)) < 0.5, np.full(5, 7))
    assert (found.information, found.shuffled_information, found.label_entropy) == (0, 0, 0)
    assert found.mean_divergence is None
    assert found.entropy == pytest.approx(found.shuffled_entropy)
    with pytest.raises(ValueError, match="no states were counted by class"):
        class_metrics(ClassCounter(3))


def test_trained_lenet5_has_the_reference_information() -> None:
    """Of 5,000 digits: 3.15 bits in conv_2, of which 3.02 come of having seen few states."""
    model, (images, labels) = trained_lenet5(), digits()
    counter, seen = ClassCounter(50), []
    model.conv_2.register_forward_hook(lambda module, args, output: seen.append(output > 0))
    with torch.inference_mode():
        for batch in images.split(500):
            model(batch)
    fires = torch.cat(seen).permute(0, 2, 3, 1).flatten(1, 2).numpy()
    for part, its in zip(np.split(fires, 10), np.split(labels.numpy(), 10), strict=True):
        counter.update_packed(packed(part), its)
    found = class_metrics(counter)
    assert found.information == pytest.approx(3.1462, abs=1e-4)
    assert found.shuffled_information == pytest.approx(3.0219, abs=1e-3)
    # As `class_oracle.shuffled` finds them, in five shufflings 3.0217 to 3.0219 and 0.9483.
    assert found.mean_shuffled_divergence == pytest.approx(0.9483, abs=1e-3)
