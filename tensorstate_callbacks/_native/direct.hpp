// States of few neurons: the state is the place of its count.
#pragma once

#include <algorithm>
#include <cstring>

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
        const ShortRows states = short_rows(rows);
        return rows.counts == nullptr ? add_once(states) : add_counted(states, rows.counts);
    }

    void remove(const Rows& rows) noexcept {
        const ShortRows states = short_rows(rows);
        for (std::size_t i = 0; i < rows.size; ++i) {
            subtract(state_at(states, i), rows.counts == nullptr ? 1 : rows.counts[i]);
        }
    }

    std::size_t read(std::size_t& cursor, const Room& room) const noexcept {
        std::size_t found = 0;
        while (cursor < size_ && found < room.size) {
            if (cursor % 8 == 0 && none_of_eight(cursor)) {
                cursor += 8;
                continue;
            }
            if (small_[cursor] != 0) {
                if (room.words != nullptr) room.words[found] = cursor;
                room.counts[found++] = value(static_cast<std::uint32_t>(cursor));
            }
            ++cursor;
        }
        return found;
    }

  private:
    ShortRows short_rows(const Rows& rows) const noexcept {
        const auto mask = static_cast<std::uint32_t>(size_ - 1);
        if (rows.words == nullptr) return ShortRows{rows.packed, rows.bytes, rows.size, mask};
        return ShortRows{reinterpret_cast<const std::uint8_t*>(rows.words), 8, rows.size, mask};
    }

    TS_INLINE static std::uint32_t state_at(const ShortRows& rows, std::size_t i) noexcept {
        std::uint32_t state = 0;
        std::memcpy(&state, rows.rows + i * rows.bytes, std::min(rows.bytes, sizeof state));
        return state & rows.mask;
    }

    // One state is often most of a layer's, and neighbours are often alike; a count that was just
    // stored is slow to read again. So the prevailing state is counted as one number, then those
    // of the others where a run begins, and then the rest of the runs.
    std::size_t add_once(const ShortRows& rows) noexcept {
        std::uint32_t begin[kMostSifted], again[kMostSifted];
        const std::size_t whole = rows.count / 16 * 16;
        for (std::size_t start = 0; start < whole; start += kMostSifted) {
            const ShortRows some{rows.rows + start * rows.bytes, rows.bytes,
                                 std::min(kMostSifted, whole - start), rows.mask};
            Sifted sifted{begin, again, 0, 0};
            sift_(some, prevailing_, sifted);
            const std::size_t prevail = some.count - sifted.n_begin - sifted.n_again;
            if (!add_sifted(sifted, prevail)) return start;
            if (sifted.n_again > prevail) let_prevail(again[0]);
        }
        for (std::size_t i = whole; i < rows.count; ++i) {
            if (!add(state_at(rows, i), 1)) return i;
        }
        return rows.count;
    }

    std::size_t add_counted(const ShortRows& rows, const std::uint64_t* counts) noexcept {
        std::size_t i = 0;
        while (i < rows.count && add(state_at(rows, i), counts[i])) ++i;
        return i;
    }

    // False, and nothing changed, for want of memory.
    bool add_sifted(const Sifted& sifted, std::size_t prevail) noexcept {
        if (prevail != 0 && !add_prevailing(prevail)) return false;
        const std::size_t begun = count_each(sifted.begin, sifted.n_begin);
        std::size_t repeated = 0;
        if (begun == sifted.n_begin) {
            // Few are counted sooner than runs of them are found.
            repeated = sifted.n_again < kMostSifted / 8 ? count_each(sifted.again, sifted.n_again)
                                                        : count_runs(sifted.again, sifted.n_again);
            if (repeated == sifted.n_again) return true;
        }
        for (std::size_t i = 0; i < begun; ++i) subtract(sifted.begin[i], 1);
        for (std::size_t i = 0; i < repeated; ++i) subtract(sifted.again[i], 1);
        if (prevail != 0) subtract(prevailing_, prevail);
        return false;
    }

    // How many of the states were counted: fewer for want of memory.
    std::size_t count_each(const std::uint32_t* states, std::size_t size) noexcept {
        // A local: a member could be one of the counts, for all a compiler knows.
        std::uint8_t* const small = small_.get();
        const auto fails = [&](std::size_t i) {
            return ++small[states[i]] == 0 && !carry(states[i]);
        };
        std::size_t i = 0;
        for (; i + 4 <= size; i += 4) {
            if (fails(i)) return i;
            if (fails(i + 1)) return i + 1;
            if (fails(i + 2)) return i + 2;
            if (fails(i + 3)) return i + 3;
        }
        for (; i < size; ++i) {
            if (fails(i)) return i;
        }
        return size;
    }

    std::size_t count_runs(const std::uint32_t* states, std::size_t size) noexcept {
        for (std::size_t start = 0, end = 0; start < size; start = end) {
            while (end < size && states[end] == states[start]) ++end;
            if (!add(states[start], end - start)) return start;
        }
        return size;
    }

    // Once more with care: one more was more than a byte holds.
    TS_NOINLINE bool carry(std::uint32_t state) noexcept {
        --small_[state];
        return add(state, 1);
    }

    TS_INLINE bool add(std::uint32_t state, std::uint64_t count) noexcept {
        return counts_.add(small_[state], state, count);
    }
    void subtract(std::uint32_t state, std::uint64_t count) noexcept {
        const std::uint64_t more = state == prevailing_ ? std::min(more_, count) : 0;
        more_ -= more;
        if (count != more) counts_.subtract(small_[state], state, count - more);
    }
    std::uint64_t value(std::uint32_t state) const noexcept {
        return counts_.value(small_[state], state) + (state == prevailing_ ? more_ : 0);
    }

    // Its byte tells only that it was seen.
    bool add_prevailing(std::uint64_t count) noexcept {
        if (small_[prevailing_] == 0) return add(prevailing_, count);
        more_ += count;
        return true;
    }
    void let_prevail(std::uint32_t state) noexcept {
        if (more_ != 0 && !add(prevailing_, more_)) return;
        more_ = 0;
        prevailing_ = state;
    }

    // Most states of most layers were never seen.
    bool none_of_eight(std::size_t first) const noexcept {
        std::uint64_t counts = 1;
        if (first + 8 <= size_) std::memcpy(&counts, small_.get() + first, 8);
        return counts == 0;
    }

    Sift sift_ = nullptr;
    std::uint32_t prevailing_ = 0;  // a guess: it costs time where it is wrong
    std::uint64_t more_ = 0;        // of the prevailing state, beside its count
    Block<std::uint8_t> small_;
    std::size_t size_ = 0;
    SpilledCounts<std::uint8_t, std::uint64_t, Hash> counts_;
};

}  // namespace tensorstate
