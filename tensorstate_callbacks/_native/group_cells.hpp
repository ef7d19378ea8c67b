// Rows of bits counted in arrays, one array for each few neighbouring neurons.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "platform.hpp"

namespace tensorstate {

// Neurons divided into parts of `width` neighbours, the last one of what is left. The counts of
// part i begin at i << width.
struct Division {
    std::size_t neurons, width;

    std::size_t parts() const noexcept { return (neurons + width - 1) / width; }
    std::size_t last_width() const noexcept { return neurons - (parts() - 1) * width; }
    std::size_t width_of(std::size_t part) const noexcept {
        return part + 1 == parts() ? last_width() : width;
    }
    std::size_t entries() const noexcept {
        return ((parts() - 1) << width) + (std::size_t{1} << last_width());
    }
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

struct Span {
    std::size_t width, shift;
    std::uint64_t last_mask;  // of the last part
};

// Neighbouring parts at once: a count that was just stored is slow to read again, and meanwhile
// the other parts' counts are stored. `Width`: of all parts, where it is known; they start at a byte.
template <std::size_t Parts, std::size_t Width>
void count_span(const OpenRows& rows, const Span& span, std::uint32_t* counts) noexcept {
    const std::size_t width = Width == 0 ? span.width : Width;
    const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
    const std::uint64_t last_mask = Width == 0 ? span.last_mask : mask;
    const std::uint8_t* row = rows.rows;
    for (std::size_t i = 0; i < rows.size; ++i, row += rows.bytes) {
        std::uint64_t bits;
        std::memcpy(&bits, row, sizeof bits);
        if (Width == 0) bits >>= span.shift;
        for (std::size_t part = 0; part + 1 < Parts; ++part, bits >>= width) {
            ++counts[(part << width) + (bits & mask)];
        }
        ++counts[((Parts - 1) << width) + (bits & last_mask)];
    }
}

inline void count_span(const OpenRows& rows, const Span& span, std::size_t parts,
                       std::uint32_t* counts) noexcept {
    const bool whole = span.last_mask == (std::uint64_t{1} << span.width) - 1;
    if (span.width == 8 && parts == 8 && whole) return count_span<8, 8>(rows, span, counts);
    if (span.width == 16 && parts == 4 && whole) return count_span<4, 16>(rows, span, counts);
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

// Each row once. The arrays of a few parts stay in the nearest cache while all rows are read.
inline void count_rows(const Division& division, const OpenRows& rows,
                       std::uint32_t* counts) noexcept {
    const std::size_t width = division.width, parts = division.parts();
    const std::size_t together = parts_together(width);
    for (std::size_t first = 0; first < parts; first += together) {
        const std::size_t size = std::min(together, parts - first), bit = first * width;
        const std::size_t last = division.width_of(first + size - 1);
        const Span span{width, bit % 8, (std::uint64_t{1} << last) - 1};
        count_span({rows.rows + bit / 8, rows.bytes, rows.size}, span, size,
                   counts + (first << width));
    }
}

// Each row as often as `times` says.
template <class Count>
void count_rows(const Division& division, const OpenRows& rows, const std::uint64_t* times,
                Count* counts) noexcept {
    for (std::size_t part = 0; part < division.parts(); ++part) {
        const std::size_t bit = part * division.width;
        const std::uint64_t mask = (std::uint64_t{1} << division.width_of(part)) - 1;
        const std::uint8_t* row = rows.rows + bit / 8;
        Count* const table = counts + (part << division.width);
        for (std::size_t i = 0; i < rows.size; ++i, row += rows.bytes) {
            std::uint64_t bits;
            std::memcpy(&bits, row, sizeof bits);
            Count& count = table[bits >> bit % 8 & mask];
            count = static_cast<Count>(count + times[i]);
        }
    }
}

}  // namespace tensorstate
