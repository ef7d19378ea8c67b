// The engine above 128 neurons: rows in an arena, found by hash and compared bit by bit.
#pragma once

#include <algorithm>

#include "arena.hpp"
#include "segments.hpp"

#if TS_X86
#include <emmintrin.h>
#endif

namespace tensorstate {

// A slot is half of a row's hash and the row's place in the arena, in two places of the line: all
// hashes are compared at once.
struct IndexBucket {
    static constexpr std::size_t kSlots = 7;

    std::uint32_t hashes[kSlots];
    std::uint32_t fill;
    std::uint32_t places[kSlots];
    std::uint32_t unused;

    void push(std::uint32_t hash, std::uint32_t place) noexcept {
        hashes[fill] = hash;
        places[fill++] = place;
    }
    void push(const IndexBucket& from, std::size_t slot) noexcept {
        push(from.hashes[slot], from.places[slot]);
    }
};
static_assert(sizeof(IndexBucket) == 64);

class WideEngine final : public Engine {
    // The leading bits of 32 choose the segment, the last sixteen the bucket.
    static std::uint64_t spread_out(std::uint32_t hash) noexcept {
        return std::uint64_t{hash} << 32 | (hash << 16 & 0xFFFFFFFFu);
    }
    struct HashSlot {
        std::uint64_t operator()(const IndexBucket& bucket, std::size_t slot) const noexcept {
            return spread_out(bucket.hashes[slot]);
        }
    };
    using Tree = Segments<IndexBucket, HashSlot>;

  public:
    explicit WideEngine(std::size_t neurons) : words_(words_of(neurons)), arena_(words_) {}

    bool finds_places() const noexcept override { return true; }

    std::size_t add(const Rows& rows) noexcept override {
        if (tree_.n_segments() == 0 && !tree_.grow(0)) return 0;
        switch (words_) {
            case 4: return add_rows(rows, Fixed<4>());
            case 8: return add_rows(rows, Fixed<8>());
            case 16: return add_rows(rows, Fixed<16>());
            default: return add_rows(rows, words_);
        }
    }

    void remove(const Rows& rows) noexcept override {
        for (std::size_t i = 0; i < rows.size; ++i) {
            *arena_.entry(rows.places[i]) -= rows.counts == nullptr ? 1 : rows.counts[i];
        }
    }

    // States that are gone were the last to come.
    void purge() noexcept override {
        tree_.purge([&](const IndexBucket& bucket, std::size_t slot) {
            return *arena_.entry(bucket.places[slot]) == 0;
        });
        while (arena_.size() != 0 && *arena_.entry(arena_.place(arena_.size() - 1)) == 0) {
            arena_.drop_last();
        }
    }

    std::size_t read(std::size_t& cursor, const Room& room) const noexcept override {
        std::size_t found = 0;
        for (; cursor < arena_.size() && found < room.size; ++cursor) {
            const std::uint64_t* source = arena_.entry(arena_.place(cursor));
            if (room.words != nullptr) {
                std::copy_n(source + 1, words_, room.words + found * words_);
            }
            room.counts[found++] = *source;
        }
        return found;
    }

    std::size_t distinct() const noexcept override { return arena_.size(); }
    std::size_t nbytes() const noexcept override { return tree_.nbytes() + arena_.nbytes(); }

  private:
    static constexpr std::size_t kGroup = 16;

    // A number of words that compilers know, so that loops over it vanish.
    template <std::size_t Words>
    struct Fixed {
        constexpr operator std::size_t() const noexcept { return Words; }
    };

    struct Found {
        std::uint64_t* entry;  // of the row; else null, and
        IndexBucket* room;     // where it belongs, null where no bucket in reach has a place
        std::uint32_t place;   // of the entry
    };

    // Where the rows of a group belong.
    struct Places {
        std::uint32_t hashes[kGroup];
        IndexBucket* homes[kGroup];
        Tree::Segment* segments[kGroup];

        TS_INLINE void look_up(const Tree::View& view, std::size_t i) noexcept {
            const std::uint64_t spread = spread_out(hashes[i]);
            const std::uint32_t segment = view.segment(spread);
            segments[i] = view.segments + segment;
            homes[i] = view.home(segment, spread);
        }
    };

    // Memory answers for a group of rows at once: with the buckets where they belong, and with the
    // entries that may be theirs where the group before found some. More than a group at a time
    // would only wait in line.
    template <class Width>
    std::size_t add_rows(const Rows& rows, Width width) noexcept {
        Places places;
        bool some_known = true;
        auto view = tree_.view();
        for (std::size_t start = 0; start < rows.size; start += kGroup) {
            const std::size_t size = std::min(kGroup, rows.size - start);
            const std::uint64_t* const words = rows.words + start * width;
            for (std::size_t i = 0; i < size; ++i) {
                places.hashes[i] = hash(words + i * width, width);
                places.look_up(view, i);
                TS_PREFETCH(places.homes[i]);
            }
            if (some_known) ask_for_entries(places, size);
            some_known = false;
            for (std::size_t i = 0; i < size;) {
                const std::uint64_t count = rows.counts == nullptr ? 1 : rows.counts[start + i];
                const Taken taken = take(places, i, view.most, words + i * width, width, count,
                                         rows.places[start + i]);
                if (taken == Taken::kFull) {
                    if (!make_room(places, i, size)) return start + i;
                    view = tree_.view();
                    continue;
                }
                if (taken == Taken::kNoMemory) return start + i;
                some_known |= taken == Taken::kKnown;
                ++i;
            }
        }
        return rows.size;
    }

    TS_INLINE void ask_for_entries(const Places& places, std::size_t size) const noexcept {
        for (std::size_t i = 0; i < size; ++i) {
            const IndexBucket& bucket = *places.homes[i];
            const unsigned alike = candidates(bucket, places.hashes[i]);
            if (alike == 0) continue;
            const auto* entry =
                reinterpret_cast<const char*>(arena_.entry(bucket.places[lowest_bit(alike)]));
            TS_PREFETCH(entry);
            TS_PREFETCH(entry + 64);
        }
    }

    // Growing moves buckets: the places of the rows from `i` on are looked up again.
    TS_NOINLINE bool make_room(Places& places, std::size_t i, std::size_t size) noexcept {
        if (!tree_.grow(spread_out(places.hashes[i]))) return false;
        const auto view = tree_.view();
        for (; i < size; ++i) places.look_up(view, i);
        return true;
    }

    enum class Taken { kKnown, kNew, kFull, kNoMemory };

    template <class Width>
    TS_INLINE Taken take(const Places& places, std::size_t i, std::uint32_t most,
                         const std::uint64_t* row, Width width, std::uint64_t count,
                         std::uint32_t& place) noexcept {
        const std::uint32_t hash = places.hashes[i];
        const Found found = find(places.homes[i], hash, row, width);
        if (found.entry != nullptr) {
            *found.entry += count;
            place = found.place;
            return Taken::kKnown;
        }
        if (found.room == nullptr || places.segments[i]->size >= most) return Taken::kFull;
        if (!arena_.add(row, count, width, place)) return Taken::kNoMemory;
        found.room->push(hash, place);
        ++places.segments[i]->size;
        return Taken::kNew;
    }

    template <class Width>
    TS_INLINE static std::uint32_t hash(const std::uint64_t* row, Width width) noexcept {
        std::uint64_t sum = 0x243F6A8885A308D3u;
        std::size_t i = 0;
        for (; i + 2 <= width; i += 2) {
            sum = (sum << 29 | sum >> 35) + folded_product(row[i] ^ 0x9E3779B97F4A7C15u,
                                                           row[i + 1] ^ 0xC2B2AE3D27D4EB4Fu);
        }
        if (i < width) sum ^= row[i] * 0x9E3779B97F4A7C15u;
        return static_cast<std::uint32_t>(mixed(sum) >> 32);
    }

    // The products of a row do not wait for each other.
    static std::uint64_t folded_product(std::uint64_t a, std::uint64_t b) noexcept {
#if defined(__SIZEOF_INT128__)
        __extension__ const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
        return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
#else
        return mixed(mixed(a) + b);
#endif
    }

    static IndexBucket* home(const Tree::View& view, std::uint32_t hash) noexcept {
        const std::uint64_t spread = spread_out(hash);
        return view.home(view.segment(spread), spread);
    }

    // Bit i: slot i holds half a hash that is alike.
    TS_INLINE static unsigned candidates(const IndexBucket& bucket, std::uint32_t hash) noexcept {
        unsigned alike = 0;
#if TS_X86
        const __m128i wanted = _mm_set1_epi32(static_cast<int>(hash));
        const auto* four = reinterpret_cast<const __m128i*>(bucket.hashes);  // the eighth is `fill`
        const __m128i low = _mm_cmpeq_epi32(_mm_load_si128(four), wanted);
        const __m128i high = _mm_cmpeq_epi32(_mm_load_si128(four + 1), wanted);
        const __m128i eight = _mm_packs_epi32(low, high);
        alike = static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(eight, eight)));
#else
        for (unsigned i = 0; i < IndexBucket::kSlots; ++i) {
            alike |= static_cast<unsigned>(bucket.hashes[i] == hash) << i;
        }
#endif
        return alike & ((1u << bucket.fill) - 1);
    }

    template <class Width>
    TS_INLINE static bool same(const std::uint64_t* a, const std::uint64_t* b,
                               Width width) noexcept {
        std::uint64_t different = 0;
        std::size_t i = 0;
#if TS_X86
        __m128i differ = _mm_setzero_si128();
        for (; i + 2 <= width; i += 2) {
            const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i));
            const __m128i other = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i));
            differ = _mm_or_si128(differ, _mm_xor_si128(two, other));
        }
        differ = _mm_cmpeq_epi8(differ, _mm_setzero_si128());
        different = static_cast<std::uint64_t>(_mm_movemask_epi8(differ) ^ 0xFFFF);
#endif
        for (; i < width; ++i) different |= a[i] ^ b[i];
        return different == 0;
    }

    template <class Width>
    TS_INLINE Found find(IndexBucket* bucket, std::uint32_t hash, const std::uint64_t* row,
                         Width width) const noexcept {
        for (const IndexBucket* const end = bucket + Tree::kReach; bucket != end; ++bucket) {
            for (unsigned alike = candidates(*bucket, hash); alike != 0; alike &= alike - 1) {
                const std::uint32_t place = bucket->places[lowest_bit(alike)];
                std::uint64_t* const entry = arena_.entry(place);
                if (same(row, entry + 1, width)) return Found{entry, nullptr, place};
            }
            if (bucket->fill < IndexBucket::kSlots) return Found{nullptr, bucket, 0};
        }
        return Found{nullptr, nullptr, 0};
    }

    std::size_t words_;
    Arena arena_;
    Tree tree_{HashSlot()};
};

}  // namespace tensorstate
