// The kernel for x86-64 processors with AVX2 (Haswell, Zen and later).
#pragma once

#include "cpu.hpp"
#include "kernel_scalar.hpp"

#if TS_X86
#include <immintrin.h>

#define TS_AVX2 TS_TARGET("avx2,bmi,bmi2,popcnt")

namespace tensorstate::avx2 {

inline bool runs_here() { return Cpu::here().avx2(); }

template <class Bits>
TS_AVX2 TS_INLINE __m256i all(std::uint64_t bits) {
    if constexpr (sizeof(Bits) == 1) return _mm256_set1_epi8(static_cast<char>(bits));
    if constexpr (sizeof(Bits) == 2) return _mm256_set1_epi16(static_cast<short>(bits));
    if constexpr (sizeof(Bits) == 4) return _mm256_set1_epi32(static_cast<int>(bits));
    if constexpr (sizeof(Bits) == 8) return _mm256_set1_epi64x(static_cast<long long>(bits));
}

template <class Bits>
TS_AVX2 TS_INLINE __m256i minus(__m256i a, __m256i b) {
    if constexpr (sizeof(Bits) == 1) return _mm256_sub_epi8(a, b);
    if constexpr (sizeof(Bits) == 2) return _mm256_sub_epi16(a, b);
    if constexpr (sizeof(Bits) == 4) return _mm256_sub_epi32(a, b);
    if constexpr (sizeof(Bits) == 8) return _mm256_sub_epi64(a, b);
}

template <class Bits>
TS_AVX2 TS_INLINE __m256i greater(__m256i a, __m256i b) {
    if constexpr (sizeof(Bits) == 1) return _mm256_cmpgt_epi8(a, b);
    if constexpr (sizeof(Bits) == 2) return _mm256_cmpgt_epi16(a, b);
    if constexpr (sizeof(Bits) == 4) return _mm256_cmpgt_epi32(a, b);
    if constexpr (sizeof(Bits) == 8) return _mm256_cmpgt_epi64(a, b);
}

TS_AVX2 TS_INLINE std::uint64_t signs(__m256i bytes) {
    return static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes));
}

template <class Bits, bool Folded>
struct Word {
    static constexpr std::size_t item = sizeof(Bits);
    static constexpr std::uint64_t sign = std::uint64_t{1} << (8 * item - 1);
    __m256i first, limit;

    // AVX2 compares signed numbers only: both sides are moved by half the range.
    TS_AVX2 TS_INLINE explicit Word(Firing firing)
        : first(all<Bits>(firing.first + sign)), limit(all<Bits>(firing.span + sign)) {}

    // All ones in the elements of vector `i` that fire.
    TS_AVX2 TS_INLINE __m256i fire(const char* data, std::size_t i) const {
        __m256i keys = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data) + i);
        if constexpr (Folded) {
            const __m256i negative = greater<Bits>(_mm256_setzero_si256(), keys);
            const __m256i magnitude = _mm256_andnot_si256(all<Bits>(sign), keys);
            keys = minus<Bits>(_mm256_xor_si256(magnitude, negative), negative);
        }
        return greater<Bits>(limit, minus<Bits>(keys, first));
    }

    // 32 elements, one byte each, in their order.
    TS_AVX2 TS_INLINE __m256i bytes(const char* data) const {
        if constexpr (item == 1) return fire(data, 0);
        if constexpr (item == 2) {
            const __m256i packed = _mm256_packs_epi16(fire(data, 0), fire(data, 1));
            return _mm256_permute4x64_epi64(packed, 0xD8);
        }
        if constexpr (item == 4) {
            return ordered(_mm256_packs_epi16(
                _mm256_packs_epi32(fire(data, 0), fire(data, 1)),
                _mm256_packs_epi32(fire(data, 2), fire(data, 3))));
        }
        if constexpr (item == 8) {
            return ordered(
                _mm256_packs_epi16(_mm256_packs_epi32(halves(data, 0), halves(data, 2)),
                                   _mm256_packs_epi32(halves(data, 4), halves(data, 6))));
        }
    }

    TS_AVX2 TS_INLINE std::uint64_t of(const char* data) const {
        return signs(bytes(data)) | signs(bytes(data + 32 * item)) << 32;
    }

  private:
    // Packing works within 16 bytes: groups of 4 elements are still to be put in order.
    TS_AVX2 static TS_INLINE __m256i ordered(__m256i packed) {
        return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }

    // Vectors `i` and `i + 1` of 8 bytes an element as one of 4 bytes an element.
    TS_AVX2 TS_INLINE __m256i halves(const char* data, std::size_t i) const {
        const __m256 both = _mm256_shuffle_ps(_mm256_castsi256_ps(fire(data, i)),
                                              _mm256_castsi256_ps(fire(data, i + 1)), 0x88);
        return _mm256_permute4x64_epi64(_mm256_castps_si256(both), 0xD8);
    }
};

template <class Bits, bool Folded>
TS_AVX2 void compare(const Lines& lines, Firing firing, const Bits64& bits) {
    const Word<Bits, Folded> word(firing);
    constexpr std::size_t item = sizeof(Bits);
    const std::size_t pitch = bits.word_pitch;
    for (std::size_t n = 0; n < lines.count; ++n) {
        const char* data = lines.data + static_cast<std::ptrdiff_t>(n) * lines.stride;
        std::uint64_t* out = bits.words + n * bits.line_pitch;
        std::size_t left = lines.length;
        for (; left >= 64; left -= 64, data += 64 * item, out += pitch) {
            for (std::size_t i = 0; lines.far && i < item; ++i) {
                _mm_prefetch(data + 64 * i + kBytesAhead, _MM_HINT_T1);
            }
            *out = word.of(data);
        }
        if (left == 0) continue;
        if (lines.length >= 64) {
            *out = word.of(data - (64 - left) * item) >> (64 - left);
        } else {
            char rest[64 * item];
            std::memcpy(rest, data, left * item);
            std::memset(rest + left * item, 0, sizeof rest - left * item);
            *out = _bzhi_u64(word.of(rest), static_cast<unsigned>(left));
        }
    }
}

// The bytes of the same 8 positions come together. Interleaving the registers' halves four times
// turns (channel, byte) into (byte, channel); the lower 16 bytes of a register hold 16 channels,
// the upper the next 16.
TS_AVX2 TS_INLINE void gather_bytes(const std::uint64_t* words, __m256i* bytes) {
    __m256i a[8], b[8];
    for (std::size_t i = 0; i < 8; ++i) {
        const auto* pair = reinterpret_cast<const __m128i*>(words + 2 * i);
        a[i] = _mm256_setr_m128i(_mm_loadu_si128(pair), _mm_loadu_si128(pair + 8));
    }
    for (std::size_t step = 0; step < 4; ++step) {
        for (std::size_t i = 0; i < 4; ++i) {
            b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 4]);
            b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 4]);
        }
        for (std::size_t i = 0; i < 8; ++i) a[i] = b[i];
    }
    for (std::size_t i = 0; i < 8; ++i) bytes[i] = a[i];
}

// 32 channels of up to 64 positions, into the lower or the upper half of words.
TS_AVX2 TS_INLINE void transpose_half(const std::uint64_t* words, bool upper,
                                      std::size_t positions, std::uint64_t* row,
                                      std::size_t pitch) {
    __m256i gathered[8];
    gather_bytes(words, gathered);
    for (std::size_t start = 0; start < positions; start += 8) {
        // Only sign bits can be had: the last position's first, then the bytes move up.
        std::uint64_t bits[8];
        __m256i bytes = gathered[start / 8];
        for (std::size_t i = 8; i-- > 0; bytes = _mm256_add_epi8(bytes, bytes)) {
            bits[i] = signs(bytes);
        }
        for (std::size_t i = 0; i < 8 && start + i < positions; ++i, row += pitch) {
            *row = upper ? *row | bits[i] << 32 : bits[i];
        }
    }
}

TS_AVX2 inline void transpose(const std::uint64_t* planes, std::size_t channels,
                              std::size_t positions, std::uint64_t* rows, std::size_t pitch) {
    for (std::size_t start = 0; start < positions; start += 64, rows += 64 * pitch) {
        for (std::size_t first = 0; first < channels; first += 32) {
            std::uint64_t padded[32];
            const std::uint64_t* words = planes + first;
            if (channels - first < 32) {
                std::fill(std::copy(words, planes + channels, padded), padded + 32, 0);
                words = padded;
            }
            transpose_half(words, first % 64 != 0, std::min<std::size_t>(64, positions - start),
                           rows + first / 64, pitch);
        }
        planes += square_pitch(channels);
    }
}

// For each choice of 4 words: where their lower halves lie, the chosen ones first.
struct alignas(32) Chosen {
    std::int32_t halves[16][8];
};
inline constexpr Chosen chosen_first() {
    Chosen table{};
    for (int choice = 0; choice < 16; ++choice) {
        int found = 0;
        for (int i = 0; i < 4; ++i) {
            if (choice >> i & 1) table.halves[choice][found++] = 2 * i;
        }
    }
    return table;
}

TS_AVX2 TS_INLINE unsigned alike(__m256i a, __m256i b) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(a, b))));
}

TS_AVX2 TS_INLINE std::uint32_t* store_chosen(__m256i states, const Chosen& table, unsigned choice,
                                              std::uint32_t* out) {
    const auto* halves = reinterpret_cast<const __m256i*>(table.halves[choice]);
    const __m256i first = _mm256_permutevar8x32_epi32(states, _mm256_load_si256(halves));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(first));
    return out + _mm_popcnt_u32(choice);
}

// 4 states at a time, each beside the one before it.
TS_AVX2 inline void sift(const ShortRows& rows, std::uint32_t prevailing, Sifted& sifted) {
    static constexpr Chosen table = chosen_first();
    alignas(32) std::uint64_t states[kMostSifted];
    scalar::widen(rows.rows, rows.bytes, rows.count, rows.mask, states);
    const __m256i prevails = all<std::uint64_t>(prevailing);
    __m256i before = all<std::uint64_t>(~states[0]);
    std::uint32_t *begin = sifted.begin, *again = sifted.again;
    for (std::size_t i = 0; i < rows.count; i += 4) {
        const __m256i here = _mm256_load_si256(reinterpret_cast<const __m256i*>(states + i));
        const __m256i turned = _mm256_permute4x64_epi64(here, 0x93);
        const unsigned others = 15 & ~alike(here, prevails);
        const unsigned repeated = alike(here, _mm256_blend_epi32(turned, before, 3));
        begin = store_chosen(here, table, others & ~repeated, begin);
        again = store_chosen(here, table, others & repeated, again);
        before = turned;
    }
    sifted.n_begin = static_cast<std::size_t>(begin - sifted.begin);
    sifted.n_again = static_cast<std::size_t>(again - sifted.again);
}

inline constexpr Kernel kernel{"avx2",      runs_here,     true, TS_COMPARES(compare), transpose,
                               scalar::cut, scalar::widen, sift};

}  // namespace tensorstate::avx2
#endif
