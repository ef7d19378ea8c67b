// Rows of chosen positions: activations and places in, packed rows out, sample after sample.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fork_gate.hpp"
#include "memory.hpp"
#include "parts.hpp"
#include "source.hpp"
#include "team.hpp"

namespace tensorstate {

// Rows of words in, rows of bytes out. Rows that fill their words are written in place.
class ByteRows {
  public:
    ByteRows(std::size_t neurons, std::uint8_t* out, std::size_t most)
        : bytes_((neurons + 7) / 8), words_(words_of(neurons)), out_(out) {
        if (!in_place()) waiting_ = take_memory(std::max(kChunkBytes, most * words_ * 8));
    }

    std::uint64_t* room() const noexcept {
        return static_cast<std::uint64_t*>(in_place() ? static_cast<void*>(out_) : waiting_.get());
    }

    void keep(std::size_t count) noexcept {
        if (!in_place()) copy(count);
        out_ += count * bytes_;
    }

  private:
    bool in_place() const noexcept { return bytes_ == 8 * words_; }

    void copy(std::size_t count) const noexcept {
        const std::uint64_t* const words = room();
        switch (bytes_) {
            case 1: return copy_of<1>(words, count);
            case 2: return copy_of<2>(words, count);
            case 3: return copy_of<3>(words, count);
            case 4: return copy_of<4>(words, count);
            case 5: return copy_of<5>(words, count);
            case 6: return copy_of<6>(words, count);
            case 7: return copy_of<7>(words, count);
            default:
                for (std::size_t i = 0; i < count; ++i) {
                    std::memcpy(out_ + i * bytes_, words + i * words_, bytes_);
                }
        }
    }

    template <std::size_t Bytes>
    void copy_of(const std::uint64_t* words, std::size_t count) const noexcept {
        for (std::size_t i = 0; i < count; ++i) std::memcpy(out_ + i * Bytes, words + i, Bytes);
    }

    std::size_t bytes_, words_;
    std::uint8_t* out_;
    Memory waiting_;
};

// A layer's activations: `grid` are the axes of a sample's positions.
struct Batch {
    const char* data;
    Axis samples;
    std::vector<Axis> grid;
    Axis channels;
    std::size_t item_bytes;
    bool folded;
    Firing firing;

    std::size_t positions() const {
        std::size_t product = 1;
        for (const Axis& axis : grid) product *= axis.size;
        return product;
    }
};

// How far places are from a sample's first position, in bytes. Places are in C order of the grid.
inline std::vector<std::ptrdiff_t> offsets_of(const std::vector<Axis>& grid,
                                              const std::ptrdiff_t* places, std::size_t count,
                                              std::size_t positions) {
    std::vector<std::ptrdiff_t> offsets(count);
    for (std::size_t i = 0; i < count; ++i) {
        std::size_t left = static_cast<std::size_t>(places[i]);
        if (left >= positions) {
            throw std::invalid_argument("place " + std::to_string(places[i]) +
                                        " is none of a sample's " + std::to_string(positions) +
                                        " positions");
        }
        for (std::size_t axis = grid.size(); axis-- > 0; left /= grid[axis].size) {
            offsets[i] += static_cast<std::ptrdiff_t>(left % grid[axis].size) * grid[axis].stride;
        }
    }
    return offsets;
}

// The positions' elements, one line for each channel, side by side.
template <std::size_t Item>
void gather_lines(const std::vector<const char*>& positions, Axis channels, char* out) {
    for (std::size_t channel = 0; channel < channels.size; ++channel) {
        const std::ptrdiff_t offset = static_cast<std::ptrdiff_t>(channel) * channels.stride;
        for (const char* position : positions) {
            std::memcpy(out, position + offset, Item);
            out += Item;
        }
    }
}

class ChosenPositions {
  public:
    ChosenPositions(const Kernel& kernel, const Batch& batch)
        : batch_(batch), packer_(kernel, batch.item_bytes, batch.folded, batch.firing, false) {}

    void pack(const std::vector<std::ptrdiff_t>& offsets, std::uint8_t* out) const {
        const Axis channels = batch_.channels;
        const auto item = static_cast<std::ptrdiff_t>(batch_.item_bytes);
        const bool in_line = channels.size == 1 || channels.stride == item;
        const std::size_t line_bytes = channels.size * batch_.item_bytes;
        const std::size_t most = std::clamp<std::size_t>(kChunkBytes / line_bytes, 1, kMostAtOnce);
        ByteRows rows(channels.size, out, most);
        Memory gathered;
        if (!in_line) gathered = take_memory(std::max(kChunkBytes, line_bytes));
        std::vector<const char*> positions;
        positions.reserve(most);
        const auto pack_some = [&] {
            in_line ? pack_lines(positions, rows.room())
                    : pack_gathered(positions, static_cast<char*>(gathered.get()), rows.room());
            rows.keep(positions.size());
            positions.clear();
        };
        for (std::size_t sample = 0; sample < batch_.samples.size; ++sample) {
            const char* const first =
                batch_.data + static_cast<std::ptrdiff_t>(sample) * batch_.samples.stride;
            for (const std::ptrdiff_t offset : offsets) {
                positions.push_back(first + offset);
                if (positions.size() == most) pack_some();
            }
        }
        if (!positions.empty()) pack_some();
    }

  private:
    static constexpr std::size_t kMostAtOnce = 512;

    // Of neurons that lie side by side.
    void pack_lines(const std::vector<const char*>& positions, std::uint64_t* words) const {
        const std::size_t pitch = words_of(batch_.channels.size);
        for (std::size_t i = 0; i < positions.size(); ++i) {
            packer_.pack({positions[i], 1, 0, batch_.channels.size, batch_.channels.stride},
                         words + i * pitch);
        }
    }

    void pack_gathered(const std::vector<const char*>& positions, char* gathered,
                       std::uint64_t* words) const {
        const Axis channels = batch_.channels;
        switch (batch_.item_bytes) {
            case 1: gather_lines<1>(positions, channels, gathered); break;
            case 2: gather_lines<2>(positions, channels, gathered); break;
            case 4: gather_lines<4>(positions, channels, gathered); break;
            default: gather_lines<8>(positions, channels, gathered);
        }
        const auto item = static_cast<std::ptrdiff_t>(batch_.item_bytes);
        const auto line = static_cast<std::ptrdiff_t>(positions.size()) * item;
        packer_.pack({gathered, positions.size(), item, channels.size, line}, words);
    }

    const Batch& batch_;
    Packer packer_;
};

// At ascending places: all positions are packed, and those in between dropped.
inline void pack_and_drop(const Kernel& kernel, const Batch& batch, const std::ptrdiff_t* places,
                          std::size_t count, std::uint8_t* out) {
    const std::size_t words = words_of(batch.channels.size), bytes = (batch.channels.size + 7) / 8;
    const std::size_t most = std::clamp<std::size_t>(kChunkBytes / (8 * words), 1, kMostPositions);
    const Memory packed = take_memory(std::max(kChunkBytes, 8 * words * most));
    auto* const rows = static_cast<std::uint64_t*>(packed.get());
    for (std::size_t sample = 0; sample < batch.samples.size; ++sample) {
        const char* const first =
            batch.data + static_cast<std::ptrdiff_t>(sample) * batch.samples.stride;
        Activations source(kernel, first, batch.grid, batch.channels, batch.item_bytes,
                           batch.folded, batch.firing);
        std::size_t begin = 0, end = 0;
        for (std::size_t i = 0; i < count; ++i, out += bytes) {
            const auto place = static_cast<std::size_t>(places[i]);
            while (place >= end) {
                begin = end;
                end += source.next(Room{rows, nullptr, most}).size;
            }
            std::memcpy(out, rows + (place - begin) * words, bytes);
        }
    }
}

// Positions side by side are compared five times as fast as they are gathered.
inline bool better_all(const Batch& batch, const std::ptrdiff_t* places, std::size_t count) {
    return !batch.grid.empty() && batch.channels.size > 1 &&
           batch.grid.back().stride == static_cast<std::ptrdiff_t>(batch.item_bytes) &&
           count > batch.positions() / 5 && std::is_sorted(places, places + count);
}

// At `count` places of each sample. Each thread packs some samples.
inline void pack_chosen(const Kernel& kernel, const Batch& batch, const std::ptrdiff_t* places,
                        std::size_t count, std::size_t threads, std::uint8_t* out) {
    const InsideGate inside;
    const auto offsets = offsets_of(batch.grid, places, count, batch.positions());
    const bool all = better_all(batch, places, count);
    const std::size_t samples = batch.samples.size, bytes = (batch.channels.size + 7) / 8;
    // What is gathered comes from far apart: a cache line for an element.
    const std::uint64_t read = std::uint64_t{samples} * (all ? batch.positions() : 4 * count);
    const std::size_t lanes = lanes_for(read, batch.channels.size, threads);
    const std::size_t parts = std::min(samples, lanes == 1 ? 1 : 4 * lanes);
    Numbers numbers(parts);
    team.run(std::min(lanes, parts), [&](std::size_t) {
        for (std::size_t part; numbers.take(part);) {
            const std::size_t begin = samples * part / parts, end = samples * (part + 1) / parts;
            Batch some = batch;
            some.data += static_cast<std::ptrdiff_t>(begin) * batch.samples.stride;
            some.samples.size = end - begin;
            std::uint8_t* const target = out + begin * count * bytes;
            all ? pack_and_drop(kernel, some, places, count, target)
                : ChosenPositions(kernel, some).pack(offsets, target);
        }
    });
}

// At all positions. Each thread packs some of them.
inline void pack_all(const Kernel& kernel, const Batch& batch, std::size_t threads,
                     std::uint8_t* out) {
    const InsideGate inside;
    std::vector<Axis> axes{batch.samples};
    axes.insert(axes.end(), batch.grid.begin(), batch.grid.end());
    const Activations whole(kernel, batch.data, std::move(axes), batch.channels, batch.item_bytes,
                            batch.folded, batch.firing);
    const std::size_t words = words_of(batch.channels.size), bytes = (batch.channels.size + 7) / 8;
    const std::size_t most = std::clamp<std::size_t>(kChunkBytes / (8 * words), 1, kMostPositions);
    const std::size_t lanes = lanes_for(whole.rows(), batch.channels.size, threads);
    const Parts parts(whole, lanes, std::numeric_limits<std::uint32_t>::max());
    Numbers numbers(parts.count());
    team.run(lanes, [&](std::size_t) {
        for (std::size_t part; numbers.take(part);) {
            const auto source = whole.part(parts.begin(part), parts.end(part));
            ByteRows rows(batch.channels.size, out + parts.begin(part) * bytes, most);
            while (const std::size_t found = source->next(Room{rows.room(), nullptr, most}).size) {
                rows.keep(found);
            }
        }
    });
}

}  // namespace tensorstate
