// States of few neurons: the state is the place of its count.
#pragma once

#include "engine.hpp"
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
    explicit DirectCounts(std::size_t neurons)
        : small_(allocate<std::uint8_t>(nbytes_for(neurons))), size_(nbytes_for(neurons)) {}

    bool used() const noexcept { return size_ != 0; }
    std::size_t nbytes() const noexcept { return size_ + counts_.nbytes(); }
    std::size_t distinct() const noexcept { return distinct_; }

    std::size_t add(const Rows& rows) noexcept {
        // Locals: a member could be one of the counts, for all a compiler knows.
        std::uint8_t* const small = small_.get();
        std::size_t added = 0, i = 0;
        for (; i < rows.size; ++i) {
            const std::uint64_t state = rows.words[i];
            const std::uint64_t count = rows.counts == nullptr ? 1 : rows.counts[i];
            const bool is_new = small[state] == 0;
            if (!counts_.add(small[state], state, count)) break;
            added += is_new;
        }
        distinct_ += added;
        return i;
    }

    void remove(const Rows& rows) noexcept {
        for (std::size_t i = 0; i < rows.size; ++i) {
            const std::uint64_t state = rows.words[i];
            counts_.subtract(small_[state], state, rows.counts == nullptr ? 1 : rows.counts[i]);
            distinct_ -= small_[state] == 0;
        }
    }

    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept {
        std::size_t found = 0;
        for (; cursor < size_ && found < room.size; ++cursor) {
            if (small_[cursor] == 0) continue;
            if (room.words != nullptr) room.words[found] = cursor;
            room.counts[found++] = counts_.value(small_[cursor], cursor);
        }
        return found;
    }

  private:
    Block<std::uint8_t> small_;
    std::size_t size_ = 0, distinct_ = 0;
    SpilledCounts<std::uint8_t, std::uint64_t, Hash> counts_;
};

}  // namespace tensorstate
