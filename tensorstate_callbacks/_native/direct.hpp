// States of few neurons: the state is the place of its count.
#pragma once

#include <algorithm>
#include <cstring>

#include "bits.hpp"
#include "engine.hpp"
#include "kernel.hpp"
#include "memory.hpp"
#include "spilled.hpp"

namespace tensorstate {

// A byte a state, so that the counts of 20 neurons fit into a cache of a megabyte.
class DirectCounts {
    struct Hash {
        std::size_t operator()(std::uint64_t state) const noexcept { return mixed(state); }
    };

  public:
    static constexpr std::size_t kMostNeurons = 22;

    static std::size_t nbytes_for(std::size_t neurons) noexcept { return std::size_t{1} << neurons; }

    DirectCounts() = default;
    DirectCounts(std::size_t neurons, const Kernel& kernel)
        : sift_(kernel.sift), small_(allocate<std::uint8_t>(nbytes_for(neurons))),
          size_(nbytes_for(neurons)) {}

    bool used() const noexcept { return size_ != 0; }
    std::size_t nbytes() const noexcept { return size_ + counts_.nbytes(); }

    // Found when asked for: to tell new states from old ones would slow down counting.
    std::size_t distinct() const noexcept {
        const std::uint8_t* const small = small_.get();
        std::size_t distinct = 0;
        for (std::size_t state = 0; state < size_; ++state) distinct += small[state] != 0;
        return distinct;
    }

    std::size_t add(const Rows& rows) noexcept {
        return rows.counts == nullptr ? add_once(rows) : add_counted(rows);
    }

    void remove(const Rows& rows) noexcept {
        for (std::size_t i = 0; i < rows.size; ++i) {
            const std::uint64_t state = rows.words[i];
            counts_.subtract(small_[state], state, rows.counts == nullptr ? 1 : rows.counts[i]);
        }
    }

    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept {
        std::size_t found = 0;
        while (cursor < size_ && found < room.size) {
            if (cursor % 8 == 0 && none_of_eight(cursor)) {
                cursor += 8;
                continue;
            }
            if (small_[cursor] != 0) {
                if (room.words != nullptr) room.words[found] = cursor;
                room.counts[found++] = counts_.value(small_[cursor], cursor);
            }
            ++cursor;
        }
        return found;
    }

  private:
    // One state is often most of a layer's, and neighbours are often alike; a count that was just
    // stored is slow to read again. So the prevailing state is counted as one number, then where a
    // run of others begins, and then the rest of each run as one.
    std::size_t add_once(const Rows& rows) noexcept {
        std::uint32_t runs[kMostAtOnce];
        std::uint64_t repeats[kMostAtOnce / 64];
        const std::size_t whole = rows.size / 64 * 64;
        for (std::size_t start = 0; start < whole; start += kMostAtOnce) {
            const std::size_t size = std::min(kMostAtOnce, whole - start);
            const std::uint64_t* const states = rows.words + start;
            const Sifted sifted = sift_(states, size, prevailing_, runs, repeats);
            if (!add_sifted(sifted, states, runs, repeats, size)) return start;
            const std::size_t repeated = size - sifted.runs - sifted.prevailing;
            if (repeated > sifted.prevailing) {
                prevailing_ = static_cast<std::uint32_t>(states[first_one(repeats)]);
            }
        }
        for (std::size_t i = whole; i < rows.size; ++i) {
            if (!counts_.add(small_[rows.words[i]], rows.words[i], 1)) return i;
        }
        return rows.size;
    }

    // False, and nothing changed, for want of memory.
    bool add_sifted(const Sifted& sifted, const std::uint64_t* states, const std::uint32_t* runs,
                    const std::uint64_t* repeats, std::size_t size) noexcept {
        std::uint8_t& prevailing = small_[prevailing_];
        if (sifted.prevailing != 0 && !counts_.add(prevailing, prevailing_, sifted.prevailing)) {
            return false;
        }
        const std::size_t counted = count_each(runs, sifted.runs);
        if (counted == sifted.runs && count_repeats(states, repeats, size)) return true;
        for (std::size_t i = 0; i < counted; ++i) counts_.subtract(small_[runs[i]], runs[i], 1);
        if (sifted.prevailing != 0) counts_.subtract(prevailing, prevailing_, sifted.prevailing);
        return false;
    }

    static std::size_t first_one(const std::uint64_t* bits) noexcept {
        std::size_t word = 0;
        while (bits[word] == 0) ++word;
        return 64 * word + lowest_bit(bits[word]);
    }

    // How many of the states were counted: fewer for want of memory.
    std::size_t count_each(const std::uint32_t* states, std::size_t size) noexcept {
        // A local: a member could be one of the counts, for all a compiler knows.
        std::uint8_t* const small = small_.get();
        std::size_t i = 0;
        for (; i + 4 <= size; i += 4) {
            // Counts rarely run over: those that may have are taken back and counted with care.
            const std::uint8_t a = ++small[states[i]], b = ++small[states[i + 1]];
            const std::uint8_t c = ++small[states[i + 2]], d = ++small[states[i + 3]];
            if (a && b && c && d) continue;
            for (std::size_t n = i; n < i + 4; ++n) --small[states[n]];
            for (std::size_t n = i; n < i + 4; ++n) {
                if (!counts_.add(small[states[n]], states[n], 1)) return n;
            }
        }
        for (; i < size; ++i) {
            if (!counts_.add(small[states[i]], states[i], 1)) return i;
        }
        return size;
    }

    // Counts the states whose bit is set; false, and nothing changed, for want of memory.
    bool count_repeats(const std::uint64_t* states, const std::uint64_t* repeats,
                       std::size_t size) noexcept {
        for (std::size_t start = 0; start < size; start += 64) {
            for (std::uint64_t left = repeats[start / 64]; left != 0;) {
                const Ones ones = first_ones(left);
                const std::uint64_t state = states[start + ones.first];
                if (!counts_.add(small_[state], state, ones.size)) {
                    undo_repeats(states, repeats, start, repeats[start / 64] ^ left);
                    return false;
                }
                left &= left + (std::uint64_t{1} << ones.first);
            }
        }
        return true;
    }

    void undo_repeats(const std::uint64_t* states, const std::uint64_t* repeats, std::size_t size,
                      std::uint64_t last) noexcept {
        for (std::size_t i = 0; i < size + 64; ++i) {
            const std::uint64_t word = i < size ? repeats[i / 64] : last;
            if (word >> i % 64 & 1) counts_.subtract(small_[states[i]], states[i], 1);
        }
    }

    std::size_t add_counted(const Rows& rows) noexcept {
        std::size_t i = 0;
        while (i < rows.size && counts_.add(small_[rows.words[i]], rows.words[i], rows.counts[i])) {
            ++i;
        }
        return i;
    }

    static constexpr std::size_t kMostAtOnce = 512;

    // Most states of most layers were never seen.
    bool none_of_eight(std::size_t first) const noexcept {
        std::uint64_t counts = 1;
        if (first + 8 <= size_) std::memcpy(&counts, small_.get() + first, 8);
        return counts == 0;
    }

    Sift sift_ = nullptr;
    std::uint32_t prevailing_ = 0;  // a guess: it costs time where it is wrong
    Block<std::uint8_t> small_;
    std::size_t size_ = 0;
    SpilledCounts<std::uint8_t, std::uint64_t, Hash> counts_;
};

}  // namespace tensorstate
