// Where states come from: memory in, blocks of packed rows out, each read once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "pack.hpp"

namespace tensorstate {

// Rows to read: words of 64 bits, or `packed` in `bytes` bytes each, where `words` is null.
struct Rows {
    const std::uint64_t* words = nullptr;
    const std::uint64_t* counts = nullptr;  // null: each row once
    std::size_t size = 0;
    const std::uint8_t* packed = nullptr;
    std::size_t bytes = 0;
    std::uint32_t* places = nullptr;  // see Engine::finds_places
};

// Where rows may be written, and whether they may stay packed.
struct Room {
    std::uint64_t* words = nullptr;
    std::uint64_t* counts = nullptr;
    std::size_t size = 0;
    bool packed = false;
};

inline std::uint64_t exact_sum(std::uint64_t a, std::uint64_t b) {
    if (b > UINT64_MAX - a) {
        throw std::overflow_error("a counter holds at most 2**64 - 1 states");
    }
    return a + b;
}

class Source {
  public:
    virtual ~Source() = default;
    // How many rows will come, repeats included; with counts, at most so many.
    virtual std::uint64_t rows() const = 0;
    virtual bool counted() const = 0;  // whether they come with counts, all above 0
    // At most room.size rows, in the room; none: no more.
    virtual Rows next(const Room& room) = 0;
    // The rows from one on up to another, to be read by another thread; null where that can't be.
    virtual std::unique_ptr<Source> part(std::uint64_t, std::uint64_t) const { return nullptr; }
    // How many rows are best read together.
    virtual std::size_t run() const { return 1; }
};

struct Axis {
    std::size_t size;
    std::ptrdiff_t stride;
};

// Activations in strided memory, one state per position, in C order of the positions.
class Activations final : public Source {
  public:
    Activations(const Kernel& kernel, const char* data, std::vector<Axis> axes, Axis channels,
                std::size_t item_bytes, bool folded, Firing firing)
        : data_(data), axes_(coalesced(axes)), index_(axes_.size()), channels_(channels),
          states_(product(axes_)), left_(states_),
          packer_(kernel, item_bytes, folded, firing,
                  states_ * channels.size * item_bytes > kMostInCache) {}

    std::uint64_t rows() const override { return states_; }
    bool counted() const override { return false; }

    Rows next(const Room& room) override {
        const std::size_t words = words_of(channels_.size);
        std::size_t filled = 0;
        while (filled < room.size && left_ != 0) {
            const Axis& inner = axes_.back();
            const std::size_t rest = inner.size - index_.back(), space = room.size - filled;
            // Whole runs pack faster, and rows are counted sooner in the nearest cache.
            if (filled != 0 && (rest > space || filled >= kEnough)) break;
            const std::size_t left = static_cast<std::size_t>(left_);
            const std::size_t count = std::min({rest, space, left, kMostPositions});
            packer_.pack({position(), count, inner.stride, channels_.size, channels_.stride},
                         room.words + filled * words);
            filled += count;
            advance(count);
        }
        return Rows{room.words, nullptr, filled};
    }

    std::unique_ptr<Source> part(std::uint64_t begin, std::uint64_t end) const override {
        auto part = std::make_unique<Activations>(*this);
        part->states_ = part->left_ = end - begin;
        for (std::size_t i = axes_.size(); i-- > 0; begin /= axes_[i].size) {
            part->index_[i] = static_cast<std::size_t>(begin % axes_[i].size);
        }
        return part;
    }
    std::size_t run() const override { return axes_.back().size; }

  private:
    static constexpr std::size_t kEnough = 2048;
    static constexpr std::size_t kMostInCache = std::size_t{16} << 20;  // bytes, of usual caches

    static std::uint64_t product(const std::vector<Axis>& axes) {
        std::uint64_t product = 1;
        for (const Axis& axis : axes) product *= axis.size;
        return product;
    }

    // Neighbouring axes that step through memory as one become one.
    static std::vector<Axis> coalesced(const std::vector<Axis>& axes) {
        std::vector<Axis> few;
        for (const Axis& axis : axes) {
            if (axis.size == 0) return {Axis{0, 0}};  // strides of no memory may be anything
        }
        for (const Axis& axis : axes) {
            if (axis.size == 1) continue;
            if (!few.empty() &&
                few.back().stride == axis.stride * static_cast<std::ptrdiff_t>(axis.size)) {
                few.back() = Axis{few.back().size * axis.size, axis.stride};
            } else {
                few.push_back(axis);
            }
        }
        if (few.empty()) few.push_back(Axis{1, 0});
        return few;
    }

    const char* position() const {
        const char* data = data_;
        for (std::size_t i = 0; i < axes_.size(); ++i) {
            data += static_cast<std::ptrdiff_t>(index_[i]) * axes_[i].stride;
        }
        return data;
    }

    void advance(std::size_t count) {
        left_ -= count;
        index_.back() += count;
        for (std::size_t i = axes_.size(); i-- > 0 && index_[i] == axes_[i].size;) {
            index_[i] = 0;
            if (i > 0) ++index_[i - 1];
        }
    }

    const char* data_;
    std::vector<Axis> axes_;
    std::vector<std::size_t> index_;
    Axis channels_;
    std::uint64_t states_, left_;
    Packer packer_;
};

}  // namespace tensorstate
