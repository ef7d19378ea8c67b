// Where states come from: memory in, blocks of packed rows out, as often as asked.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "pack.hpp"

namespace tensorstate {

struct Rows {
    std::uint64_t* words = nullptr;
    std::uint64_t* counts = nullptr;  // null: each row once
    std::size_t size = 0;
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
    virtual std::uint64_t states() const = 0;  // all of them; overflow_error beyond 64 bits
    virtual std::uint64_t rows() const = 0;    // how many rows will come, repeats included
    virtual bool counted() const = 0;          // whether they come with counts
    virtual void rewind() = 0;
    virtual std::size_t next(const Rows& room) = 0;  // fills at most room.size rows; 0: no more
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

    std::uint64_t states() const override { return states_; }
    std::uint64_t rows() const override { return states_; }
    bool counted() const override { return false; }

    void rewind() override {
        std::fill(index_.begin(), index_.end(), 0);
        left_ = states_;
    }

    std::size_t next(const Rows& room) override {
        const std::size_t words = words_of(channels_.size);
        std::size_t filled = 0;
        while (filled < room.size && left_ != 0) {
            const Axis& inner = axes_.back();
            const std::size_t rest = inner.size - index_.back(), space = room.size - filled;
            if (rest > space && filled != 0) break;  // whole runs pack faster
            const std::size_t count = std::min({rest, space, kMostPositions});
            packer_.pack({position(), count, inner.stride, channels_.size, channels_.stride},
                         room.words + filled * words);
            filled += count;
            advance(count);
        }
        return filled;
    }

  private:
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

// The last bytes of packed rows, or-ed together. All bytes of many rows are at once: the last byte
// of each alone would be slower to read.
template <std::size_t Bytes>
std::uint8_t last_bytes(const std::uint8_t* rows, std::size_t size) {
    constexpr std::size_t together = 16;
    std::uint8_t sums[together * Bytes] = {}, last = 0;
    for (; size >= together; size -= together, rows += together * Bytes) {
        for (std::size_t i = 0; i < together * Bytes; ++i) sums[i] |= rows[i];
    }
    for (std::size_t i = 1; i <= together; ++i) last |= sums[i * Bytes - 1];
    for (std::size_t i = 1; i <= size; ++i) last |= rows[i * Bytes - 1];
    return last;
}

// Whether packed rows have no bit beyond their neurons.
inline bool padding_is_clear(const std::uint8_t* rows, std::size_t size, std::size_t neurons) {
    const std::size_t bytes = (neurons + 7) / 8;
    if (neurons % 8 == 0) return true;
    std::uint8_t last = 0;
    switch (bytes) {
        case 1: last = last_bytes<1>(rows, size); break;
        case 2: last = last_bytes<2>(rows, size); break;
        case 3: last = last_bytes<3>(rows, size); break;
        case 4: last = last_bytes<4>(rows, size); break;
        case 5: last = last_bytes<5>(rows, size); break;
        case 6: last = last_bytes<6>(rows, size); break;
        case 7: last = last_bytes<7>(rows, size); break;
        case 8: last = last_bytes<8>(rows, size); break;
        default:
            for (std::size_t i = 1; i <= size; ++i) last |= rows[i * bytes - 1];
    }
    return last >> neurons % 8 == 0;
}

// Rows of bytes that are packed already, with or without counts; all counts are at least 1.
class PackedRows final : public Source {
  public:
    PackedRows(const Kernel& kernel, const std::uint8_t* rows, const std::uint64_t* counts,
               std::size_t size, std::size_t neurons)
        : kernel_(kernel), rows_(rows), counts_(counts), size_(size), bytes_((neurons + 7) / 8),
          words_(words_of(neurons)),
          last_mask_(~std::uint64_t{0} >> (64 * words_ - neurons)) {}

    std::uint64_t states() const override {
        if (counts_ == nullptr) return size_;
        std::uint64_t states = 0;
        for (std::size_t i = 0; i < size_; ++i) states = exact_sum(states, counts_[i]);
        return states;
    }

    std::uint64_t rows() const override { return size_; }
    bool counted() const override { return counts_ != nullptr; }
    void rewind() override { done_ = 0; }

    std::size_t next(const Rows& room) override {
        // They are to lie in the nearest cache until they are counted.
        const std::size_t most = std::min(room.size, std::max<std::size_t>(1, kMostWords / words_));
        const std::size_t count = std::min(most, size_ - done_);
        const std::uint8_t* rows = rows_ + done_ * bytes_;
        // Padding was checked; a narrow layer's table must not depend on it.
        if (bytes_ == 8 * words_) {
            std::memcpy(room.words, rows, count * bytes_);
        } else if (words_ == 1) {
            kernel_.widen(rows, bytes_, count, last_mask_, room.words);
        } else {
            const std::size_t whole = words_ == 2 ? copy_pairs(count, room.words) : 0;
            for (std::size_t i = whole; i < count; ++i) {
                std::uint64_t* row = room.words + i * words_;
                row[words_ - 1] = 0;
                std::memcpy(row, rows + i * bytes_, bytes_);
                row[words_ - 1] &= last_mask_;
            }
        }
        if (counts_ != nullptr) std::copy_n(counts_ + done_, count, room.counts);
        done_ += count;
        // The next rows come closer while these are counted.
        const std::size_t coming = std::min(count, size_ - done_) * bytes_;
        for (std::size_t i = 0; i < coming; i += 64) TS_PREFETCH_READ(rows + count * bytes_ + i);
        return count;
    }

  private:
    static constexpr std::size_t kMostWords = 1024;

    // One load a word, where rows follow: the mask drops the next row. How many it copied.
    std::size_t copy_pairs(std::size_t count, std::uint64_t* words) const {
        const std::size_t bytes = bytes_, left = size_ - done_, behind = 15 / bytes;
        const std::size_t whole = std::min(count, left - std::min(left, behind));
        const std::uint8_t* row = rows_ + done_ * bytes;
        const std::uint64_t mask = last_mask_;
        for (std::size_t i = 0; i < whole; ++i, row += bytes, words += 2) {
            std::memcpy(words, row, 16);
            words[1] &= mask;
        }
        return whole;
    }

    const Kernel& kernel_;
    const std::uint8_t* rows_;
    const std::uint64_t* counts_;
    std::size_t size_, bytes_, words_;
    std::uint64_t last_mask_;
    std::size_t done_ = 0;
};

}  // namespace tensorstate
