// What is read out of tables of states: a sorted snapshot, the spectrum of counts, firings per neuron.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace tensorstate {

using Words = std::vector<std::uint64_t>;

struct Snapshot {
    Words rows;  // bytes, ceil(neurons / 8) a state, padded to whole words at the end
    Words counts;
};

struct Spectrum {
    Words values, multiplicities;
};

// Copies all distinct states, sorted by their bytes.
inline Snapshot sorted_snapshot(const States& states, std::size_t neurons) {
    const std::size_t size = states.distinct(), words = words_of(neurons);
    const std::size_t bytes = (neurons + 7) / 8;
    Words rows(size * words), counts(size);
    read_all(states, words, rows.data(), counts.data());

    Snapshot snapshot{Words((size * bytes + 7) / 8), Words(size)};
    char* target = reinterpret_cast<char*>(snapshot.rows.data());
    if (words == 1) {
        // The order of bytes is the order of numbers with their bytes swapped.
        std::vector<std::pair<std::uint64_t, std::uint64_t>> numbers(size);
        for (std::size_t i = 0; i < size; ++i) numbers[i] = {TS_SWAP_BYTES(rows[i]), counts[i]};
        std::sort(numbers.begin(), numbers.end());
        for (std::size_t i = 0; i < size; ++i) {
            const std::uint64_t row = TS_SWAP_BYTES(numbers[i].first);
            std::memcpy(target + i * bytes, &row, bytes);
            snapshot.counts[i] = numbers[i].second;
        }
        return snapshot;
    }
    std::vector<std::size_t> order(size);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return std::memcmp(&rows[a * words], &rows[b * words], bytes) < 0;
    });
    for (std::size_t i = 0; i < size; ++i) {
        std::memcpy(target + i * bytes, &rows[order[i] * words], bytes);
        snapshot.counts[i] = counts[order[i]];
    }
    return snapshot;
}

// How many distinct states have each count. Most counts are small: those need no sorting.
inline Spectrum spectrum_of(const States& states) {
    constexpr std::size_t small = 4096, block = 1024;
    Words dense(small), large, counts(block);
    std::size_t cursor = 0;
    while (const std::size_t size = states.read(cursor, Room{nullptr, counts.data(), block})) {
        for (std::size_t i = 0; i < size; ++i) {
            if (counts[i] < small) {
                ++dense[counts[i]];
            } else {
                large.push_back(counts[i]);
            }
        }
    }
    std::sort(large.begin(), large.end());

    Spectrum spectrum;
    for (std::size_t value = 1; value < small; ++value) {
        if (dense[value] == 0) continue;
        spectrum.values.push_back(value);
        spectrum.multiplicities.push_back(dense[value]);
    }
    for (const std::uint64_t value : large) {
        if (spectrum.values.empty() || spectrum.values.back() != value) {
            spectrum.values.push_back(value);
            spectrum.multiplicities.push_back(0);
        }
        ++spectrum.multiplicities.back();
    }
    return spectrum;
}

// Firings per neuron follow from the counts of the states: no pass over activations is needed.
inline Words fired_of(const States& states, std::size_t neurons) {
    constexpr std::size_t most_words = 64;  // a megabyte of histograms, one for each byte of a row
    const std::size_t words = words_of(neurons);
    const std::size_t block = std::max<std::size_t>(1, 32768 / words);
    Words fired(64 * words), rows(block * words), counts(block);
    Words histograms(std::min(words, most_words) * 8 * 256);
    for (std::size_t start = 0; start < words; start += most_words) {
        const std::size_t group = 8 * std::min(most_words, words - start);
        std::fill(histograms.begin(), histograms.end(), 0);
        std::size_t cursor = 0;
        while (const std::size_t size =
                   states.read(cursor, Room{rows.data(), counts.data(), block})) {
            for (std::size_t i = 0; i < size; ++i) {
                const auto* row =
                    reinterpret_cast<const unsigned char*>(&rows[i * words + start]);
                for (std::size_t byte = 0; byte < group; ++byte) {
                    histograms[256 * byte + row[byte]] += counts[i];
                }
            }
        }
        for (std::size_t byte = 0; byte < group; ++byte) {
            for (std::size_t value = 0; value < 256; ++value) {
                const std::uint64_t count = histograms[256 * byte + value];
                std::uint64_t* target = &fired[64 * start + 8 * byte];
                for (std::size_t bit = 0; bit < 8; ++bit) target[bit] += (value >> bit & 1) * count;
            }
        }
    }
    fired.resize(neurons);
    return fired;
}

}  // namespace tensorstate
