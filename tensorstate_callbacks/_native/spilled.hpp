// Counts of one or two bytes where most stay small: what they cannot hold goes to a side table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>

#include "memory.hpp"

namespace tensorstate {

// A count below kHalf is stored as it is. From there on the top bit of the small count is set, the
// others hold count % kHalf, and count / kHalf stands beside the state's key in the side table.
template <class Small, class Key, class Hash>
class SpilledCounts {
  public:
    static constexpr std::uint64_t kHalf = std::uint64_t{1} << (8 * sizeof(Small) - 1);

    // False, and nothing changed, for want of memory.
    TS_INLINE bool add(Small& small, const Key& key, std::uint64_t count) noexcept {
        if (count >= kHalf - (small & (kHalf - 1))) return add_halves(small, key, count);
        small = static_cast<Small>(small + count);
        return true;
    }

    void subtract(Small& small, const Key& key, std::uint64_t count) noexcept {
        const std::uint64_t left = value(small, key) - count;
        if (small >= kHalf) {
            if (left < kHalf) {
                halves_.erase(key);
            } else {
                halves_.find(key)->second = left / kHalf;
            }
        }
        small = static_cast<Small>(left < kHalf ? left : kHalf | left % kHalf);
    }

    std::uint64_t value(Small small, const Key& key) const noexcept {
        if (small < kHalf) return small;
        return halves_.find(key)->second * kHalf + (small - kHalf);
    }

    std::size_t nbytes() const noexcept {
        return halves_.size() * (sizeof(typename Halves::value_type) + 3 * sizeof(void*)) +
               (halves_.empty() ? 0 : halves_.bucket_count() * sizeof(void*));
    }

  private:
    using Halves = std::unordered_map<Key, std::uint64_t, Hash, std::equal_to<Key>,
                                      Allocator<std::pair<const Key, std::uint64_t>>>;

    TS_NOINLINE bool add_halves(Small& small, const Key& key, std::uint64_t count) noexcept {
        const std::uint64_t rest = small % kHalf + count % kHalf;
        const std::uint64_t halves = count / kHalf + rest / kHalf;
        try {
            halves_[key] += halves;
        } catch (const std::bad_alloc&) {
            return false;
        }
        small = static_cast<Small>(kHalf | rest % kHalf);
        return true;
    }

    Halves halves_;
};

}  // namespace tensorstate
