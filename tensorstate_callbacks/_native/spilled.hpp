// Counts of one or two bytes where most stay small: what they cannot hold goes to a side table.
#pragma once

#include <cstddef>
#include <cstdint>
#include "side_table.hpp"

namespace tensorstate {

// A small count from kHalf on may be a part only: then what is missing, in units of kHalf, stands
// beside the state's key in the side table.
template <class Small, class Key, class Hash>
class SpilledCounts {
  public:
    static constexpr std::uint64_t kHalf = std::uint64_t{1} << (8 * sizeof(Small) - 1);
    static constexpr std::uint64_t kMost = 2 * kHalf - 1;

    // False, and nothing changed, for want of memory.
    TS_INLINE bool add(Small& small, const Key& key, std::uint64_t count) noexcept {
        if (count > kMost - small) return add_halves(small, key, count);
        small = static_cast<Small>(small + count);
        return true;
    }

    void subtract(Small& small, const Key& key, std::uint64_t count) noexcept {
        const std::uint64_t left = value(small, key) - count, rest = small_part(left);
        if (small >= kHalf) halves_.set(key, (left - rest) / kHalf);
        small = static_cast<Small>(rest);
    }

    std::uint64_t value(Small small, const Key& key) const noexcept {
        return small < kHalf ? small : halves_.value(key) * kHalf + small;
    }

    std::size_t nbytes() const noexcept { return halves_.nbytes(); }

  private:
    static std::uint64_t small_part(std::uint64_t count) noexcept {
        return count < kHalf ? count : kHalf + count % kHalf;
    }

    TS_NOINLINE bool add_halves(Small& small, const Key& key, std::uint64_t count) noexcept {
        // In halves, since the sum of both may be more than 64 bits hold before it is one count.
        const std::uint64_t rest = small % kHalf + count % kHalf;
        const std::uint64_t halves = small / kHalf + count / kHalf + rest / kHalf - 1;
        if (!halves_.add(key, halves)) return false;
        small = static_cast<Small>(kHalf + rest % kHalf);
        return true;
    }

    SideTable<Key, Hash> halves_;
};

}  // namespace tensorstate
