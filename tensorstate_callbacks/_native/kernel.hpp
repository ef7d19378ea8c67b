// One kernel: what one instruction set does on the way from elements to bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "firing.hpp"

namespace tensorstate {

TS_INLINE constexpr std::size_t words_of(std::size_t bits) { return (bits + 63) / 64; }

// Lines of elements, `stride` bytes apart; those of one line follow each other, at any address.
// Those that are `far` in memory, not in a cache, are asked for ahead, kBytesAhead of them: too
// many of these would wait for one another. In a cache asking only takes time.
struct Lines {
    const char* data;
    std::size_t count;
    std::ptrdiff_t stride;
    std::size_t length;
    bool far;
};

inline constexpr std::ptrdiff_t kBytesAhead = 2048;

// Where the bits of lines go: element i of line n is bit i % 64 of
// words[n * line_pitch + i / 64 * word_pitch].
struct Bits64 {
    std::uint64_t* words;
    std::size_t line_pitch, word_pitch;
};

// Whole words are written: bits behind the end of a line are 0.
using Compare = void (*)(const Lines& lines, Firing firing, const Bits64& bits);

// Bits of positions, 64 in each word of a channel, in; one row a position out, `pitch` words apart.
// There are at most kMostTogether channels; 64 positions take square_pitch(channels) words.
using Transpose = void (*)(const std::uint64_t* planes, std::size_t channels, std::size_t positions,
                           std::uint64_t* rows, std::size_t pitch);

// Lines of `length` <= kMostCut bits without gaps in, one word a line out. May read a vector
// beyond the last line.
using Cut = void (*)(const std::uint64_t* bits, std::size_t length, std::size_t lines,
                     std::uint64_t* words);

// Packed rows of 1 to 8 bytes in, those of their bits that are in `mask` as one word a row out.
using Widen = void (*)(const std::uint8_t* rows, std::size_t bytes, std::size_t count,
                       std::uint64_t mask, std::uint64_t* words);

// States of up to 32 bits: those bits of rows of 1 to 4 bytes, or of 8, that are in `mask`.
struct ShortRows {
    const std::uint8_t* rows;
    std::size_t bytes, count;
    std::uint32_t mask;
};

// Two lines of states that are not the prevailing one: those that differ from the one before them,
// where a run begins, and those that are it again. Both keep their order and have room for all.
struct Sifted {
    std::uint32_t* begin;
    std::uint32_t* again;
    std::size_t n_begin, n_again;
};

// Whole groups of 16 states, at most kMostSifted. Those that prevail are in no line.
using Sift = void (*)(const ShortRows& rows, std::uint32_t prevailing, Sifted& sifted);

inline constexpr std::size_t kMostTogether = 512;  // channels: a vector of words in each row
inline constexpr std::size_t kMostSifted = 512;
inline constexpr std::size_t kMostCut = 57;        // bits that 8 bytes hold wherever they start
inline constexpr std::size_t kBeyond = 8;          // words: a vector

// A cache line more than they need: else the words of one channel would share few sets of a cache.
TS_INLINE constexpr std::size_t square_pitch(std::size_t channels) {
    return 64 * words_of(channels) + 8;
}

struct Kernel {
    const char* name;
    bool (*runs_here)();
    bool avx2;
    Compare compare[4][2];  // [log2 of the element's bytes][folded]
    Transpose transpose;
    Cut cut;
    Widen widen;
    Sift sift;
};

}  // namespace tensorstate

// Bytes are never folded: no float is that small.
#define TS_COMPARES(compare)                                           \
    {                                                                  \
        {compare<std::uint8_t, false>, compare<std::uint8_t, false>},  \
        {compare<std::uint16_t, false>, compare<std::uint16_t, true>}, \
        {compare<std::uint32_t, false>, compare<std::uint32_t, true>}, \
        {compare<std::uint64_t, false>, compare<std::uint64_t, true>}, \
    }
