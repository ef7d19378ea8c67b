// The kernel for x86-64 processors with AVX-512, VBMI and GFNI (Ice Lake, Zen 4 and later).
#pragma once

#include "cpu.hpp"
#include "kernel.hpp"

#if TS_X86
// GCC takes the undefined operands in its own header for a mistake of ours (fixed in 13).
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define TS_AVX512 TS_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,gfni,bmi2,popcnt")

namespace tensorstate::avx512 {

inline bool runs_here() { return Cpu::here().avx512_gfni(); }

template <class Bits>
TS_AVX512 TS_INLINE __m512i all(std::uint64_t bits) {
    if constexpr (sizeof(Bits) == 1) return _mm512_set1_epi8(static_cast<char>(bits));
    if constexpr (sizeof(Bits) == 2) return _mm512_set1_epi16(static_cast<short>(bits));
    if constexpr (sizeof(Bits) == 4) return _mm512_set1_epi32(static_cast<int>(bits));
    if constexpr (sizeof(Bits) == 8) return _mm512_set1_epi64(static_cast<long long>(bits));
}

template <class Bits>
TS_AVX512 TS_INLINE __m512i minus(__m512i a, __m512i b) {
    if constexpr (sizeof(Bits) == 1) return _mm512_sub_epi8(a, b);
    if constexpr (sizeof(Bits) == 2) return _mm512_sub_epi16(a, b);
    if constexpr (sizeof(Bits) == 4) return _mm512_sub_epi32(a, b);
    if constexpr (sizeof(Bits) == 8) return _mm512_sub_epi64(a, b);
}

template <class Bits>
TS_AVX512 TS_INLINE __m512i sign(__m512i a) {
    if constexpr (sizeof(Bits) == 2) return _mm512_srai_epi16(a, 15);
    if constexpr (sizeof(Bits) == 4) return _mm512_srai_epi32(a, 31);
    if constexpr (sizeof(Bits) == 8) return _mm512_srai_epi64(a, 63);
}

// A mask of the first `count` <= 255: BZHI looks at one byte only.
template <class Mask>
TS_AVX512 TS_INLINE Mask first_of(std::size_t count) {
    return static_cast<Mask>(_bzhi_u64(~std::uint64_t{0}, static_cast<unsigned>(count)));
}

// The elements chosen by `lanes`; the others are 0 and not read.
template <class Bits>
TS_AVX512 TS_INLINE __m512i load(const char* data, std::uint64_t lanes) {
    if constexpr (sizeof(Bits) == 1) return _mm512_maskz_loadu_epi8(lanes, data);
    if constexpr (sizeof(Bits) == 2) {
        return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lanes), data);
    }
    if constexpr (sizeof(Bits) == 4) {
        return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(lanes), data);
    }
    if constexpr (sizeof(Bits) == 8) {
        return _mm512_maskz_loadu_epi64(static_cast<__mmask8>(lanes), data);
    }
}

// Which elements fire.
template <class Bits, bool Folded>
TS_AVX512 TS_INLINE auto fire(__m512i keys, __m512i first, __m512i span) {
    if constexpr (Folded) {
        const __m512i negative = sign<Bits>(keys);
        const __m512i magnitude = _mm512_andnot_si512(
            all<Bits>(std::uint64_t{1} << (8 * sizeof(Bits) - 1)), keys);
        keys = minus<Bits>(_mm512_xor_si512(magnitude, negative), negative);
    }
    keys = minus<Bits>(keys, first);
    if constexpr (sizeof(Bits) == 1) return _mm512_cmplt_epu8_mask(keys, span);
    if constexpr (sizeof(Bits) == 2) return _mm512_cmplt_epu16_mask(keys, span);
    if constexpr (sizeof(Bits) == 4) return _mm512_cmplt_epu32_mask(keys, span);
    if constexpr (sizeof(Bits) == 8) return _mm512_cmplt_epu64_mask(keys, span);
}

template <class Bits, bool Folded>
TS_AVX512 void compare(const Lines& lines, Firing firing, const Bits64& bits) {
    constexpr std::size_t item = sizeof(Bits), lanes = 64 / item;
    const __m512i first = all<Bits>(firing.first), span = all<Bits>(firing.span);
    const std::ptrdiff_t ahead = bytes_ahead(lines);
    const std::size_t pitch = bits.word_pitch;
    using Mask = decltype(fire<Bits, Folded>(first, first, span));
    const auto last = first_of<Mask>((lines.length - 1) % lanes + 1);
    for (std::size_t n = 0; n < lines.count; ++n) {
        const char* data = lines.data + static_cast<std::ptrdiff_t>(n) * lines.stride;
        std::uint64_t* out = bits.words + n * bits.line_pitch;
        std::size_t left = lines.length;
        for (; left >= 64; left -= 64, data += 64 * item, out += pitch) {
            // Each vector stores its own few bits: cheaper than joining masks to a word.
            for (std::size_t i = 0; i < item; ++i) {
                _mm_prefetch(data + 64 * i + ahead, _MM_HINT_T0);
                const auto mask =
                    fire<Bits, Folded>(_mm512_loadu_si512(data + 64 * i), first, span);
                std::memcpy(reinterpret_cast<char*>(out) + i * lanes / 8, &mask, lanes / 8);
            }
        }
        if (left == 0) continue;
        *out = 0;
        char* part = reinterpret_cast<char*>(out);
        for (; left > lanes; left -= lanes, data += 64, part += lanes / 8) {
            const auto mask = fire<Bits, Folded>(_mm512_loadu_si512(data), first, span);
            std::memcpy(part, &mask, lanes / 8);
        }
        const auto mask = fire<Bits, Folded>(load<Bits>(data, last), first, span) & last;
        std::memcpy(part, &mask, lanes / 8);
    }
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
    for (; positions >= 64; positions -= 64, planes += 64, rows += 64) {
        transpose_square<Groups>(planes, channels, square);
        for (std::size_t i = 0; i < 8; ++i) _mm512_storeu_si512(rows + 8 * i, square[i]);
    }
    if (positions == 0) return;
    transpose_square<Groups>(planes, channels, square);
    const auto some = first_of<std::uint64_t>(positions);
    for (std::size_t i = 0; i < 8; ++i) {
        _mm512_mask_storeu_epi64(rows + 8 * i, static_cast<__mmask8>(some >> 8 * i), square[i]);
    }
}

// Up to 512 channels of up to 64 positions: whole rows are stored at once.
TS_AVX512 inline void transpose_wide(const std::uint64_t* planes, std::size_t channels,
                                     std::size_t positions, std::uint64_t* rows,
                                     std::size_t pitch) {
    alignas(64) std::uint64_t squares[kMostTogether];
    __m512i square[8];
    for (std::size_t first = 0; first < channels; first += 64) {
        transpose_square<8>(planes + first, std::min<std::size_t>(64, channels - first), square);
        for (std::size_t i = 0; i < 8; ++i) {
            _mm512_store_si512(squares + first + 8 * i, square[i]);
        }
    }
    const auto some = first_of<__mmask8>(words_of(channels));
    for (std::size_t start = 0; start < positions; start += 8) {
        for (std::size_t word = 0; word < 8; ++word) {
            square[word] = _mm512_load_si512(squares + 64 * word + start);
        }
        transpose_words(square);
        for (std::size_t i = 0; i < 8; ++i) {
            if (start + i >= positions) break;
            _mm512_mask_storeu_epi64(rows + (start + i) * pitch, some, square[i]);
        }
    }
}

TS_AVX512 inline void transpose(const std::uint64_t* planes, std::size_t channels,
                                std::size_t positions, std::uint64_t* rows, std::size_t pitch) {
    if (pitch == 1) {
        const auto narrow = channels <= 32 ? transpose_narrow<4> : transpose_narrow<8>;
        return narrow(planes, channels, positions, rows);
    }
    for (std::size_t start = 0; start < positions; start += 64) {
        transpose_wide(planes + start * words_of(channels), channels,
                       std::min<std::size_t>(64, positions - start), rows + start * pitch, pitch);
    }
}

// 8 lines are `length` whole bytes, so all groups of 8 are cut alike.
TS_AVX512 inline void cut(const std::uint64_t* bits, std::size_t length, std::size_t lines,
                          std::uint64_t* words) {
    const __m512i start = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                             all<std::uint64_t>(length));
    const __m512i bytes = _mm512_add_epi64(
        _mm512_mullo_epi64(_mm512_srli_epi64(start, 3), all<std::uint8_t>(1)),
        all<std::uint64_t>(0x0706050403020100u));
    const __m512i shift = _mm512_and_si512(start, all<std::uint64_t>(7));
    const __m512i mask = all<std::uint64_t>((std::uint64_t{1} << length) - 1);
    const char* data = reinterpret_cast<const char*>(bits);
    for (std::size_t n = 0; n < lines; n += 8, data += length) {
        const __m512i found = _mm512_srlv_epi64(
            _mm512_permutexvar_epi8(bytes, _mm512_loadu_si512(data)), shift);
        const auto some = first_of<__mmask8>(std::min<std::size_t>(8, lines - n));
        _mm512_mask_storeu_epi64(words + n, some, _mm512_and_si512(found, mask));
    }
}

// 8 rows at a time; what lies behind the last one is not read.
TS_AVX512 inline void widen(const std::uint8_t* rows, std::size_t bytes, std::size_t count,
                            std::uint64_t mask, std::uint64_t* words) {
    const __m512i place = _mm512_set1_epi64(0x0706050403020100);
    const __m512i row = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                           all<std::uint64_t>(bytes * 0x0101010101010101u));
    const __m512i gather = _mm512_add_epi64(place, row), kept = all<std::uint64_t>(mask);
    const auto some = first_of<__mmask64>(8 * bytes);
    for (; count >= 8; count -= 8, rows += 8 * bytes, words += 8) {
        const __m512i eight = load<std::uint8_t>(reinterpret_cast<const char*>(rows), some);
        _mm512_storeu_si512(words, _mm512_and_si512(_mm512_permutexvar_epi8(gather, eight), kept));
    }
    const __m512i rest = load<std::uint8_t>(reinterpret_cast<const char*>(rows),
                                            first_of<__mmask64>(count * bytes));
    _mm512_mask_storeu_epi64(words, first_of<__mmask8>(count),
                             _mm512_and_si512(_mm512_permutexvar_epi8(gather, rest), kept));
}

// 16 states at a time, each beside the one before it.
TS_AVX512 inline std::size_t find_runs(const std::uint64_t* states, std::size_t count,
                                       std::uint32_t* runs, std::uint64_t* repeats) {
    __m512i before = _mm512_set1_epi32(static_cast<int>(~states[0]));
    std::size_t found = 0;
    for (std::size_t i = 0; i < count; i += 16) {
        const __m256i low = _mm512_cvtepi64_epi32(_mm512_loadu_si512(states + i));
        const __m256i high = _mm512_cvtepi64_epi32(_mm512_loadu_si512(states + i + 8));
        const __m512i here = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        const __mmask16 alike =
            _mm512_cmpeq_epi32_mask(here, _mm512_alignr_epi32(here, before, 15));
        // Compressed in a register: Zen 4 takes a hundred times longer on the way to memory.
        _mm512_storeu_si512(runs + found, _mm512_maskz_compress_epi32(static_cast<__mmask16>(~alike), here));
        std::memcpy(reinterpret_cast<char*>(repeats) + i / 8, &alike, 2);
        found += 16 - static_cast<std::size_t>(_mm_popcnt_u32(alike));
        before = here;
    }
    return found;
}

inline constexpr Kernel kernel{"avx512", runs_here, true, TS_COMPARES(compare), transpose,
                               cut,      widen,     find_runs};

}  // namespace tensorstate::avx512
#endif
