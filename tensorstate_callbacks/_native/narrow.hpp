// The engine up to 64 neurons: a hash table, or an array of counts once that is not larger.
#pragma once

#include <utility>

#include "direct.hpp"
#include "table64.hpp"

namespace tensorstate {

class NarrowEngine final : public Engine {
  public:
    explicit NarrowEngine(std::size_t neurons) : neurons_(neurons) {}

    void reserve(std::size_t rows) override {
        if (direct_.used() || table_.has_room(rows)) return;
        if (direct_pays(rows)) {
            move_to_direct();
        } else {
            table_.grow(rows);
        }
    }

    void add(const Rows& rows) noexcept override {
        direct_.used() ? direct_.add(rows) : table_.add(rows);
    }
    // Making room never fails once counts are direct, so rows are only taken back from the table.
    void remove(const Rows& rows) noexcept override { table_.remove(rows); }
    void double_counts() noexcept override {
        direct_.double_counts();
        table_.double_counts();
    }
    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept override {
        return direct_.used() ? direct_.read(cursor, room) : table_.read(cursor, room);
    }
    std::size_t distinct() const noexcept override {
        return direct_.distinct() + table_.distinct();
    }
    std::size_t nbytes() const noexcept override { return direct_.nbytes() + table_.nbytes(); }

  private:
    static constexpr std::size_t kDirectAtOnce = 16;  // half a megabyte, of which few pages are used

    bool direct_pays(std::size_t rows) const noexcept {
        if (neurons_ > DirectCounts::kMostNeurons) return false;
        return neurons_ <= kDirectAtOnce ||
               table_.nbytes_with(rows) >= DirectCounts::nbytes_for(neurons_);
    }

    void move_to_direct() {
        DirectCounts direct(neurons_);
        std::uint64_t words[64], counts[64];
        std::size_t cursor = 0;
        while (const std::size_t size = table_.read(cursor, Rows{words, counts, 64})) {
            direct.add(Rows{words, counts, size});
        }
        direct_ = std::move(direct);
        table_ = Table64();
    }

    std::size_t neurons_;
    Table64 table_;
    DirectCounts direct_;
};

}  // namespace tensorstate
