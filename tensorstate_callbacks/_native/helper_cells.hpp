// Counts of the threads that help, until they are added to the counter's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "memory.hpp"

namespace tensorstate {

// Kept for the next call, of whichever counter: fresh pages would cost more than counting. All are
// zeros between calls, and one call at a time has them.
class HelperCells {
  public:
    // `size`: counts of each helper.
    HelperCells(std::size_t helpers, std::size_t size)
        : lock_(mutex, std::try_to_lock), helpers_(helpers), size_(size) {
        if (!lock_.owns_lock() || size > kMostCounts) {
            there_ = false;
            return;
        }
        if (cells.size() < helpers) cells.resize(helpers);
        for (std::size_t helper = 0; helper < helpers; ++helper) {
            Cells& own = cells[helper];
            if (own.size >= size) continue;
            own.counts = allocate<std::uint32_t>(size);
            own.size = size;
        }
    }

    // Whether they can be had.
    bool there() const noexcept { return there_; }
    std::uint32_t* of(std::size_t helper) const noexcept { return cells[helper].counts.get(); }

    void move_to(std::uint32_t* counts) noexcept {
        for (std::size_t helper = 0; helper < helpers_; ++helper) {
            std::uint32_t* const own = of(helper);
            for (std::size_t i = 0; i < size_; ++i) {
                counts[i] += own[i];
                own[i] = 0;
            }
        }
    }

  private:
    struct Cells {
        Block<std::uint32_t> counts;
        std::size_t size = 0;
    };

    static constexpr std::size_t kMostCounts = std::size_t{1} << 18;  // a megabyte

    inline static std::mutex mutex;
    inline static Vector<Cells> cells;

    std::unique_lock<std::mutex> lock_;
    std::size_t helpers_, size_;
    bool there_ = true;
};

}  // namespace tensorstate
