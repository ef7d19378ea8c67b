// The kernel for x86-64 processors with AVX-512, VBMI and GFNI (Ice Lake, Zen 4 and later).
#pragma once

#include "transpose_avx512.hpp"

#if TS_X86
#include <atomic>
#include <cstring>

#include "cpu.hpp"

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

// Whole words of bits, `pitch` apart. All loads come before the bits, lest memory wait for them;
// each vector stores its own few bits: cheaper than joining masks to a word.
template <class Bits, bool Folded, std::size_t Words>
TS_AVX512 TS_INLINE void compare_words(const char* data, bool far, __m512i first, __m512i span,
                                       std::uint64_t* out, std::size_t pitch) {
    constexpr std::size_t item = sizeof(Bits), bytes = 8 / item;
    __m512i keys[Words * item];
    for (std::size_t i = 0; i < Words * item; ++i) {
        if (far) _mm_prefetch(data + 64 * i + kBytesAhead, _MM_HINT_T1);
        keys[i] = _mm512_loadu_si512(data + 64 * i);
    }
    std::atomic_signal_fence(std::memory_order_seq_cst);
    for (std::size_t i = 0; i < Words * item; ++i) {
        const auto mask = fire<Bits, Folded>(keys[i], first, span);
        std::memcpy(reinterpret_cast<char*>(out + i / item * pitch) + i % item * bytes, &mask,
                    bytes);
    }
}

template <class Bits, bool Folded>
TS_AVX512 void compare(const Lines& lines, Firing firing, const Bits64& bits) {
    constexpr std::size_t item = sizeof(Bits), lanes = 64 / item, together = 8 / item;
    const __m512i first = all<Bits>(firing.first), span = all<Bits>(firing.span);
    const std::size_t pitch = bits.word_pitch;
    const bool far = lines.far;
    using Mask = decltype(fire<Bits, Folded>(first, first, span));
    const auto last = first_of<Mask>((lines.length - 1) % lanes + 1);
    for (std::size_t n = 0; n < lines.count; ++n) {
        const char* data = lines.data + static_cast<std::ptrdiff_t>(n) * lines.stride;
        std::uint64_t* out = bits.words + n * bits.line_pitch;
        std::size_t left = lines.length;
        for (; left >= 64 * together; left -= 64 * together, data += 512) {
            compare_words<Bits, Folded, together>(data, far, first, span, out, pitch);
            out += together * pitch;
        }
        for (; left >= 64; left -= 64, data += 64 * item, out += pitch) {
            compare_words<Bits, Folded, 1>(data, far, first, span, out, pitch);
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

// Where the bytes of 16 rows of up to 4 bytes go, so that each row gets 4.
TS_AVX512 TS_INLINE __m512i short_places(std::size_t bytes) {
    const __m512i row = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i first = _mm512_mullo_epi32(row, all<std::uint32_t>(bytes * 0x01010101u));
    return _mm512_add_epi8(first, all<std::uint32_t>(0x03020100u));
}

template <bool Words>
TS_AVX512 TS_INLINE __m512i sixteen(const std::uint8_t* rows, __m512i places, __mmask64 some) {
    const char* data = reinterpret_cast<const char*>(rows);
    if constexpr (Words) {
        const __m256i low = _mm512_cvtepi64_epi32(_mm512_loadu_si512(data));
        const __m256i high = _mm512_cvtepi64_epi32(_mm512_loadu_si512(data + 64));
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    return _mm512_permutexvar_epi8(places, load<std::uint8_t>(data, some));
}

// Compressed in a register: Zen 4 takes a hundred times longer on the way to memory.
TS_AVX512 TS_INLINE std::uint32_t* store_chosen(__m512i states, __mmask16 chosen,
                                                std::uint32_t* out) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(chosen, states));
    return out + _mm_popcnt_u32(_cvtmask16_u32(chosen));
}

// 16 states at a time, each beside the one before it.
template <bool Words>
TS_AVX512 void sift_rows(const ShortRows& rows, std::uint32_t prevailing, Sifted& sifted) {
    const __m512i prevails = all<std::uint32_t>(prevailing), mask = all<std::uint32_t>(rows.mask);
    const __m512i places = short_places(rows.bytes);
    const auto some = first_of<__mmask64>(16 * rows.bytes);
    const std::uint8_t* data = rows.rows;
    std::uint32_t *begin = sifted.begin, *again = sifted.again;
    __m512i before = all<std::uint32_t>(~std::uint64_t{data[0]});
    for (std::size_t i = 0; i < rows.count; i += 16, data += 16 * rows.bytes) {
        const __m512i here = _mm512_and_si512(sixteen<Words>(data, places, some), mask);
        const __m512i last = _mm512_alignr_epi32(here, before, 15);
        const __mmask16 others = _mm512_cmpneq_epi32_mask(here, prevails);
        begin = store_chosen(here, _mm512_mask_cmpneq_epi32_mask(others, here, last), begin);
        again = store_chosen(here, _mm512_mask_cmpeq_epi32_mask(others, here, last), again);
        before = here;
    }
    sifted.n_begin = static_cast<std::size_t>(begin - sifted.begin);
    sifted.n_again = static_cast<std::size_t>(again - sifted.again);
}

TS_AVX512 inline void sift(const ShortRows& rows, std::uint32_t prevailing, Sifted& sifted) {
    return rows.bytes == 8 ? sift_rows<true>(rows, prevailing, sifted)
                           : sift_rows<false>(rows, prevailing, sifted);
}

inline constexpr Kernel kernel{"avx512", runs_here, true, TS_COMPARES(compare), transpose,
                               cut,      widen,     sift};

}  // namespace tensorstate::avx512
#endif
