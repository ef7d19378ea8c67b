// Where wide rows lie with their counts: a row in, its place out. Chunks never move.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "memory.hpp"
#include "platform.hpp"

namespace tensorstate {

// An entry is a count and then a row.
class Arena {
  public:
    explicit Arena(std::size_t row_words) : entry_words_(row_words + 1) {
        const std::size_t entry_bytes = entry_words_ * sizeof(std::uint64_t);
        per_chunk_ = std::max<std::size_t>(1, kChunkBytes / entry_bytes);
        chunk_bytes_ = per_chunk_ * entry_bytes;
        // A little waste makes a chunk of the size that the pool keeps.
        if (chunk_bytes_ < kChunkBytes && kChunkBytes - chunk_bytes_ < chunk_bytes_ / 64) {
            chunk_bytes_ = kChunkBytes;
        }
        while ((std::size_t{1} << in_chunk_bits_) < per_chunk_) ++in_chunk_bits_;
    }

    std::size_t size() const noexcept { return size_; }
    std::size_t nbytes() const noexcept { return chunks_.size() * chunk_bytes_; }

    // Entries are numbered as they come; a place is a number that finds its entry without dividing.
    std::uint32_t place(std::size_t number) const noexcept {
        return static_cast<std::uint32_t>((number / per_chunk_) << in_chunk_bits_ |
                                          number % per_chunk_);
    }
    TS_INLINE std::uint64_t* entry(std::uint32_t place) const noexcept {
        const std::size_t in_chunk = place & ((std::uint32_t{1} << in_chunk_bits_) - 1);
        return static_cast<std::uint64_t*>(chunks_[place >> in_chunk_bits_].get()) +
               in_chunk * entry_words_;
    }

    // bad_alloc changes nothing.
    std::uint32_t add(const std::uint64_t* row, std::uint64_t count) {
        const std::size_t chunk = size_ / per_chunk_;
        if (chunk >> (32 - in_chunk_bits_) != 0) throw std::bad_alloc();
        if (chunk == chunks_.size()) chunks_.push_back(take_memory(chunk_bytes_));
        const std::uint32_t at = place(size_);
        std::uint64_t* const target = entry(at);
        target[0] = count;
        std::copy_n(row, entry_words_ - 1, target + 1);
        ++size_;
        return at;
    }

    void drop_last() noexcept { --size_; }

  private:
    std::size_t entry_words_, per_chunk_, chunk_bytes_;
    unsigned in_chunk_bits_ = 0;
    std::size_t size_ = 0;
    Vector<Memory> chunks_;
};

}  // namespace tensorstate
