// The reference kernel: plain C++ for every processor.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernel.hpp"

namespace tensorstate {

// Lines cut into words for a kernel whose Word::of(data) makes one word of 64 elements.
template <class Word>
TS_INLINE void compare_by_word(const Lines& lines, const Word& word, const Bits64& bits) {
    constexpr std::size_t item = Word::item;
    for (std::size_t n = 0; n < lines.count; ++n) {
        const char* data = lines.data + static_cast<std::ptrdiff_t>(n) * lines.stride;
        std::uint64_t* out = bits.words + n * bits.line_pitch;
        std::size_t left = lines.length;
        for (; left >= 64; left -= 64, data += 64 * item, out += bits.word_pitch) {
            *out = word.of(data);
        }
        if (left == 0) continue;
        if (lines.length >= 64) {
            *out = word.of(data - (64 - left) * item) >> (64 - left);
        } else {
            char rest[64 * item];
            std::memcpy(rest, data, left * item);
            std::memset(rest + left * item, 0, sizeof rest - left * item);
            *out = word.of(rest) & ((std::uint64_t{1} << left) - 1);
        }
    }
}

namespace scalar {

inline bool runs_here() { return true; }

template <class Bits, bool Folded>
struct Word {
    static constexpr std::size_t item = sizeof(Bits);
    Bits first, span;

    TS_INLINE std::uint64_t of(const char* data) const {
        std::uint8_t flags[64];
        for (std::size_t i = 0; i < 64; ++i) {
            Bits element;
            std::memcpy(&element, data + i * item, item);
            flags[i] = fires<Bits, Folded>(element, first, span);
        }
        std::uint64_t word = 0, eight;
        for (std::size_t bit = 0; bit < 64; bit += 8) {
            std::memcpy(&eight, flags + bit, 8);
            // Eight flags to eight bits: these products never meet in one bit.
            word |= ((eight * 0x0102040810204080u) >> 56) << bit;
        }
        return word;
    }
};

template <class Bits, bool Folded>
void compare(const Lines& lines, Firing firing, const Bits64& bits) {
    const Word<Bits, Folded> word{static_cast<Bits>(firing.first), static_cast<Bits>(firing.span)};
    compare_by_word(lines, word, bits);
}

// Bit `Side` of the row's number and of the bit's number change places. Rows whose numbers differ
// there come from the two halves of `in` and go next to each other, which makes all steps alike.
template <unsigned Side>
TS_INLINE void transpose_step(const std::uint64_t* in, std::uint64_t* out) {
    constexpr std::uint64_t low = ~std::uint64_t{0} / ((std::uint64_t{1} << Side) + 1);
    for (std::size_t i = 0; i < 32; ++i) {
        const std::uint64_t a = in[i], b = in[i + 32];
        out[2 * i] = (a & low) | (b & low) << Side;
        out[2 * i + 1] = (a >> Side & low) | (b & ~low);
    }
}

TS_INLINE void transpose_square(std::uint64_t* square) {
    std::uint64_t other[64];
    transpose_step<32>(square, other);
    transpose_step<16>(other, square);
    transpose_step<8>(square, other);
    transpose_step<4>(other, square);
    transpose_step<2>(square, other);
    transpose_step<1>(other, square);
}

inline void transpose(const std::uint64_t* planes, std::size_t channels, std::size_t positions,
                      std::uint64_t* rows, std::size_t pitch) {
    for (std::size_t start = 0; start < positions; start += 64, rows += 64 * pitch) {
        for (std::size_t first = 0; first < channels; first += 64) {
            std::uint64_t square[64];
            const std::size_t count = std::min<std::size_t>(64, channels - first);
            std::fill(std::copy_n(planes + first, count, square), square + 64, 0);
            transpose_square(square);
            const std::size_t most = std::min<std::size_t>(64, positions - start);
            for (std::size_t i = 0; i < most; ++i) rows[i * pitch + first / 64] = square[i];
        }
        planes += square_pitch(channels);
    }
}

inline void cut(const std::uint64_t* bits, std::size_t length, std::size_t lines,
                std::uint64_t* words) {
    const std::uint64_t mask = (std::uint64_t{1} << length) - 1;
    const char* bytes = reinterpret_cast<const char*>(bits);
    for (std::size_t n = 0; n < lines; ++n) {
        std::uint64_t word;
        std::memcpy(&word, bytes + n * length / 8, 8);
        words[n] = word >> n * length % 8 & mask;
    }
}

inline void widen(const std::uint8_t* rows, std::size_t bytes, std::size_t count,
                  std::uint64_t mask, std::uint64_t* words) {
    // One load a word, where rows follow: the mask drops them.
    const std::size_t behind = 7 / bytes, whole = count - std::min(count, behind);
    std::size_t i = 0;
    for (; i < whole; ++i, rows += bytes) {
        std::memcpy(words + i, rows, 8);
        words[i] &= mask;
    }
    for (; i < count; ++i, rows += bytes) {
        words[i] = 0;
        std::memcpy(words + i, rows, bytes);
        words[i] &= mask;
    }
}

// Each state is written to both lines; the next one goes over it where it doesn't belong.
inline void sift(const ShortRows& rows, std::uint32_t prevailing, Sifted& sifted) {
    std::uint64_t states[kMostSifted];
    widen(rows.rows, rows.bytes, rows.count, rows.mask, states);
    std::size_t begin = 0, again = 0;
    std::uint64_t before = ~states[0];
    for (std::size_t i = 0; i < rows.count; ++i) {
        const std::uint64_t state = states[i];
        const bool prevails = state == prevailing, alike = state == before;
        sifted.begin[begin] = sifted.again[again] = static_cast<std::uint32_t>(state);
        begin += !prevails & !alike;
        again += !prevails & alike;
        before = state;
    }
    sifted.n_begin = begin;
    sifted.n_again = again;
}

inline constexpr Kernel kernel{"scalar",  runs_here, false, TS_COMPARES(compare), transpose,
                               cut,       widen,     sift};

}  // namespace scalar
}  // namespace tensorstate
