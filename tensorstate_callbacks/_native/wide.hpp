// The engine above 64 neurons: rows in an arena, found by hash and compared bit by bit.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "memory.hpp"

namespace tensorstate {

class WideEngine final : public Engine {
  public:
    explicit WideEngine(std::size_t neurons)
        : words_(words_of(neurons)), entry_words_(words_ + 1) {
        while ((entry_words_ << (chunk_bits_ + 1)) <= kChunkWords) ++chunk_bits_;
    }

    void reserve(std::size_t rows) override {
        if (rows > kMostEntries - entries_) throw std::bad_alloc();
        // Chunks never move: growing costs no copy and no second arena.
        while ((chunks_.size() << chunk_bits_) < entries_ + rows) {
            chunks_.push_back(allocate<std::uint64_t>(entry_words_ << chunk_bits_));
        }
        if (distinct_ + rows > slots_ / 4 * 3) grow_index(distinct_ + rows);
    }

    void add(const Rows& rows) noexcept override {
        std::uint64_t hashes[kAhead];
        for (std::size_t start = 0; start < rows.size; start += kAhead) {
            const std::size_t count = std::min(kAhead, rows.size - start);
            for (std::size_t i = 0; i < count; ++i) {
                hashes[i] = hash(rows.words + (start + i) * words_);
                TS_PREFETCH(&index_[hashes[i] >> shift_]);
            }
            for (std::size_t i = 0; i < count; ++i) {
                const std::uint64_t slot = index_[hashes[i] >> shift_];
                if (slot != 0) TS_PREFETCH(entry(slot));
            }
            for (std::size_t i = 0; i < count; ++i) {
                bump(hashes[i], rows.words + (start + i) * words_,
                     rows.counts == nullptr ? 1 : rows.counts[start + i]);
            }
        }
    }

    void remove(const Rows& rows) noexcept override {
        for (std::size_t i = 0; i < rows.size; ++i) {
            const std::uint64_t* row = rows.words + i * words_;
            const std::size_t at = find(hash(row), row);
            if (index_[at] == 0) continue;
            std::uint64_t& count = *entry(index_[at]);
            count -= rows.counts == nullptr ? 1 : rows.counts[i];
            if (count == 0) close_gap(at);
        }
        // What was added last is taken back first or all at once: empty entries end the arena.
        while (entries_ != 0 && *entry(entries_) == 0) --entries_;
    }

    void double_counts() noexcept override {
        for (std::size_t number = 1; number <= entries_; ++number) *entry(number) *= 2;
    }

    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept override {
        std::size_t found = 0;
        for (; cursor < entries_ && found < room.size; ++cursor) {
            const std::uint64_t* source = entry(cursor + 1);
            if (*source == 0) continue;
            if (room.words != nullptr) {
                std::copy_n(source + 1, words_, room.words + found * words_);
            }
            room.counts[found++] = *source;
        }
        return found;
    }

    std::size_t distinct() const noexcept override { return distinct_; }
    std::size_t nbytes() const noexcept override {
        return ((chunks_.size() * entry_words_ << chunk_bits_) + slots_) * sizeof(std::uint64_t);
    }

  private:
    static constexpr std::size_t kAhead = 32;
    static constexpr std::size_t kChunkWords = 32768;
    // A slot is an entry's number from 1 on, below 24 bits of the hash; 0 is empty.
    static constexpr unsigned kNumberBits = 40;
    static constexpr std::uint64_t kNumber = (std::uint64_t{1} << kNumberBits) - 1;
    static constexpr std::size_t kMostEntries = static_cast<std::size_t>(kNumber);

    // An entry is its count and then its row.
    std::uint64_t* entry(std::uint64_t slot) const noexcept {
        const std::size_t number = static_cast<std::size_t>(slot & kNumber) - 1;
        const std::size_t in_chunk = number & ((std::size_t{1} << chunk_bits_) - 1);
        return chunks_[number >> chunk_bits_].get() + in_chunk * entry_words_;
    }

    // Two lanes: one multiplication need not wait for the other.
    std::uint64_t hash(const std::uint64_t* row) const noexcept {
        std::uint64_t a = seed_, b = ~seed_;
        std::size_t i = 0;
        for (; i + 2 <= words_; i += 2) {
            a = turned((a ^ row[i]) * 0x9E3779B97F4A7C15u);
            b = turned((b ^ row[i + 1]) * 0xC2B2AE3D27D4EB4Fu);
        }
        if (i < words_) a = turned((a ^ row[i]) * 0x9E3779B97F4A7C15u);
        return mixed(a ^ (b * 0xD6E8FEB86659FD93u));
    }
    static std::uint64_t turned(std::uint64_t word) noexcept { return word << 29 | word >> 35; }

    std::size_t after(std::size_t at) const noexcept { return (at + 1) & (slots_ - 1); }

    // The slot of `row`, or the empty one where it belongs.
    std::size_t find(std::uint64_t hash, const std::uint64_t* row) const noexcept {
        std::size_t at = hash >> shift_;
        for (; index_[at] != 0; at = after(at)) {
            if (((index_[at] ^ (hash << kNumberBits)) & ~kNumber) == 0 &&
                std::equal(row, row + words_, entry(index_[at]) + 1)) {
                break;
            }
        }
        return at;
    }

    void bump(std::uint64_t hash, const std::uint64_t* row, std::uint64_t count) noexcept {
        const std::size_t at = find(hash, row);
        if (index_[at] != 0) {
            *entry(index_[at]) += count;
            return;
        }
        index_[at] = hash << kNumberBits | ++entries_;
        std::uint64_t* target = entry(entries_);
        *target = count;
        std::copy_n(row, words_, target + 1);
        ++distinct_;
    }

    void grow_index(std::size_t states) {
        const std::size_t slots = slots_for(states);
        Block<std::uint64_t> index = allocate<std::uint64_t>(slots);
        index_ = std::move(index);
        slots_ = slots;
        shift_ = 64 - log2_of(slots);
        for (std::uint64_t number = 1; number <= entries_; ++number) {
            if (*entry(number) == 0) continue;
            const std::uint64_t hashed = hash(entry(number) + 1);
            std::size_t at = hashed >> shift_;
            while (index_[at] != 0) at = after(at);
            index_[at] = hashed << kNumberBits | number;
        }
    }

    // Moves later slots of the run back, so that no search ends at the gap too early.
    void close_gap(std::size_t gap) noexcept {
        --distinct_;
        index_[gap] = 0;
        for (std::size_t at = after(gap); index_[at] != 0; at = after(at)) {
            const std::size_t home = hash(entry(index_[at]) + 1) >> shift_;
            if (((at - home) & (slots_ - 1)) < ((at - gap) & (slots_ - 1))) continue;
            index_[gap] = index_[at];
            index_[at] = 0;
            gap = at;
        }
    }

    std::size_t words_, entry_words_;
    unsigned chunk_bits_ = 0, shift_ = 63;
    std::vector<Block<std::uint64_t>> chunks_;
    Block<std::uint64_t> index_;
    std::size_t slots_ = 0, entries_ = 0, distinct_ = 0;
    std::uint64_t seed_ = next_seed();
};

}  // namespace tensorstate
