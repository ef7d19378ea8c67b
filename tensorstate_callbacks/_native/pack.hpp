// Packing: one run of positions in strided memory in, one row of bits per position out.
//
// Plain loops that compilers turn into vector code; the kernel files compile them for each
// instruction set. Bit c % 64 of word c / 64 of a row is channel c.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "firing.hpp"

namespace tensorstate {

inline constexpr std::size_t kMostPositions = 1024;  // of one run: planes stay in L1
inline constexpr std::size_t kFlags = 4096;

struct Run {
    const char* data;
    std::size_t positions;
    std::ptrdiff_t position_stride;
    std::size_t channels;
    std::ptrdiff_t channel_stride;
};

TS_INLINE constexpr std::size_t words_of(std::size_t channels) { return (channels + 63) / 64; }

// Elements may lie at any address.
template <class Bits>
TS_INLINE Bits load(const char* address) {
    Bits bits;
    std::memcpy(&bits, address, sizeof bits);
    return bits;
}

template <class Bits, bool Folded, bool Contiguous>
TS_INLINE void flag(const char* data, std::ptrdiff_t stride, std::size_t count, Firing firing,
                    std::uint8_t* flags) {
    const Bits first = static_cast<Bits>(firing.first), span = static_cast<Bits>(firing.span);
    const std::ptrdiff_t step = Contiguous ? static_cast<std::ptrdiff_t>(sizeof(Bits)) : stride;
    for (std::size_t i = 0; i < count; ++i) {
        const char* element = data + static_cast<std::ptrdiff_t>(i) * step;
        flags[i] = fires<Bits, Folded>(load<Bits>(element), first, span);
    }
}

// Eight flags to eight bits: the products below never meet in one bit, so nothing carries.
TS_INLINE std::uint64_t squeeze(const std::uint8_t* flags, std::size_t count) {
    constexpr std::uint64_t spread = 0x0102040810204080u;
    std::uint64_t word = 0, eight;
    std::size_t bit = 0;
    for (; bit + 8 <= count; bit += 8) {
        std::memcpy(&eight, flags + bit, 8);
        word |= ((eight * spread) >> 56) << bit;
    }
    if (bit < count) {
        std::memcpy(&eight, flags + bit, 8);
        eight &= (std::uint64_t{1} << (8 * (count - bit))) - 1;
        word |= ((eight * spread) >> 56) << bit;
    }
    return word;
}

// Row after row: for channels that lie closer together than positions do.
template <class Bits, bool Folded, bool Contiguous>
TS_INLINE void pack_rows(const Run& run, Firing firing, std::uint64_t* out) {
    const std::size_t words = words_of(run.channels);
    const std::size_t width = std::min(run.channels, kFlags);
    const std::size_t rows = kFlags / width;
    const bool dense = Contiguous && run.position_stride ==
                                         static_cast<std::ptrdiff_t>(run.channels * sizeof(Bits));
    std::uint8_t flags[kFlags + 8];
    for (std::size_t start = 0; start < run.positions; start += rows) {
        const std::size_t count = std::min(rows, run.positions - start);
        for (std::size_t channel = 0; channel < run.channels; channel += width) {
            const std::size_t channels = std::min(width, run.channels - channel);
            const char* data = run.data +
                               static_cast<std::ptrdiff_t>(start) * run.position_stride +
                               static_cast<std::ptrdiff_t>(channel) * run.channel_stride;
            if (dense) {
                flag<Bits, Folded, true>(data, 0, count * channels, firing, flags);
            } else {
                for (std::size_t row = 0; row < count; ++row) {
                    flag<Bits, Folded, Contiguous>(
                        data + static_cast<std::ptrdiff_t>(row) * run.position_stride,
                        run.channel_stride, channels, firing, flags + row * channels);
                }
            }
            for (std::size_t row = 0; row < count; ++row) {
                std::uint64_t* target = out + (start + row) * words + channel / 64;
                for (std::size_t bit = 0; bit < channels; bit += 64) {
                    *target++ = squeeze(flags + row * channels + bit,
                                        std::min<std::size_t>(64, channels - bit));
                }
            }
        }
    }
}

// Adds a few channels of `count` positions to `lanes`, at bit `shift` and above.
template <class Bits, bool Folded, bool Contiguous, std::size_t... Channel>
TS_INLINE void add_channels(const Run& run, std::size_t channel, std::size_t start,
                            std::size_t count, Firing firing, std::size_t shift, Bits* lanes,
                            std::index_sequence<Channel...>) {
    const Bits first = static_cast<Bits>(firing.first), span = static_cast<Bits>(firing.span);
    const std::ptrdiff_t step =
        Contiguous ? static_cast<std::ptrdiff_t>(sizeof(Bits)) : run.position_stride;
    const char* data = run.data + static_cast<std::ptrdiff_t>(channel) * run.channel_stride +
                       static_cast<std::ptrdiff_t>(start) * step;
    for (std::size_t i = 0; i < count; ++i) {
        const char* element = data + static_cast<std::ptrdiff_t>(i) * step;
        Bits lane = 0;
        ((lane = static_cast<Bits>(
              lane | (fires<Bits, Folded>(
                          load<Bits>(element +
                                     static_cast<std::ptrdiff_t>(Channel) * run.channel_stride),
                          first, span)
                          ? Bits{1} << Channel
                          : 0))),
         ...);
        lanes[start + i] = static_cast<Bits>(lanes[start + i] | static_cast<Bits>(lane << shift));
    }
}

// All positions, in whole vectors: the last one overlaps, setting bits twice is harmless.
template <class Bits, bool Folded, bool Contiguous, std::size_t Channels>
TS_INLINE void add_group(const Run& run, std::size_t channel, Firing firing, std::size_t shift,
                         Bits* lanes) {
    constexpr std::size_t vector = 64 / sizeof(Bits);
    constexpr auto group = std::make_index_sequence<Channels>();
    if (Contiguous && run.positions >= vector) {
        add_channels<Bits, Folded, Contiguous>(run, channel, 0, run.positions / vector * vector,
                                               firing, shift, lanes, group);
        if (run.positions % vector != 0) {
            add_channels<Bits, Folded, Contiguous>(run, channel, run.positions - vector, vector,
                                                   firing, shift, lanes, group);
        }
    } else {
        add_channels<Bits, Folded, Contiguous>(run, channel, 0, run.positions, firing, shift,
                                               lanes, group);
    }
}

// Channel after channel, for positions that lie closer together than channels do. Bits gather in
// lanes as wide as an element, so that nothing is widened or narrowed in the inner loop.
template <class Bits, bool Folded, bool Contiguous>
TS_INLINE void pack_planes(const Run& run, Firing firing, std::uint64_t* out) {
    constexpr std::size_t lane_bits = 8 * sizeof(Bits);
    const std::size_t row_words = words_of(run.channels);
    std::uint64_t words[kMostPositions];
    Bits lanes[kMostPositions];
    for (std::size_t word = 0; word < row_words; ++word) {
        const std::size_t end = std::min(run.channels, 64 * (word + 1));
        std::fill_n(words, run.positions, 0);
        for (std::size_t base = 64 * word; base < end; base += lane_bits) {
            const std::size_t lane_end = std::min(end, base + lane_bits);
            std::size_t channel = base;
            std::fill_n(lanes, run.positions, Bits{0});
            for (; channel + 8 <= lane_end; channel += 8) {
                add_group<Bits, Folded, Contiguous, 8>(run, channel, firing, channel - base, lanes);
            }
            if (channel + 4 <= lane_end) {
                add_group<Bits, Folded, Contiguous, 4>(run, channel, firing, channel - base, lanes);
                channel += 4;
            }
            for (; channel < lane_end; ++channel) {
                add_group<Bits, Folded, Contiguous, 1>(run, channel, firing, channel - base, lanes);
            }
            for (std::size_t i = 0; i < run.positions; ++i) {
                words[i] |= static_cast<std::uint64_t>(lanes[i]) << (base % 64);
            }
        }
        for (std::size_t i = 0; i < run.positions; ++i) out[i * row_words + word] = words[i];
    }
}

// At most kMostPositions positions.
template <class Bits, bool Folded>
TS_INLINE void pack_run(const Run& run, Firing firing, std::uint64_t* out) {
    constexpr std::ptrdiff_t item = sizeof(Bits);
    const auto distance = [](std::ptrdiff_t stride) { return stride < 0 ? -stride : stride; };
    const bool planes =
        run.positions >= 8 &&
        (run.channels == 1 || distance(run.position_stride) < distance(run.channel_stride));
    if (planes && run.position_stride == item) {
        pack_planes<Bits, Folded, true>(run, firing, out);
    } else if (planes) {
        pack_planes<Bits, Folded, false>(run, firing, out);
    } else if (run.channel_stride == item) {
        pack_rows<Bits, Folded, true>(run, firing, out);
    } else {
        pack_rows<Bits, Folded, false>(run, firing, out);
    }
}

}  // namespace tensorstate
