// A small hash table for the few large counts: a key in, a number above 0 out, or 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory.hpp"
#include "platform.hpp"

namespace tensorstate {

template <class Key, class Hash>
class SideTable {
  public:
    std::size_t nbytes() const noexcept { return places_ * sizeof(Entry); }

    std::uint64_t value(const Key& key) const noexcept {
        return places_ == 0 ? 0 : entries_[place_of(key)].value;
    }

    // False, and nothing changed, for want of memory.
    bool add(const Key& key, std::uint64_t value) noexcept {
        if (4 * size_ >= 3 * places_ && !grow()) return false;
        Entry& entry = entries_[place_of(key)];
        size_ += entry.value == 0;
        entry = Entry{key, entry.value + value};
        return true;
    }

    // Of a key that is there, or of any if `value` is 0, which takes it out.
    void set(const Key& key, std::uint64_t value) noexcept {
        if (places_ == 0) return;
        const std::size_t place = place_of(key);
        if (entries_[place].value == 0) return;
        entries_[place].value = value;
        if (value != 0) return;
        // What stands behind it may have come here: it is put in once more.
        --size_;
        for (std::size_t i = next(place); entries_[i].value != 0; i = next(i)) {
            const Entry entry = entries_[i];
            entries_[i].value = 0;
            entries_[place_of(entry.key)] = entry;
        }
    }

  private:
    struct Entry {
        Key key;
        std::uint64_t value;  // 0: nobody is here
    };

    std::size_t next(std::size_t place) const noexcept { return (place + 1) & (places_ - 1); }

    // Where the key is, or else belongs: there is always a free place.
    std::size_t place_of(const Key& key) const noexcept {
        std::size_t place = static_cast<std::size_t>(Hash()(key)) & (places_ - 1);
        while (entries_[place].value != 0 && !(entries_[place].key == key)) place = next(place);
        return place;
    }

    bool grow() noexcept {
        SideTable larger;
        try {
            larger.places_ = places_ == 0 ? 16 : 2 * places_;
            larger.entries_ = allocate<Entry>(larger.places_);
        } catch (const std::bad_alloc&) {
            return false;
        }
        for (std::size_t i = 0; i < places_; ++i) {
            if (entries_[i].value != 0) larger.entries_[larger.place_of(entries_[i].key)] = entries_[i];
        }
        entries_.swap(larger.entries_);
        places_ = larger.places_;
        return true;
    }

    Block<Entry> entries_;
    std::size_t places_ = 0, size_ = 0;
};

}  // namespace tensorstate
