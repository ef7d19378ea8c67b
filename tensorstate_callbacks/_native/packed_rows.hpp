// Rows that are packed already: bytes in, blocks of rows out.
#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "source.hpp"

namespace tensorstate {

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

// Rows of bytes that are packed already, with or without counts.
class PackedRows final : public Source {
  public:
    PackedRows(const Kernel& kernel, const std::uint8_t* rows, const std::uint64_t* counts,
               std::size_t size, std::size_t neurons)
        : kernel_(kernel), rows_(rows), counts_(counts), size_(size), neurons_(neurons),
          bytes_((neurons + 7) / 8), words_(words_of(neurons)),
          last_mask_(~std::uint64_t{0} >> (64 * words_ - neurons)) {}

    std::uint64_t rows() const override { return size_; }
    bool counted() const override { return counts_ != nullptr; }

    // invalid_argument where a row has bits beyond its neurons.
    Rows next(const Room& room) override {
        auto* const target = reinterpret_cast<std::uint8_t*>(room.words);
        const std::size_t row_bytes = room.packed ? bytes_ : 8 * words_;
        Rows found{room.packed ? nullptr : room.words, counts_ == nullptr ? nullptr : room.counts};
        if (room.packed) found.packed = target;
        found.bytes = bytes_;
        while (found.size == 0 && done_ < size_) {
            const std::size_t count = std::min({room.size, at_once(), size_ - done_});
            const std::uint8_t* const rows = rows_ + done_ * bytes_;
            // What is checked is what is counted, whatever another thread writes there meanwhile.
            if (row_bytes == bytes_) {
                std::memcpy(target, rows, count * bytes_);
                check_padding(target, count);
            } else {
                check_padding(rows, count);
                copy_words(rows, count, room.words);
            }
            found.size = count;
            if (counts_ != nullptr) found.size = copy_counts(count, room.counts, target, row_bytes);
            done_ += count;
            // The next rows come closer while these are counted.
            const std::size_t coming = std::min(count, size_ - done_) * bytes_;
            for (std::size_t i = 0; i < coming; i += 64) TS_PREFETCH_READ(rows + count * bytes_ + i);
        }
        return found;
    }

    std::unique_ptr<Source> part(std::uint64_t begin, std::uint64_t end) const override {
        if (counts_ != nullptr) return nullptr;
        return std::make_unique<PackedRows>(kernel_, rows_ + begin * bytes_, nullptr,
                                            static_cast<std::size_t>(end - begin), neurons_);
    }

  private:
    // As many as memory takes to answer for the next ones, in whole groups of those that engines
    // look up together.
    std::size_t at_once() const { return std::max<std::size_t>(32, 1536 / bytes_ / 32 * 32); }

    void check_padding(const std::uint8_t* rows, std::size_t count) const {
        if (padding_is_clear(rows, count, neurons_)) return;
        throw std::invalid_argument("packed rows have bits set beyond their " +
                                    std::to_string(neurons_) + " neurons");
    }

    // Of rows that don't fill their words. The padding is masked, though it was checked.
    void copy_words(const std::uint8_t* rows, std::size_t count, std::uint64_t* words) const {
        if (words_ == 1) return kernel_.widen(rows, bytes_, count, last_mask_, words);
        const std::size_t whole = words_ == 2 ? copy_pairs(count, words) : 0;
        for (std::size_t i = whole; i < count; ++i) {
            std::uint64_t* row = words + i * words_;
            row[words_ - 1] = 0;
            std::memcpy(row, rows + i * bytes_, bytes_);
            row[words_ - 1] &= last_mask_;
        }
    }

    // Copies counts, and drops the copied rows that were never seen. How many are left.
    std::size_t copy_counts(std::size_t count, std::uint64_t* counts, std::uint8_t* rows,
                            std::size_t row_bytes) const {
        std::copy_n(counts_ + done_, count, counts);
        std::size_t kept = 0;
        for (std::size_t i = 0; i < count; ++i) {
            if (counts[i] == 0) continue;
            if (kept != i) {
                counts[kept] = counts[i];
                std::memcpy(rows + kept * row_bytes, rows + i * row_bytes, row_bytes);
            }
            ++kept;
        }
        return kept;
    }

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
    std::size_t size_, neurons_, bytes_, words_;
    std::uint64_t last_mask_;
    std::size_t done_ = 0;
};

}  // namespace tensorstate
