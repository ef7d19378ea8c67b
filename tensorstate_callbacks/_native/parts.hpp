// How the rows of a call are divided among threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "source.hpp"
#include "team.hpp"

#ifndef TS_LEAST_SHARED_LOG2  // fuzzing, whose rows are few, wants less
#define TS_LEAST_SHARED_LOG2 (team.is_ready() ? 16 : 19)
#endif

namespace tensorstate {

// How many threads are to work on so many rows: one where it is done before others could help.
inline std::size_t lanes_for(std::uint64_t rows, std::size_t neurons, std::size_t threads) noexcept {
    const std::uint64_t least = std::uint64_t{1} << TS_LEAST_SHARED_LOG2;  // bits
    // A row takes some time however few its neurons are.
    const std::size_t bits = std::max<std::size_t>(neurons, 32);
    return rows < least / bits ? 1 : std::max<std::size_t>(threads, 1);
}

// Rows in parts of one size, but for the last: so many that no thread waits long for another, each
// of whole runs where these are short.
class Parts {
  public:
    Parts(const Source& source, std::size_t lanes, std::size_t most) : rows_(source.rows()) {
        const std::uint64_t wanted = (rows_ + 4 * lanes - 1) / (4 * lanes);
        size_ = static_cast<std::size_t>(std::clamp<std::uint64_t>(wanted, 1, most));
        const std::size_t run = source.run();
        if (run <= size_) {
            size_ -= size_ % run;
        } else if (size_ > 64) {
            size_ -= size_ % 64;
        }
    }

    std::size_t count() const noexcept {
        return static_cast<std::size_t>((rows_ + size_ - 1) / size_);
    }
    std::size_t size() const noexcept { return size_; }
    std::uint64_t begin(std::size_t part) const noexcept {
        return std::min<std::uint64_t>(rows_, std::uint64_t{part} * size_);
    }
    std::uint64_t end(std::size_t part) const noexcept { return begin(part + 1); }

  private:
    std::uint64_t rows_;
    std::size_t size_;
};

}  // namespace tensorstate
