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
        : find_runs_(kernel.find_runs), small_(allocate<std::uint8_t>(nbytes_for(neurons))),
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
    // Neighbours are often alike, and a count that was just stored is slow to read again: where a
    // run begins is counted first, and then the rest of each run as one.
    std::size_t add_once(const Rows& rows) noexcept {
        std::uint32_t runs[kMostAtOnce];
        std::uint64_t repeats[kMostAtOnce / 64];
        const std::size_t whole = rows.size / 64 * 64;
        for (std::size_t start = 0; start < whole; start += kMostAtOnce) {
            const std::size_t size = std::min(kMostAtOnce, whole - start);
            const std::uint64_t* const states = rows.words + start;
            const std::size_t found = find_runs_(states, size, runs, repeats);
            const std::size_t counted = count_each(runs, found);
            if (counted == found && count_repeats(states, repeats, size)) continue;
            for (std::size_t i = 0; i < counted; ++i) counts_.subtract(small_[runs[i]], runs[i], 1);
            return start;
        }
        for (std::size_t i = whole; i < rows.size; ++i) {
            if (!counts_.add(small_[rows.words[i]], rows.words[i], 1)) return i;
        }
        return rows.size;
    }

    // How many of the states were counted: fewer for want of memory.
    std::size_t count_each(const std::uint32_t* states, std::size_t size) noexcept {
        // A local: a member could be one of the counts, for all a compiler knows.
        std::uint8_t* const small = small_.get();
        for (std::size_t i = 0; i < size; ++i) {
            std::uint8_t& count = small[states[i]];
            if (++count != 0) continue;
            count = 255;
            if (!counts_.add(count, states[i], 1)) return i;
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

    FindRuns find_runs_ = nullptr;
    Block<std::uint8_t> small_;
    std::size_t size_ = 0;
    SpilledCounts<std::uint8_t, std::uint64_t, Hash> counts_;
};

}  // namespace tensorstate
