// The engine of up to 22 neurons: a hash table, or an array of counts where that pays.
#pragma once

#include <utility>

#include "direct.hpp"
#include "table.hpp"

namespace tensorstate {

class NarrowEngine final : public Engine {
  public:
    NarrowEngine(std::size_t neurons, const Kernel& kernel)
        : neurons_(neurons), kernel_(kernel), table_(kernel.avx2) {}

    bool expect(std::uint64_t rows) noexcept override {
        return direct_.used() || !direct_pays(rows) || move_to_direct();
    }
    bool takes_packed() const noexcept override { return direct_.used(); }
    std::size_t add(const Rows& rows) noexcept override {
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
    std::size_t read(std::size_t& cursor, const Room& room) const noexcept override {
        return direct_.used() ? direct_.read(cursor, room) : table_.read(cursor, room);
    }
    std::size_t distinct() const noexcept override {
        return direct_.distinct() + table_.distinct();
    }
    std::size_t nbytes() const noexcept override { return direct_.nbytes() + table_.nbytes(); }

  private:
    static constexpr std::size_t kDirectAtOnce = 16;  // 64 KB, of which few pages are used

    // The array takes a fraction of the time; it is at most sixteen bytes for each row seen.
    bool direct_pays(std::uint64_t coming) const noexcept {
        const std::size_t enough = DirectCounts::nbytes_for(neurons_) / 16;
        return neurons_ <= kDirectAtOnce || coming >= enough || rows_ + coming >= enough;
    }

    bool move_to_direct() noexcept {
        try {
            DirectCounts direct(neurons_, kernel_);
            std::uint64_t words[64], counts[64];
            std::size_t cursor = 0;
            while (const std::size_t size = table_.read(cursor, Room{words, counts, 64})) {
                if (direct.add(Rows{words, counts, size}) != size) return false;
            }
            direct_ = std::move(direct);
        } catch (const std::bad_alloc&) {
            return false;
        }
        table_ = Table<1>(kernel_.avx2);
        return true;
    }

    std::size_t neurons_;
    const Kernel& kernel_;
    std::size_t rows_ = 0;  // the table was given
    Table<1> table_;
    DirectCounts direct_;
};

}  // namespace tensorstate
