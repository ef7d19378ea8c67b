// States of few neurons: the state is the place of its count.
#pragma once

#include "engine.hpp"
#include "memory.hpp"

namespace tensorstate {

class DirectCounts {
  public:
    static constexpr std::size_t kMostNeurons = 22;

    static std::size_t nbytes_for(std::size_t neurons) noexcept {
        return sizeof(std::uint64_t) << neurons;
    }

    DirectCounts() = default;
    explicit DirectCounts(std::size_t neurons)
        : counts_(allocate<std::uint64_t>(std::size_t{1} << neurons)),
          size_(std::size_t{1} << neurons) {}

    bool used() const noexcept { return size_ != 0; }
    std::size_t nbytes() const noexcept { return size_ * sizeof(std::uint64_t); }
    std::size_t distinct() const noexcept { return distinct_; }

    void add(const Rows& rows) noexcept {
        // Locals: a member could be one of the counts, for all a compiler knows.
        std::uint64_t* const counts = counts_.get();
        std::size_t added = 0;
        for (std::size_t i = 0; i < rows.size; ++i) {
            std::uint64_t& count = counts[rows.words[i]];
            added += count == 0;
            count += rows.counts == nullptr ? 1 : rows.counts[i];
        }
        distinct_ += added;
    }

    void double_counts() noexcept {
        for (std::size_t i = 0; i < size_; ++i) counts_[i] *= 2;
    }

    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept {
        std::size_t found = 0;
        for (; cursor < size_ && found < room.size; ++cursor) {
            if (counts_[cursor] == 0) continue;
            if (room.words != nullptr) room.words[found] = cursor;
            room.counts[found++] = counts_[cursor];
        }
        return found;
    }

  private:
    Block<std::uint64_t> counts_;
    std::size_t size_ = 0, distinct_ = 0;
};

}  // namespace tensorstate
