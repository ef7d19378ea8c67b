// Packing: one run of positions in strided memory in, one row of bits per position out.
//
// Elements turn into lines of bits along whichever axis follows memory. Lines of channels are
// rows already; lines of positions are transposed. Bit c % 64 of word c / 64 of a row is channel c.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernel.hpp"

namespace tensorstate {

// Of one run. Planes of 64 by 64 are read in one go: pieces of them kept memory waiting.
inline constexpr std::size_t kMostPositions = 4096;
inline constexpr std::size_t kPlaneWords = 4096;   // of bits that wait to be transposed
inline constexpr std::size_t kMostSquares = kPlaneWords / 64;
inline constexpr std::size_t kMostGathered = 512;  // elements, whole words of bits

struct Run {
    const char* data;
    std::size_t positions;
    std::ptrdiff_t position_stride;
    std::size_t channels;
    std::ptrdiff_t channel_stride;
};

class Packer {
  public:
    Packer(const Kernel& kernel, std::size_t item_bytes, bool folded, Firing firing, bool far)
        : kernel_(kernel), firing_(firing), item_(static_cast<std::ptrdiff_t>(item_bytes)),
          far_(far) {
        std::size_t width = 0;
        while ((std::size_t{1} << width) < item_bytes) ++width;
        compare_ = kernel.compare[width][folded];
    }

    // At most kMostPositions positions.
    void pack(const Run& run, std::uint64_t* out) const {
        const auto distance = [](std::ptrdiff_t stride) { return stride < 0 ? -stride : stride; };
        if (run.positions > 1 && run.channels > 1 && run.position_stride != 0 &&
            distance(run.position_stride) < distance(run.channel_stride)) {
            pack_planes(run, out);
        } else {
            compare({run.data, run.positions, run.position_stride, run.channels, far_},
                    run.channel_stride, {out, words_of(run.channels), 1});
        }
    }

  private:
    // For positions that lie closer together than channels do.
    void pack_planes(const Run& run, std::uint64_t* out) const {
        alignas(64) std::uint64_t planes[kPlaneWords + 8 * kMostSquares];
        const std::size_t pitch = words_of(run.channels);
        for (std::size_t first = 0; first < run.channels; first += kMostTogether) {
            const std::size_t channels = std::min(kMostTogether, run.channels - first);
            const std::size_t words = words_of(channels), most = kPlaneWords / words / 64 * 64;
            for (std::size_t start = 0; start < run.positions; start += most) {
                const std::size_t positions = std::min(most, run.positions - start);
                const char* data = run.data +
                                   static_cast<std::ptrdiff_t>(first) * run.channel_stride +
                                   static_cast<std::ptrdiff_t>(start) * run.position_stride;
                compare({data, channels, run.channel_stride, positions, far_}, run.position_stride,
                        {planes, 1, square_pitch(channels)});
                kernel_.transpose(planes, channels, positions, out + start * pitch + first / 64,
                                  pitch);
            }
        }
    }

    // `step`: from one element of a line to the next.
    void compare(const Lines& lines, std::ptrdiff_t step, const Bits64& bits) const {
        const std::ptrdiff_t bytes = static_cast<std::ptrdiff_t>(lines.length) * item_;
        const bool dense = lines.count > 1 && lines.stride == bytes;
        if (step != item_ && lines.length > 1) {
            compare_gathered(lines, step, bits);
        } else if (dense && lines.length <= kMostCut) {
            alignas(64) std::uint64_t whole[kMostPositions * kMostCut / 64 + kBeyond];
            compare_({lines.data, 1, 0, lines.count * lines.length, far_}, firing_, {whole, 0, 1});
            kernel_.cut(whole, lines.length, lines.count, bits.words);
        } else if (dense && lines.length % 64 == 0 &&
                   (lines.length == 64 || bits.word_pitch == 1)) {
            compare_({lines.data, 1, 0, lines.count * lines.length, far_}, firing_,
                     {bits.words, 0, 1});
        } else {
            compare_(lines, firing_, bits);
        }
    }

    void compare_gathered(const Lines& lines, std::ptrdiff_t step, const Bits64& bits) const {
        char gathered[kMostGathered * 8];
        for (std::size_t n = 0; n < lines.count; ++n) {
            const char* line = lines.data + static_cast<std::ptrdiff_t>(n) * lines.stride;
            for (std::size_t start = 0; start < lines.length; start += kMostGathered) {
                const std::size_t length = std::min(kMostGathered, lines.length - start);
                const char* data = line + static_cast<std::ptrdiff_t>(start) * step;
                switch (item_) {
                    case 1: gather<1>(data, step, length, gathered); break;
                    case 2: gather<2>(data, step, length, gathered); break;
                    case 4: gather<4>(data, step, length, gathered); break;
                    default: gather<8>(data, step, length, gathered);
                }
                std::uint64_t* words =
                    bits.words + n * bits.line_pitch + start / 64 * bits.word_pitch;
                compare_({gathered, 1, 0, length, false}, firing_, {words, 0, bits.word_pitch});
            }
        }
    }

    template <std::size_t Item>
    static void gather(const char* data, std::ptrdiff_t step, std::size_t count, char* gathered) {
        for (std::size_t i = 0; i < count; ++i, data += step) {
            std::memcpy(gathered + i * Item, data, Item);
        }
    }

    const Kernel& kernel_;
    Compare compare_;
    Firing firing_;
    std::ptrdiff_t item_;
    bool far_;
};

}  // namespace tensorstate
