// Rows of bits counted in arrays, one array for each few neighbouring neurons.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "platform.hpp"

namespace tensorstate {

// Neurons divided into parts of `width` neighbours, the last one of what is left. The counts of a
// part are followed by `gap` others that nobody uses.
struct Division {
    std::size_t neurons, width, gap;

    std::size_t parts() const noexcept { return (neurons + width - 1) / width; }
    std::size_t width_of(std::size_t part) const noexcept {
        return std::min(width, neurons - part * width);
    }
    std::size_t states(std::size_t part) const noexcept {
        return std::size_t{1} << width_of(part);
    }
    // Where a part's counts begin.
    std::size_t start(std::size_t part) const noexcept {
        return part * ((std::size_t{1} << width) + gap);
    }
    std::size_t entries() const noexcept { return start(parts() - 1) + states(parts() - 1); }
};

// Rows of which 8 bytes can be read from each of their bytes on.
struct OpenRows {
    const std::uint8_t* rows;
    std::size_t bytes, size;
};

// Parts that 8 bytes of a row hold wherever the first of them starts.
inline std::size_t parts_together(std::size_t width) noexcept {
    return width <= 8 ? 8 : width <= 16 ? 4 : 2;
}

// Parts that are counted at once; their counts begin `pitch` apart.
struct Span {
    std::size_t width, pitch, shift;
    std::uint64_t last_mask;  // of the last part
};

// A cache line. Else parts that are in one state would have counts whose addresses differ by whole
// pages only, and a processor takes one for the other until it has looked closer.
inline constexpr std::size_t kGap = 16;

// Neighbouring parts at once: a count that was just stored is slow to read again, and meanwhile
// the other parts' counts are stored. Where these are few, rows take turns with kCopies arrays.
inline constexpr std::size_t kCopies = 4;

// `Width`: of all parts, where it is known; they start at a byte. `Copies`: there are.
template <std::size_t Parts, std::size_t Width, bool Copies = false>
void count_span(const OpenRows& rows, const Span& span, std::uint32_t* counts) noexcept {
    const std::size_t width = Width == 0 ? span.width : Width;
    const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
    const std::uint64_t last_mask = Width == 0 ? span.last_mask : mask;
    const std::size_t pitch = Width == 0 ? span.pitch : (std::size_t{1} << Width) + kGap;
    const auto count = [&](std::size_t i, std::uint32_t* table) {
        std::uint64_t bits;
        std::memcpy(&bits, rows.rows + i * rows.bytes, sizeof bits);
        if (Width == 0) bits >>= span.shift;
        for (std::size_t part = 0; part + 1 < Parts; ++part, bits >>= width) {
            ++table[part * pitch + (bits & mask)];
        }
        ++table[(Parts - 1) * pitch + (bits & last_mask)];
    };
    std::size_t i = 0;
    if (Copies) {
        for (; i + kCopies <= rows.size; i += kCopies) {
            for (std::size_t copy = 0; copy < kCopies; ++copy) {
                count(i + copy, counts + copy * Parts * pitch);
            }
        }
    }
    for (; i < rows.size; ++i) count(i, counts);
}

inline void count_span(const OpenRows& rows, const Span& span, std::size_t parts, bool copies,
                       std::uint32_t* counts) noexcept {
    if (parts * span.width == 64 && span.last_mask == (std::uint64_t{1} << span.width) - 1) {
        return span.width == 8 ? count_span<8, 8>(rows, span, counts)
                               : count_span<4, 16>(rows, span, counts);
    }
    if (copies) {
        switch (parts) {
            case 1: return count_span<1, 0, true>(rows, span, counts);
            case 2: return count_span<2, 0, true>(rows, span, counts);
            case 3: return count_span<3, 0, true>(rows, span, counts);
            default: return count_span<4, 0, true>(rows, span, counts);
        }
    }
    switch (parts) {
        case 1: return count_span<1, 0>(rows, span, counts);
        case 2: return count_span<2, 0>(rows, span, counts);
        case 3: return count_span<3, 0>(rows, span, counts);
        case 4: return count_span<4, 0>(rows, span, counts);
        case 5: return count_span<5, 0>(rows, span, counts);
        case 6: return count_span<6, 0>(rows, span, counts);
        case 7: return count_span<7, 0>(rows, span, counts);
        default: return count_span<8, 0>(rows, span, counts);
    }
}

// How many arrays of all parts' counts stand one after the other, to be added up.
inline std::size_t copies_of(const Division& division) noexcept {
    return division.parts() <= 4 && division.width <= 8 ? kCopies : 1;
}

// Each row of some blocks once. The arrays of a few parts stay near while all rows are read.
inline void count_rows(const Division& division, const OpenRows* blocks, std::size_t n_blocks,
                       std::uint32_t* counts) noexcept {
    const bool copies = copies_of(division) > 1;
    const std::size_t width = division.width, parts = division.parts();
    const std::size_t together = parts_together(width);
    for (std::size_t first = 0; first < parts; first += together) {
        const std::size_t size = std::min(together, parts - first), bit = first * width;
        const Span span{width, division.start(1), bit % 8, division.states(first + size - 1) - 1};
        for (std::size_t i = 0; i < n_blocks; ++i) {
            const OpenRows& rows = blocks[i];
            count_span({rows.rows + bit / 8, rows.bytes, rows.size}, span, size, copies,
                       counts + division.start(first));
        }
    }
}

// Each row as often as `times` says.
template <class Count>
void count_rows(const Division& division, const OpenRows& rows, const std::uint64_t* times,
                Count* counts) noexcept {
    for (std::size_t part = 0; part < division.parts(); ++part) {
        const std::size_t bit = part * division.width;
        const std::uint64_t mask = division.states(part) - 1;
        const std::uint8_t* row = rows.rows + bit / 8;
        Count* const table = counts + division.start(part);
        for (std::size_t i = 0; i < rows.size; ++i, row += rows.bytes) {
            std::uint64_t bits;
            std::memcpy(&bits, row, sizeof bits);
            Count& count = table[bits >> bit % 8 & mask];
            count = static_cast<Count>(count + times[i]);
        }
    }
}

}  // namespace tensorstate
