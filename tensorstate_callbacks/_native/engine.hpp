// What every table of states does: blocks of rows in, distinct rows with their counts out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "source.hpp"

namespace tensorstate {

// Distinct states with their counts, to be read.
class States {
  public:
    virtual ~States() = default;

    // Copies up to room.size distinct states from `cursor` on, which starts at 0; 0: no more.
    // room.words may be null.
    virtual std::size_t read(std::size_t& cursor, const Room& room) const noexcept = 0;
    virtual std::size_t distinct() const noexcept = 0;
};

// Copies all of them. There is room; `width` is the number of a row's words.
inline void read_all(const States& states, std::size_t width, std::uint64_t* words,
                     std::uint64_t* counts) noexcept {
    const std::size_t size = states.distinct();
    std::size_t cursor = 0, done = 0;
    while (const std::size_t found = states.read(
               cursor, Room{words + done * width, counts + done, size - done})) {
        done += found;
    }
}

class Engine : public States {
  public:
    // Told how many rows add() will be given next; false for want of memory.
    virtual bool expect(std::uint64_t) noexcept { return true; }
    // Whether rows may come packed until expect() is told of others.
    virtual bool takes_packed() const noexcept { return false; }
    // Whether add() notes for each row, in rows.places, where it lies: all that remove() then reads
    // besides counts.
    virtual bool finds_places() const noexcept { return false; }
    // How many rows went in, from the first on: all of them, or fewer for want of memory.
    virtual std::size_t add(const Rows& rows) noexcept = 0;
    // Takes back rows that were added; purge() then drops the states that are gone.
    virtual void remove(const Rows& rows) noexcept = 0;
    virtual void purge() noexcept = 0;
    virtual std::size_t nbytes() const noexcept = 0;
};

// Every bit of the key changes half of the bits; different keys stay different.
TS_INLINE std::uint64_t mixed(std::uint64_t key) noexcept {
    key *= 0xBF58476D1CE4E5B9u;
    key ^= key >> 32;
    key *= 0x94D049BB133111EBu;
    return key ^ (key >> 32);
}

}  // namespace tensorstate
