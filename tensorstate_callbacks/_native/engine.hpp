// What every table of states does: blocks of rows in, distinct rows with their counts out.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "source.hpp"

namespace tensorstate {

class Engine {
  public:
    virtual ~Engine() = default;

    // Makes room for `rows` new states; throws bad_alloc and then holds what it held.
    virtual void reserve(std::size_t rows) = 0;
    // Never fails where room was reserved.
    virtual void add(const Rows& rows) noexcept = 0;
    // Takes back rows that were added.
    virtual void remove(const Rows& rows) noexcept = 0;
    virtual void double_counts() noexcept = 0;

    // Copies up to room.size distinct states from `cursor` on, which starts at 0; 0: no more.
    // room.words may be null.
    virtual std::size_t read(std::size_t& cursor, const Rows& room) const noexcept = 0;
    virtual std::size_t distinct() const noexcept = 0;
    virtual std::size_t nbytes() const noexcept = 0;
};

// Each table hashes differently: filling one table in the order of another that hashes alike
// would put long runs of states into the same few slots.
inline std::uint64_t next_seed() noexcept {
    static std::atomic<std::uint64_t> seeds{0};
    return (seeds.fetch_add(1, std::memory_order_relaxed) + 1) * 0x9E3779B97F4A7C15u;
}

TS_INLINE std::uint64_t mixed(std::uint64_t key) noexcept {
    key *= 0xBF58476D1CE4E5B9u;
    key ^= key >> 32;
    key *= 0x94D049BB133111EBu;
    return key ^ (key >> 32);
}

// Slots of a power of two that keep `states` below three quarters.
inline std::size_t slots_for(std::size_t states) noexcept {
    std::size_t slots = 16;
    while (slots / 4 * 3 < states) slots *= 2;
    return slots;
}

inline unsigned log2_of(std::size_t power) noexcept {
    unsigned bits = 0;
    while ((std::size_t{1} << bits) < power) ++bits;
    return bits;
}

}  // namespace tensorstate
