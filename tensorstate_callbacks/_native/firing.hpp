// Whether one element fires: its bits in, a flag out. firing.py says why this is `value > threshold`.
#pragma once

#include <cstdint>
#include <limits>

#include "platform.hpp"

namespace tensorstate {

struct Firing {
    std::uint64_t first;  // the smallest key that fires
    std::uint64_t span;   // how many keys fire
};

template <class Bits, bool Folded>
TS_INLINE bool fires(Bits bits, Bits first, Bits span) {
    if constexpr (Folded) {
        const Bits sign = static_cast<Bits>(bits >> (8 * sizeof(Bits) - 1));
        const Bits magnitude = static_cast<Bits>(bits & (std::numeric_limits<Bits>::max() >> 1));
        const Bits negative = static_cast<Bits>(Bits{0} - sign);
        bits = static_cast<Bits>((magnitude ^ negative) + sign);
    }
    return static_cast<Bits>(bits - first) < span;
}

}  // namespace tensorstate
