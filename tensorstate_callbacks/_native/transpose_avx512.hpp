// Bits of channels in, rows of bits out, for x86-64 processors with AVX-512, VBMI and GFNI.
#pragma once

#include "kernel.hpp"

#if TS_X86
// GCC takes the undefined operands in its own header for a mistake of ours (fixed in 13).
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>

#define TS_AVX512 TS_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,gfni,bmi2,popcnt")

namespace tensorstate::avx512 {

// A mask of the first `count` <= 255: BZHI looks at one byte only.
template <class Mask>
TS_AVX512 TS_INLINE Mask first_of(std::size_t count) {
    return static_cast<Mask>(_bzhi_u64(~std::uint64_t{0}, static_cast<unsigned>(count)));
}

// Byte `i` of 64 or word `i` of 32: `of(i)`.
template <class Item, class Index>
TS_INLINE constexpr auto table(Index of) {
    struct alignas(64) {
        Item items[64 / sizeof(Item)];
    } table{};
    for (unsigned i = 0; i < 64 / sizeof(Item); ++i) table.items[i] = static_cast<Item>(of(i));
    return table;
}

// In each group of 8 channels the bytes of the same 8 positions come together, GFNI turns these 8
// bytes over, and then the groups' bytes are put side by side. Positions 0 to 31 are gathered into
// the lower half of each 16 bytes, since bytes are unpacked within 16.
template <std::size_t Groups>
TS_AVX512 TS_INLINE void transpose_square(const std::uint64_t* planes, std::size_t channels,
                                          __m512i* rows) {
    static constexpr auto gathering = table<std::uint8_t>(
        [](unsigned i) { return i / 16 + i % 16 / 8 * 4 + 8 * (7 - i % 8); });
    static constexpr auto lower = table<std::uint16_t>(
        [](unsigned i) { return i / 8 * 2 + i % 4 / 2 + i % 8 / 4 * 8 + i % 2 * 32; });
    const __m512i gather = _mm512_load_si512(&gathering), low = _mm512_load_si512(&lower);
    const __m512i high = _mm512_or_si512(low, _mm512_set1_epi16(16));
    const __m512i diagonal = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201u));
    __m512i a[8], b[8], c[8];
    for (std::size_t group = 0; group < Groups; ++group) {
        const auto some = first_of<std::uint64_t>(channels);
        const __m512i words = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(some >> 8 * group),
                                                       planes + 8 * group);
        a[group] = _mm512_gf2p8affine_epi64_epi8(
            diagonal, _mm512_permutexvar_epi8(gather, words), 0);
    }
    for (std::size_t i = 0; i < Groups / 2; ++i) {
        b[i] = _mm512_unpacklo_epi8(a[2 * i], a[2 * i + 1]);
        b[i + 4] = _mm512_unpackhi_epi8(a[2 * i], a[2 * i + 1]);
    }
    for (std::size_t i = 0; i < 8; i += 4) {
        c[i] = _mm512_permutex2var_epi16(b[i], low, b[i + 1]);
        c[i + 2] = _mm512_permutex2var_epi16(b[i], high, b[i + 1]);
        if constexpr (Groups == 8) {
            c[i + 1] = _mm512_permutex2var_epi16(b[i + 2], low, b[i + 3]);
            c[i + 3] = _mm512_permutex2var_epi16(b[i + 2], high, b[i + 3]);
        } else {
            c[i + 1] = c[i + 3] = _mm512_setzero_si512();
        }
    }
    for (std::size_t i = 0; i < 8; i += 2) {
        rows[i] = _mm512_unpacklo_epi32(c[i], c[i + 1]);
        rows[i + 1] = _mm512_unpackhi_epi32(c[i], c[i + 1]);
    }
}

// 8 by 8 words, in steps of 1, 2 and 4 words.
TS_AVX512 TS_INLINE void transpose_words(__m512i* a) {
    __m512i b[8];
    for (std::size_t i = 0; i < 8; i += 2) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 1]);
    }
    for (std::size_t i = 0; i < 2; ++i) {
        a[i] = _mm512_shuffle_i64x2(b[i], b[i + 2], 0x88);
        a[i + 2] = _mm512_shuffle_i64x2(b[i], b[i + 2], 0xDD);
        a[i + 4] = _mm512_shuffle_i64x2(b[i + 4], b[i + 6], 0x88);
        a[i + 6] = _mm512_shuffle_i64x2(b[i + 4], b[i + 6], 0xDD);
    }
    for (std::size_t i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_i64x2(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i64x2(a[i], a[i + 4], 0xDD);
    }
    for (std::size_t i = 0; i < 8; ++i) a[i] = b[i];
}

// Up to 64 channels: one word a row.
template <std::size_t Groups>
TS_AVX512 void transpose_narrow(const std::uint64_t* planes, std::size_t channels,
                                std::size_t positions, std::uint64_t* rows) {
    __m512i square[8];
    for (; positions >= 64; positions -= 64, rows += 64) {
        transpose_square<Groups>(planes, channels, square);
        for (std::size_t i = 0; i < 8; ++i) _mm512_storeu_si512(rows + 8 * i, square[i]);
        planes += square_pitch(channels);
    }
    if (positions == 0) return;
    transpose_square<Groups>(planes, channels, square);
    const auto some = first_of<std::uint64_t>(positions);
    for (std::size_t i = 0; i < 8; ++i) {
        _mm512_mask_storeu_epi64(rows + 8 * i, static_cast<__mmask8>(some >> 8 * i), square[i]);
    }
}

// 4 vectors of 8 words to 8 rows of 4, two in each vector.
TS_AVX512 TS_INLINE void transpose_four(__m512i* a) {
    const __m512i b[4] = {
        _mm512_unpacklo_epi64(a[0], a[1]), _mm512_unpacklo_epi64(a[2], a[3]),
        _mm512_unpackhi_epi64(a[0], a[1]), _mm512_unpackhi_epi64(a[2], a[3])};
    const __m512i c[4] = {
        _mm512_shuffle_i64x2(b[0], b[1], 0x44), _mm512_shuffle_i64x2(b[2], b[3], 0x44),
        _mm512_shuffle_i64x2(b[0], b[1], 0xEE), _mm512_shuffle_i64x2(b[2], b[3], 0xEE)};
    for (std::size_t i = 0; i < 4; i += 2) {
        a[i] = _mm512_shuffle_i64x2(c[i], c[i + 1], 0x88);
        a[i + 1] = _mm512_shuffle_i64x2(c[i], c[i + 1], 0xDD);
    }
}

// Up to 64 * Words channels of up to 64 positions: whole rows are stored at once.
template <std::size_t Words>
TS_AVX512 void transpose_wide(const std::uint64_t* planes, std::size_t channels,
                              std::size_t positions, std::uint64_t* rows, std::size_t pitch) {
    alignas(64) std::uint64_t squares[64 * Words];
    __m512i square[8];
    for (std::size_t first = 0; first < channels; first += 64) {
        transpose_square<8>(planes + first, std::min<std::size_t>(64, channels - first), square);
        for (std::size_t i = 0; i < 8; ++i) {
            _mm512_store_si512(squares + first + 8 * i, square[i]);
        }
    }
    const auto some = first_of<__mmask8>(words_of(channels));
    for (std::size_t start = 0; start < positions; start += 8) {
        for (std::size_t word = 0; word < Words; ++word) {
            square[word] = _mm512_load_si512(squares + 64 * word + start);
        }
        Words == 4 ? transpose_four(square) : transpose_words(square);
        for (std::size_t i = 0; i < 8 && start + i < positions; ++i) {
            std::uint64_t* const row = rows + (start + i) * pitch;
            if constexpr (Words == 4) {
                const __m512i pair = square[i / 2];
                const __m256i four = i % 2 == 0 ? _mm512_castsi512_si256(pair)
                                                : _mm512_extracti64x4_epi64(pair, 1);
                _mm256_mask_storeu_epi64(row, some, four);
            } else {
                _mm512_mask_storeu_epi64(row, some, square[i]);
            }
        }
    }
}

TS_AVX512 inline void transpose(const std::uint64_t* planes, std::size_t channels,
                                std::size_t positions, std::uint64_t* rows, std::size_t pitch) {
    if (pitch == 1) {
        const auto narrow = channels <= 32 ? transpose_narrow<4> : transpose_narrow<8>;
        return narrow(planes, channels, positions, rows);
    }
    const auto wide = channels <= 256 ? transpose_wide<4> : transpose_wide<8>;
    for (std::size_t start = 0; start < positions; start += 64) {
        wide(planes, channels, std::min<std::size_t>(64, positions - start), rows + start * pitch,
             pitch);
        planes += square_pitch(channels);
    }
}

}  // namespace tensorstate::avx512
#endif
