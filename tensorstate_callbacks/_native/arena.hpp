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

    std::size_t size() const noexcept { return full_ * per_chunk_ + in_last_; }
    std::size_t nbytes() const noexcept { return chunks_.size() * chunk_bytes_; }

    // Entries are numbered as they come; a place is a number that finds its entry without dividing.
    std::uint32_t place(std::size_t number) const noexcept {
        return static_cast<std::uint32_t>((number / per_chunk_) << in_chunk_bits_ |
                                          number % per_chunk_);
    }
    TS_INLINE std::uint64_t* entry(std::uint32_t place) const noexcept {
        const std::size_t in_chunk = place & ((std::uint32_t{1} << in_chunk_bits_) - 1);
        return at(place >> in_chunk_bits_, in_chunk);
    }

    // False, and nothing changed, for want of memory. `width` is the number of a row's words.
    template <class Width>
    TS_INLINE bool add(const std::uint64_t* row, std::uint64_t count, Width width,
                       std::uint32_t& place) noexcept {
        if (in_last_ == per_chunk_) {
            ++full_;
            in_last_ = 0;
        }
        if (full_ == chunks_.size() && !take_chunk()) return false;
        std::uint64_t* const target = at(full_, in_last_);
        // Memory to write to is asked for ahead too: what comes after these entries.
        TS_PREFETCH(target + kWordsAhead);
        TS_PREFETCH(target + kWordsAhead + 8);
        target[0] = count;
        for (std::size_t i = 0; i < width; ++i) target[i + 1] = row[i];
        place = static_cast<std::uint32_t>(full_ << in_chunk_bits_ | in_last_++);
        return true;
    }

    void drop_last() noexcept {
        if (in_last_ == 0) {
            --full_;
            in_last_ = per_chunk_;
        }
        --in_last_;
    }

  private:
    static constexpr std::size_t kWordsAhead = 128;

    std::uint64_t* at(std::size_t chunk, std::size_t in_chunk) const noexcept {
        return static_cast<std::uint64_t*>(chunks_[chunk].get()) + in_chunk * entry_words_;
    }

    TS_NOINLINE bool take_chunk() noexcept {
        if (full_ >> (32 - in_chunk_bits_) != 0) return false;
        try {
            chunks_.push_back(take_memory(chunk_bytes_));
        } catch (const std::bad_alloc&) {
            return false;
        }
        return true;
    }

    std::size_t entry_words_, per_chunk_, chunk_bytes_;
    unsigned in_chunk_bits_ = 0;
    std::size_t full_ = 0, in_last_ = 0;  // chunks before the last, and entries in that
    Vector<Memory> chunks_;
};

}  // namespace tensorstate
