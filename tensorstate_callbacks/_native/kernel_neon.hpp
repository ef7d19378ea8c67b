// The kernel for 64-bit ARM processors: all of them have NEON.
#pragma once

#include "kernel_scalar.hpp"

#if TS_ARM
#include <arm_neon.h>

namespace tensorstate::neon {

inline bool runs_here() { return true; }

// 16 bytes as elements: compared, and folded where they are floats. No float is one byte.
template <class Bits>
struct Vector;

template <>
struct Vector<std::uint8_t> {
    using Type = uint8x16_t;
    static TS_INLINE Type all(std::uint64_t value) {
        return vdupq_n_u8(static_cast<std::uint8_t>(value));
    }
    static TS_INLINE uint8x16_t in_range(uint8x16_t keys, Type first, Type span) {
        return vcltq_u8(vsubq_u8(keys, first), span);
    }
};

#define TS_NEON_VECTOR(bits, lanes)                                                          \
    template <>                                                                              \
    struct Vector<std::uint##bits##_t> {                                                     \
        using Type = uint##bits##x##lanes##_t;                                               \
        static TS_INLINE Type all(std::uint64_t value) {                                     \
            return vdupq_n_u##bits(static_cast<std::uint##bits##_t>(value));                 \
        }                                                                                    \
        static TS_INLINE uint8x16_t in_range(uint8x16_t bytes, Type first, Type span) {      \
            const Type keys = vreinterpretq_u##bits##_u8(bytes);                             \
            return vreinterpretq_u8_u##bits(                                                 \
                vcltq_u##bits(vsubq_u##bits(keys, first), span));                            \
        }                                                                                    \
        static TS_INLINE uint8x16_t fold(uint8x16_t bytes) {                                 \
            const Type keys = vreinterpretq_u##bits##_u8(bytes);                             \
            const Type negative = vreinterpretq_u##bits##_s##bits(                           \
                vshrq_n_s##bits(vreinterpretq_s##bits##_u##bits(keys), bits - 1));           \
            const Type magnitude = vbicq_u##bits(keys, all(std::uint64_t{1} << (bits - 1))); \
            return vreinterpretq_u8_u##bits(                                                 \
                vsubq_u##bits(veorq_u##bits(magnitude, negative), negative));                \
        }                                                                                    \
    };
TS_NEON_VECTOR(16, 8)
TS_NEON_VECTOR(32, 4)
TS_NEON_VECTOR(64, 2)
#undef TS_NEON_VECTOR

template <class Bits, bool Folded>
struct Word {
    static constexpr std::size_t item = sizeof(Bits);
    using Elements = Vector<Bits>;
    typename Elements::Type first, span;

    // All ones in the elements of vector `i` that fire.
    TS_INLINE uint8x16_t fire(const char* data, std::size_t i) const {
        uint8x16_t keys = vld1q_u8(reinterpret_cast<const std::uint8_t*>(data) + 16 * i);
        if constexpr (Folded) keys = Elements::fold(keys);
        return Elements::in_range(keys, first, span);
    }

    // From `i` on: 16, 8 or 4 elements in 1, 2 or 4 vectors as 1, 2 or 4 bytes each in one.
    TS_INLINE uint8x16_t bytes4(const char* data, std::size_t i) const {
        if constexpr (item <= 4) return fire(data, i);
        return vreinterpretq_u8_u32(vuzp1q_u32(vreinterpretq_u32_u8(fire(data, 2 * i)),
                                               vreinterpretq_u32_u8(fire(data, 2 * i + 1))));
    }
    TS_INLINE uint8x16_t bytes2(const char* data, std::size_t i) const {
        if constexpr (item <= 2) return fire(data, i);
        return vreinterpretq_u8_u16(vuzp1q_u16(vreinterpretq_u16_u8(bytes4(data, 2 * i)),
                                               vreinterpretq_u16_u8(bytes4(data, 2 * i + 1))));
    }
    TS_INLINE uint8x16_t bytes(const char* data, std::size_t i) const {
        if constexpr (item == 1) return fire(data, i);
        return vuzp1q_u8(bytes2(data, 2 * i), bytes2(data, 2 * i + 1));
    }

    // Each byte keeps the bit of its place in 8; adding neighbours three times joins these.
    TS_INLINE std::uint64_t of(const char* data) const {
        const uint8x16_t place = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
        const uint8x16_t low = vpaddq_u8(vandq_u8(bytes(data, 0), place),
                                         vandq_u8(bytes(data, 1), place));
        const uint8x16_t high = vpaddq_u8(vandq_u8(bytes(data, 2), place),
                                          vandq_u8(bytes(data, 3), place));
        const uint8x16_t sums = vpaddq_u8(low, high);
        return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)), 0);
    }
};

template <class Bits, bool Folded>
void compare(const Lines& lines, Firing firing, const Bits64& bits) {
    using Elements = Vector<Bits>;
    compare_by_word(
        lines, Word<Bits, Folded>{Elements::all(firing.first), Elements::all(firing.span)}, bits);
}

// Compilers turn the plain transposition into as good NEON code as there is without movemask.
inline constexpr Kernel kernel{"neon",           runs_here, false,  TS_COMPARES(compare),
                               scalar::transpose, scalar::cut, scalar::widen,
                               scalar::sift};

}  // namespace tensorstate::neon
#endif
