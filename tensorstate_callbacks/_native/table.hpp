// States of up to 64 or 128 neurons: the state itself is the key, equal means equal.
#pragma once

#include <algorithm>
#include <cstring>

#include "bucket.hpp"
#include "segments.hpp"
#include "spilled.hpp"

namespace tensorstate {

template <std::size_t Words>
class Table final : public Engine {
    struct HashSlot {
        TS_INLINE std::uint64_t operator()(const Bucket<Words>& bucket,
                                           std::size_t slot) const noexcept {
            return HashKey<Words>()(bucket.keys[slot]);
        }
    };
    using Tree = Segments<Bucket<Words>, HashSlot>;
    using Counts = SpilledCounts<std::uint16_t, Key<Words>, HashKey<Words>>;

  public:
    explicit Table(bool avx2) : avx2_(avx2) {}

    std::size_t add(const Rows& rows) noexcept override {
#if TS_X86
        if constexpr (Words == 1) {
            if (avx2_) return add_avx2(rows);
        }
#endif
        return rows.counts == nullptr ? add_rows<FindPortably, false>(rows)
                                      : add_rows<FindPortably, true>(rows);
    }

    void remove(const Rows& rows) noexcept override {
        for (std::size_t i = 0; i < rows.size; ++i) {
            const Key<Words> key = key_at(rows.words, i);
            std::size_t slot = 0;
            Bucket<Words>* const bucket = find(key, slot);
            counts_.subtract(bucket->counts[slot], key, rows.counts == nullptr ? 1 : rows.counts[i]);
        }
    }

    void purge() noexcept override {
        tree_.purge([](const Bucket<Words>& bucket, std::size_t slot) {
            return bucket.counts[slot] == 0;
        });
    }

    std::uint64_t count(const Key<Words>& key) noexcept {
        std::size_t slot = 0;
        const Bucket<Words>* const bucket = find(key, slot);
        return bucket == nullptr ? 0 : counts_.value(bucket->counts[slot], key);
    }

    std::size_t read(std::size_t& cursor, const Room& room) const noexcept override {
        // The cursor counts buckets; what does not fit whole waits.
        const std::size_t buckets = tree_.n_buckets(), end = tree_.n_segments() * buckets;
        std::size_t found = 0;
        for (; cursor < end; ++cursor) {
            const Bucket<Words>& bucket = tree_.segment(cursor / buckets)[cursor % buckets];
            if (bucket.fill > room.size - found) break;
            for (std::size_t slot = 0; slot < bucket.fill; ++slot, ++found) {
                if (room.words != nullptr) {
                    std::memcpy(room.words + found * Words, &bucket.keys[slot], sizeof(Key<Words>));
                }
                room.counts[found] = counts_.value(bucket.counts[slot], bucket.keys[slot]);
            }
        }
        return found;
    }

    std::size_t distinct() const noexcept override { return tree_.size(); }
    std::size_t nbytes() const noexcept override { return tree_.nbytes() + counts_.nbytes(); }

  private:
    static constexpr std::size_t kAhead = 32;

    TS_INLINE static Key<Words> key_at(const std::uint64_t* words, std::size_t i) noexcept {
        Key<Words> key;
        std::memcpy(&key, words + i * Words, sizeof key);
        return key;
    }

    Bucket<Words>* find(const Key<Words>& key, std::size_t& slot) noexcept {
        if (tree_.n_segments() == 0) return nullptr;
        const auto view = tree_.view();
        const std::uint64_t hash = HashKey<Words>()(key);
        Bucket<Words>* bucket = view.home(view.segment(hash), hash);
        for (std::size_t step = 0; step < Tree::kReach; ++step, ++bucket) {
            const unsigned found = FindPortably::find(*bucket, key);
            if (found != 0) {
                slot = lowest_bit(found);
                return bucket;
            }
            if (bucket->fill < Bucket<Words>::kSlots) break;
        }
        return nullptr;
    }

#if TS_X86
    TS_TARGET("avx2") std::size_t add_avx2(const Rows& rows) noexcept {
        return rows.counts == nullptr ? add_rows<FindAvx2, false>(rows)
                                      : add_rows<FindAvx2, true>(rows);
    }
#endif

    // Where the states of a few rows belong.
    struct Places {
        Bucket<Words>* homes[kAhead];
        typename Tree::Segment* segments[kAhead];

        TS_INLINE void look_up(const typename Tree::View& view, const std::uint64_t* words,
                               std::size_t i) noexcept {
            const std::uint64_t hash = HashKey<Words>()(key_at(words, i));
            const std::uint32_t segment = view.segment(hash);
            segments[i] = view.segments + segment;
            homes[i] = view.home(segment, hash);
        }
    };

    // Buckets are asked for ahead, so that memory answers while others are searched.
    template <class Find, bool Counted>
    TS_INLINE std::size_t add_rows(const Rows& rows) noexcept {
        if (tree_.n_segments() == 0 && !tree_.grow(0)) return 0;
        auto view = tree_.view();
        Places places;
        for (std::size_t start = 0; start < rows.size; start += kAhead) {
            const std::size_t size = std::min(kAhead, rows.size - start);
            const std::uint64_t* const words = rows.words + start * Words;
            for (std::size_t i = 0; i < size; ++i) {
                places.look_up(view, words, i);
                TS_PREFETCH(places.homes[i]);
                if (Words > 1) TS_PREFETCH(reinterpret_cast<char*>(places.homes[i]) + 64);
            }
            for (std::size_t i = 0; i < size; ++i) {
                const Key<Words> key = key_at(words, i);
                const std::uint64_t count = Counted ? rows.counts[start + i] : 1;
                Taken taken;
                while ((taken = take<Find>(*places.segments[i], view.most, places.homes[i], key,
                                           count)) == Taken::kFull) {
                    if (!make_room(words, i, size, places)) return start + i;
                    view = tree_.view();
                }
                if (taken == Taken::kNoMemory) return start + i;
            }
        }
        return rows.size;
    }

    // Growing moves buckets: the places of the rows from `i` on are looked up again.
    TS_NOINLINE bool make_room(const std::uint64_t* words, std::size_t i, std::size_t size,
                               Places& places) noexcept {
        if (!tree_.grow(HashKey<Words>()(key_at(words, i)))) return false;
        const auto view = tree_.view();
        for (; i < size; ++i) places.look_up(view, words, i);
        return true;
    }

    enum class Taken { kYes, kFull, kNoMemory };

    template <class Find>
    TS_INLINE Taken take(typename Tree::Segment& segment, std::uint32_t most, Bucket<Words>* home,
                         const Key<Words>& key, std::uint64_t count) noexcept {
        Bucket<Words>* bucket = home;
        unsigned found = Find::find(*bucket, key);
        while (found == 0 && bucket->fill == Bucket<Words>::kSlots) {
            if (++bucket == home + Tree::kReach) return Taken::kFull;
            found = Find::find(*bucket, key);
        }
        if (found != 0) {
            return counts_.add(bucket->counts[lowest_bit(found)], key, count) ? Taken::kYes
                                                                              : Taken::kNoMemory;
        }
        if (segment.size >= most) return Taken::kFull;
        std::uint16_t small = 0;
        if (!counts_.add(small, key, count)) return Taken::kNoMemory;
        bucket->keys[bucket->fill] = key;
        bucket->counts[bucket->fill++] = small;
        ++segment.size;
        return Taken::kYes;
    }

    Tree tree_{HashSlot()};
    Counts counts_;
    bool avx2_;
};

}  // namespace tensorstate
