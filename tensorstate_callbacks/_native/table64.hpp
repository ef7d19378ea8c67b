// States of up to 64 neurons, by open addressing: 16 bytes a slot, the state itself is the key.
#pragma once

#include <algorithm>
#include <utility>

#include "engine.hpp"
#include "memory.hpp"

namespace tensorstate {

class Table64 {
  public:
    bool has_room(std::size_t rows) const noexcept { return size_ + rows <= slots_ / 4 * 3; }
    std::size_t nbytes_with(std::size_t rows) const noexcept {
        return slots_for(size_ + rows) * sizeof(Slot);
    }
    std::size_t nbytes() const noexcept { return slots_ * sizeof(Slot); }
    std::size_t distinct() const noexcept { return size_; }

    // The high bits of a hash choose the slot, so old slots are read and new ones written in order.
    void grow(std::size_t rows) {
        Table64 larger;
        larger.slots_ = slots_for(size_ + rows);
        larger.shift_ = 64 - log2_of(larger.slots_);
        larger.seed_ = seed_;
        larger.table_ = allocate<Slot>(larger.slots_);
        for (std::size_t i = 0; i < slots_; ++i) {
            if (table_[i].count != 0) {
                bump(larger.table_.get(), larger.slots_ - 1, larger.home(table_[i].key),
                     table_[i].key, table_[i].count);
            }
        }
        larger.size_ = size_;
        *this = std::move(larger);
    }

    void add(const Rows& rows) noexcept {
        // Locals: a member could be one of the slots, for all a compiler knows.
        Slot* const table = table_.get();
        const std::size_t last = slots_ - 1;
        std::size_t homes[kAhead], added = 0;
        for (std::size_t start = 0; start < rows.size; start += kAhead) {
            const std::size_t count = std::min(kAhead, rows.size - start);
            const std::uint64_t* keys = rows.words + start;
            for (std::size_t i = 0; i < count; ++i) {
                homes[i] = home(keys[i]);
                TS_PREFETCH(&table[homes[i]]);
            }
            for (std::size_t i = 0; i < count; ++i) {
                added += bump(table, last, homes[i], keys[i],
                              rows.counts == nullptr ? 1 : rows.counts[start + i]);
            }
        }
        size_ += added;
    }

    void remove(const Rows& rows) noexcept {
        for (std::size_t i = 0; i < rows.size; ++i) {
            std::size_t at = home(rows.words[i]);
            while (table_[at].count != 0 && table_[at].key != rows.words[i]) at = after(at);
            if (table_[at].count == 0) continue;
            table_[at].count -= rows.counts == nullptr ? 1 : rows.counts[i];
            if (table_[at].count == 0) close_gap(at);
        }
    }

    void double_counts() noexcept {
        for (std::size_t i = 0; i < slots_; ++i) table_[i].count *= 2;
    }

    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept {
        std::size_t found = 0;
        for (; cursor < slots_ && found < room.size; ++cursor) {
            if (table_[cursor].count == 0) continue;
            if (room.words != nullptr) room.words[found] = table_[cursor].key;
            room.counts[found++] = table_[cursor].count;
        }
        return found;
    }

  private:
    struct Slot {
        std::uint64_t key;
        std::uint64_t count;  // 0: empty
    };
    static constexpr std::size_t kAhead = 32;

    std::size_t home(std::uint64_t key) const noexcept { return mixed(key ^ seed_) >> shift_; }
    std::size_t after(std::size_t at) const noexcept { return (at + 1) & (slots_ - 1); }

    // Whether the state is new.
    TS_INLINE static bool bump(Slot* table, std::size_t last, std::size_t at, std::uint64_t key,
                               std::uint64_t count) noexcept {
        for (; table[at].count != 0; at = (at + 1) & last) {
            if (table[at].key == key) {
                table[at].count += count;
                return false;
            }
        }
        table[at] = Slot{key, count};
        return true;
    }

    // Moves later states of the run back, so that no search ends at the gap too early.
    void close_gap(std::size_t gap) noexcept {
        --size_;
        for (std::size_t at = after(gap); table_[at].count != 0; at = after(at)) {
            const std::size_t from_home = (at - home(table_[at].key)) & (slots_ - 1);
            if (from_home < ((at - gap) & (slots_ - 1))) continue;
            table_[gap] = table_[at];
            table_[at].count = 0;
            gap = at;
        }
    }

    Block<Slot> table_;
    std::size_t slots_ = 0, size_ = 0;
    unsigned shift_ = 63;
    std::uint64_t seed_ = next_seed();
};

}  // namespace tensorstate
