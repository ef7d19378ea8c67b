// A word of bits in; where its lowest one is out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "platform.hpp"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace tensorstate {

// Of bits that are not all 0.
TS_INLINE std::size_t lowest_bit(std::uint64_t bits) noexcept {
#if defined(_MSC_VER)
    unsigned long place;
    _BitScanForward64(&place, bits);
    return place;
#else
    return static_cast<std::size_t>(__builtin_ctzll(bits));
#endif
}

}  // namespace tensorstate
