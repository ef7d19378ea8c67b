// The engine above 128 neurons: rows in an arena, found by hash and compared bit by bit.
#pragma once

#include <algorithm>

#include "arena.hpp"
#include "segments.hpp"

#if TS_X86
#include <emmintrin.h>
#endif

namespace tensorstate {

// Half of a slot is half of a row's hash, the other half the row's place in the arena.
struct IndexBucket {
    static constexpr std::size_t kSlots = 7;

    std::uint64_t slots[kSlots];
    std::uint64_t fill;

    static std::uint64_t slot(std::uint32_t hash, std::uint32_t place) noexcept {
        return std::uint64_t{hash} << 32 | place;
    }
    static std::uint32_t place(std::uint64_t slot) noexcept {
        return static_cast<std::uint32_t>(slot);
    }
    void push(const IndexBucket& from, std::size_t slot) noexcept {
        slots[fill++] = from.slots[slot];
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
            return spread_out(static_cast<std::uint32_t>(bucket.slots[slot] >> 32));
        }
    };
    using Tree = Segments<IndexBucket, HashSlot>;

  public:
    explicit WideEngine(std::size_t neurons) : words_(words_of(neurons)), arena_(words_) {}

    std::size_t add(const Rows& rows) noexcept override {
        if (tree_.n_segments() == 0 && !tree_.grow(0)) return 0;
        auto view = tree_.view();
        std::uint32_t hashes[kAhead];
        for (std::size_t start = 0; start < rows.size; start += kAhead) {
            const std::size_t size = std::min(kAhead, rows.size - start);
            for (std::size_t i = 0; i < size; ++i) {
                hashes[i] = hash(rows.words + (start + i) * words_);
                TS_PREFETCH(home(view, hashes[i]));
            }
            for (std::size_t i = 0; i < size; ++i) {
                const IndexBucket& bucket = *home(view, hashes[i]);
                const unsigned alike = candidates(bucket, hashes[i]);
                if (alike == 0) continue;
                const auto* entry =
                    reinterpret_cast<const char*>(arena_.entry(first_place(bucket, alike)));
                TS_PREFETCH(entry);
                TS_PREFETCH(entry + 64);
            }
            for (std::size_t i = 0; i < size;) {
                const std::uint64_t* row = rows.words + (start + i) * words_;
                const std::uint64_t count = rows.counts == nullptr ? 1 : rows.counts[start + i];
                const Found found = find(view, hashes[i], row);
                if (found.entry != nullptr) {
                    *found.entry += count;
                    ++i;
                } else if (found.room == nullptr ||
                           view.segments[found.segment].size >= view.most) {
                    if (!tree_.grow(spread_out(hashes[i]))) return start + i;
                    view = tree_.view();
                } else {
                    try {
                        const std::uint32_t place = arena_.add(row, count);
                        found.room->slots[found.room->fill++] =
                            IndexBucket::slot(hashes[i], place);
                    } catch (const std::bad_alloc&) {
                        return start + i;
                    }
                    ++view.segments[found.segment].size;
                    ++i;
                }
            }
        }
        return rows.size;
    }

    void remove(const Rows& rows) noexcept override {
        const auto view = tree_.view();
        for (std::size_t i = 0; i < rows.size; ++i) {
            const std::uint64_t* row = rows.words + i * words_;
            *find(view, hash(row), row).entry -= rows.counts == nullptr ? 1 : rows.counts[i];
        }
    }

    // States that are gone were the last to come.
    void purge() noexcept override {
        tree_.purge([&](const IndexBucket& bucket, std::size_t slot) {
            return *arena_.entry(IndexBucket::place(bucket.slots[slot])) == 0;
        });
        while (arena_.size() != 0 && *arena_.entry(arena_.place(arena_.size() - 1)) == 0) {
            arena_.drop_last();
        }
    }

    std::size_t read(std::size_t& cursor, const Rows& room) const noexcept override {
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
    static constexpr std::size_t kAhead = 32;

    struct Found {
        std::uint64_t* entry;  // of the row; else null, and
        IndexBucket* room;     // where it belongs, null where no bucket in reach has a place
        std::uint32_t segment;
    };

    std::uint32_t hash(const std::uint64_t* row) const noexcept {
        std::uint64_t sum = 0x243F6A8885A308D3u;
        std::size_t i = 0;
        for (; i + 2 <= words_; i += 2) {
            sum = (sum << 29 | sum >> 35) + folded_product(row[i] ^ 0x9E3779B97F4A7C15u,
                                                           row[i + 1] ^ 0xC2B2AE3D27D4EB4Fu);
        }
        if (i < words_) sum ^= row[i] * 0x9E3779B97F4A7C15u;
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

    // Bit 2 i + 1: slot i holds half a hash that is alike.
    static unsigned candidates(const IndexBucket& bucket, std::uint32_t hash) noexcept {
        unsigned alike = 0;
#if TS_X86
        const __m128i wanted = _mm_set1_epi32(static_cast<int>(hash));
        for (unsigned i = 0; i < 8; i += 2) {  // the eighth is `fill`
            const auto* pair = reinterpret_cast<const __m128i*>(bucket.slots + i);
            const __m128i same = _mm_cmpeq_epi32(_mm_loadu_si128(pair), wanted);
            alike |= static_cast<unsigned>(_mm_movemask_ps(_mm_castsi128_ps(same))) << 2 * i;
        }
#else
        for (unsigned i = 0; i < IndexBucket::kSlots; ++i) {
            alike |= static_cast<unsigned>(bucket.slots[i] >> 32 == hash) << (2 * i + 1);
        }
#endif
        return alike & ((1u << 2 * bucket.fill) - 1) & 0xAAAAu;
    }
    static std::uint32_t first_place(const IndexBucket& bucket, unsigned alike) noexcept {
        return IndexBucket::place(bucket.slots[lowest_bit(alike) / 2]);
    }

    bool same(const std::uint64_t* a, const std::uint64_t* b) const noexcept {
        std::uint64_t different = 0;
        for (std::size_t i = 0; i < words_; ++i) different |= a[i] ^ b[i];
        return different == 0;
    }

    TS_INLINE Found find(const Tree::View& view, std::uint32_t hash,
                         const std::uint64_t* row) const noexcept {
        const std::uint64_t spread = spread_out(hash);
        const std::uint32_t segment = view.segment(spread);
        IndexBucket* bucket = view.home(segment, spread);
        for (std::size_t step = 0; step < Tree::kReach; ++step, ++bucket) {
            for (unsigned alike = candidates(*bucket, hash); alike != 0; alike &= alike - 1) {
                std::uint64_t* const entry = arena_.entry(first_place(*bucket, alike));
                if (same(row, entry + 1)) return Found{entry, nullptr, segment};
            }
            if (bucket->fill < IndexBucket::kSlots) return Found{nullptr, bucket, segment};
        }
        return Found{nullptr, nullptr, segment};
    }

    std::size_t words_;
    Arena arena_;
    Tree tree_{HashSlot()};
};

}  // namespace tensorstate
