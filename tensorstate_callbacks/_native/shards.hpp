// The tables of one counter, among which its states are divided: each thread adds to its own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "added_rows.hpp"
#include "parts.hpp"
#include "team.hpp"

namespace tensorstate {

using Engines = Vector<std::unique_ptr<Engine>>;

// The states of all tables, one table after the other.
class AllStates final : public States {
  public:
    explicit AllStates(const Engines& engines) : engines_(engines) {}

    // The leading bits of the cursor are the number of the table.
    std::size_t read(std::size_t& cursor, const Room& room) const noexcept override {
        for (std::size_t shard = cursor >> kShift; shard < engines_.size(); ++shard) {
            std::size_t within = cursor & kMask;
            const std::size_t found = engines_[shard]->read(within, room);
            cursor = shard << kShift | within;
            if (found != 0) return found;
            cursor = (shard + 1) << kShift;
        }
        return 0;
    }
    std::size_t distinct() const noexcept override {
        std::size_t distinct = 0;
        for (const auto& engine : engines_) distinct += engine->distinct();
        return distinct;
    }

  private:
    static constexpr unsigned kShift = sizeof(std::size_t) * 8 - 6;  // at most 32 tables
    static constexpr std::size_t kMask = (std::size_t{1} << kShift) - 1;

    const Engines& engines_;
};

// Rows of a source in memory of ours, in the order of the tables that they belong to.
class OrderedRows {
  public:
    // That fit a chunk.
    static std::size_t most_rows(std::size_t neurons, bool counted) {
        return std::clamp<std::size_t>(kChunkBytes / row_bytes(neurons, counted), 1, kMostPositions);
    }

    OrderedRows(std::size_t neurons, bool counted, std::size_t rows)
        : words_(words_of(neurons)), counted_(counted), room_(rows),
          memory_(take_memory(std::max(kChunkBytes, rows * row_bytes(neurons, counted)))) {
        rows_ = static_cast<std::uint64_t*>(memory_.get());
        counts_ = rows_ + rows * words_;
        order_ = reinterpret_cast<std::uint16_t*>(counts_ + (counted ? rows : 0));
    }

    // As many rows as there is room for; tables give theirs by whole buckets. How many there were.
    std::size_t read(Source& source, std::size_t shards) {
        const std::size_t least = counted_ ? kMostInBucket : 1;
        size_ = 0;
        while (size_ == 0 || room_ - size_ >= least) {
            const Room room{rows_ + size_ * words_, counted_ ? counts_ + size_ : nullptr,
                            room_ - size_, false};
            const std::size_t found = source.next(room).size;
            if (found == 0) break;
            size_ += found;
        }
        put_in_order(shards);
        return size_;
    }

    std::size_t begin(std::size_t shard) const noexcept { return begins_[shard]; }
    std::size_t end(std::size_t shard) const noexcept { return begins_[shard + 1]; }

    // Copies rows whose places in the order are given, with their counts.
    void copy(std::size_t begin, std::size_t end, std::uint64_t* words,
              std::uint64_t* counts) const noexcept {
        switch (words_) {
            case 1: copy_rows<1>(begin, end, words); break;
            case 2: copy_rows<2>(begin, end, words); break;
            default:
                for (std::size_t i = begin; i < end; ++i, words += words_) {
                    std::copy_n(rows_ + order_[i] * words_, words_, words);
                }
        }
        if (!counted_) return;
        for (std::size_t i = begin; i < end; ++i) *counts++ = counts_[order_[i]];
    }

    std::uint64_t sum(std::uint64_t states) const {
        if (!counted_) return exact_sum(states, size_);
        for (std::size_t i = 0; i < size_; ++i) states = exact_sum(states, counts_[i]);
        return states;
    }

  private:
    static constexpr std::size_t kMostShards = 32, kMostInBucket = 16;

    // With its count, and its place in the order.
    static std::size_t row_bytes(std::size_t neurons, bool counted) {
        return 8 * words_of(neurons) + (counted ? 8 : 0) + 2;
    }

    template <std::size_t Words>
    void copy_rows(std::size_t begin, std::size_t end, std::uint64_t* words) const noexcept {
        for (std::size_t i = begin; i < end; ++i, words += Words) {
            std::memcpy(words, rows_ + order_[i] * Words, Words * sizeof *words);
        }
    }

    // By other bits of another product than tables look up their states with.
    TS_INLINE std::size_t shard_of(const std::uint64_t* row, unsigned shift) const noexcept {
        std::uint64_t sum = row[0] * 0xD6E8FEB86659FD93u;
        std::uint64_t factor = 0xD6E8FEB86659FD93u;
        for (std::size_t i = 1; i < words_; ++i) {
            factor += 0x9E3779B97F4A7C16u;  // even: the factors stay odd
            sum += (row[i] ^ row[i] >> 32) * factor;
        }
        return static_cast<std::size_t>((sum ^ sum << 31) >> shift);
    }

    void put_in_order(std::size_t shards) noexcept {
        unsigned shift = 64;
        while ((shards >> (64 - shift)) > 1) --shift;
        std::uint8_t found[kMostPositions];
        std::size_t next[kMostShards + 1] = {};
        for (std::size_t i = 0; i < size_; ++i) {
            found[i] = static_cast<std::uint8_t>(shard_of(rows_ + i * words_, shift));
            ++next[found[i] + 1];
        }
        for (std::size_t shard = 0; shard < shards; ++shard) next[shard + 1] += next[shard];
        std::copy_n(next, shards + 1, begins_);
        for (std::size_t i = 0; i < size_; ++i) {
            order_[next[found[i]]++] = static_cast<std::uint16_t>(i);
        }
    }

    std::size_t words_;
    bool counted_;
    std::size_t room_, size_ = 0;
    Memory memory_;
    std::uint64_t* rows_;
    std::uint64_t* counts_;
    std::uint16_t* order_;
    std::size_t begins_[kMostShards + 1] = {};
};

// The rows that belong to one table.
class RowsOfShard final : public Source {
  public:
    RowsOfShard(const Vector<OrderedRows>& blocks, std::size_t n_blocks, std::size_t shard,
                bool counted)
        : blocks_(blocks), n_blocks_(n_blocks), shard_(shard), counted_(counted) {}

    std::uint64_t rows() const override {
        std::uint64_t rows = 0;
        for (std::size_t i = 0; i < n_blocks_; ++i) {
            rows += blocks_[i].end(shard_) - blocks_[i].begin(shard_);
        }
        return rows;
    }
    bool counted() const override { return counted_; }

    Rows next(const Room& room) override {
        for (; block_ < n_blocks_; ++block_, done_ = 0) {
            const OrderedRows& rows = blocks_[block_];
            const std::size_t begin = rows.begin(shard_) + done_;
            const std::size_t size = std::min(room.size, rows.end(shard_) - begin);
            if (size == 0) continue;
            rows.copy(begin, begin + size, room.words, room.counts);
            done_ += size;
            return Rows{room.words, counted_ ? room.counts : nullptr, size};
        }
        return Rows{};
    }

  private:
    const Vector<OrderedRows>& blocks_;
    std::size_t n_blocks_, shard_;
    bool counted_;
    std::size_t block_ = 0, done_ = 0;
};

}  // namespace tensorstate
