// The engine of up to 22 neurons: a hash table, or an array of counts once that pays.
#pragma once

#include <utility>

#include "direct.hpp"
#include "table.hpp"

namespace tensorstate {

class NarrowEngine final : public Engine {
  public:
    NarrowEngine(std::size_t neurons, bool avx2) : neurons_(neurons), avx2_(avx2), table_(avx2) {}

    std::size_t add(const Rows& rows) noexcept override {
        if (!direct_.used() && direct_pays() && !move_to_direct()) return 0;
        if (direct_.used()) return direct_.add(rows);
        const std::size_t added = table_.add(rows);
        rows_ += added;
        return added;
    }
    void remove(const Rows& rows) noexcept override {
        if (direct_.used()) return direct_.remove(rows);
        table_.remove(rows);
        rows_ -= rows.size;
    }
    void purge() noexcept override { table_.purge(); }
    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept override {
        return direct_.used() ? direct_.read(cursor, room) : table_.read(cursor, room);
    }
    std::size_t distinct() const noexcept override {
        return direct_.distinct() + table_.distinct();
    }
    std::size_t nbytes() const noexcept override { return direct_.nbytes() + table_.nbytes(); }

  private:
    static constexpr std::size_t kDirectAtOnce = 16;  // 64 KB, of which few pages are used

    // The array takes a third of the time; by then it is at most four bytes for each row seen.
    bool direct_pays() const noexcept {
        return neurons_ <= kDirectAtOnce || rows_ >= DirectCounts::nbytes_for(neurons_) / 4;
    }

    bool move_to_direct() noexcept {
        try {
            DirectCounts direct(neurons_);
            std::uint64_t words[64], counts[64];
            std::size_t cursor = 0;
            while (const std::size_t size = table_.read(cursor, Rows{words, counts, 64})) {
                if (direct.add(Rows{words, counts, size}) != size) return false;
            }
            direct_ = std::move(direct);
        } catch (const std::bad_alloc&) {
            return false;
        }
        table_ = Table<1>(avx2_);
        return true;
    }

    std::size_t neurons_;
    bool avx2_;
    std::size_t rows_ = 0;  // seen by the table
    Table<1> table_;
    DirectCounts direct_;
};

}  // namespace tensorstate
