// A hash table that grows piece by piece: a hash in, the bucket where a search begins out.
//
// Extendible hashing. Segments of kChunkBytes hold buckets; the leading bits of a hash choose a
// segment through a directory, its low half the bucket within. A full segment alone splits into
// two, so growing takes one more segment and never a second table. A table of less than one
// segment doubles its only one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "bits.hpp"
#include "engine.hpp"
#include "memory.hpp"

namespace tensorstate {

// A Bucket has kSlots places, of which the first `fill` are taken; push(from, slot) takes another
// bucket's slot over. Hash gives the hash of what lies in a slot: hash(bucket, slot).
template <class Bucket, class Hash>
class Segments {
  public:
    // A state lies in the first of this many buckets, from its own on, that had a free place.
    static constexpr std::size_t kReach = 32;

    struct Segment {
        Bucket* first = nullptr;
        std::uint32_t size = 0;    // taken places
        std::uint32_t depth = 0;   // leading bits that all of its hashes share
        std::uint64_t prefix = 0;  // those bits
        Memory memory;
    };

    // What a search reads: copied, as a store into a bucket could change a member, for all a
    // compiler knows. Growing ends its life.
    struct View {
        const std::uint32_t* directory;
        Segment* segments;
        unsigned shift;
        std::uint64_t homes;
        std::uint32_t most;  // taken places of a segment that is full

        TS_INLINE std::uint32_t segment(std::uint64_t hash) const noexcept {
            return directory[hash >> shift];
        }
        TS_INLINE Bucket* home(std::uint32_t segment, std::uint64_t hash) const noexcept {
            return segments[segment].first + home_of(hash, homes);
        }
    };

    explicit Segments(Hash hash) : hash_(hash) {}

    std::size_t size() const noexcept {
        std::size_t size = 0;
        for (const Segment& segment : segments_) size += segment.size;
        return size;
    }
    std::size_t n_segments() const noexcept { return segments_.size(); }
    std::size_t n_buckets() const noexcept { return buckets_; }  // of a segment
    const Bucket* segment(std::size_t number) const noexcept { return segments_[number].first; }
    std::size_t nbytes() const noexcept {
        return segments_.size() * (buckets_ * sizeof(Bucket) + sizeof(Segment)) +
               directory_.size() * sizeof(std::uint32_t);
    }

    View view() noexcept {
        return View{directory_.data(), segments_.data(), shift_, homes_of(buckets_),
                    static_cast<std::uint32_t>(buckets_ * Bucket::kSlots * 27 / 32)};
    }

    // Makes room where a hash belongs; false, and nothing changed, for want of memory.
    bool grow(std::uint64_t hash) noexcept {
        try {
            if (segments_.empty()) {
                start();
            } else if (buckets_ < kBuckets) {
                double_segment();
            } else {
                split(directory_[hash >> shift_]);
            }
        } catch (const std::bad_alloc&) {
            return false;
        }
        return true;
    }

    // Drops what `gone(bucket, slot)` says is gone; never fails.
    template <class Gone>
    void purge(Gone gone) noexcept {
        for (Segment& segment : segments_) {
            segment.size = 0;
            spread<true>(segment.first, buckets_,
                         [&](const Bucket& bucket, std::size_t slot, std::uint64_t) {
                             return gone(bucket, slot) ? nullptr : &segment;
                         });
        }
    }

  private:
    static constexpr std::size_t kBuckets = kChunkBytes / sizeof(Bucket);
    static constexpr std::size_t kFewest = 64;
    static constexpr unsigned kDeepest = 24;  // 64 MB of directory, half a terabyte of table

    static constexpr std::uint64_t homes_of(std::size_t buckets) { return buckets - (kReach - 1); }
    TS_INLINE static std::size_t home_of(std::uint64_t hash, std::uint64_t homes) noexcept {
        return static_cast<std::size_t>((hash & 0xFFFFFFFFu) * homes >> 32);
    }

    static Segment fresh(std::size_t buckets) {
        Segment segment;
        segment.memory = take_memory(buckets * sizeof(Bucket));
        segment.first = static_cast<Bucket*>(segment.memory.get());
        for (std::size_t i = 0; i < buckets; ++i) segment.first[i].fill = 0;
        return segment;
    }

    void start() {
        Vector<std::uint32_t> directory(2);  // two: a shift by 64 bits is undefined
        segments_.reserve(1);
        segments_.push_back(fresh(kFewest));
        directory_.swap(directory);
        buckets_ = kFewest;
        shift_ = 63;
    }

    void double_segment() {
        Segment larger = fresh(2 * buckets_);
        const std::size_t before = buckets_;
        buckets_ *= 2;
        if (!spread<false>(
                segments_[0].first, before,
                [&](const Bucket&, std::size_t, std::uint64_t) { return &larger; })) {
            buckets_ = before;
            throw std::bad_alloc();  // dozens of hashes that agree in most of their bits
        }
        segments_[0] = std::move(larger);
    }

    void split(std::uint32_t number) {
        const unsigned depth = segments_[number].depth;
        if (depth == kDeepest) throw std::bad_alloc();
        if (segments_.size() == segments_.capacity()) segments_.reserve(segments_.size() * 9 / 8 + 8);
        if (depth == 64 - shift_) double_directory();
        Segment upper = fresh(buckets_);
        Segment& lower = segments_[number];
        upper.depth = ++lower.depth;
        lower.prefix *= 2;
        upper.prefix = lower.prefix + 1;
        lower.size = 0;
        const unsigned bit = 63 - depth;
        Segment* const halves[2] = {&lower, &upper};  // no branch: half of the guesses are wrong
        spread<true>(lower.first, buckets_,
                     [&](const Bucket&, std::size_t, std::uint64_t hash) {
                         return halves[hash >> bit & 1];
                     });
        const std::size_t span = std::size_t{1} << (64 - shift_ - upper.depth);
        std::fill_n(directory_.begin() + static_cast<std::ptrdiff_t>(upper.prefix * span), span,
                    static_cast<std::uint32_t>(segments_.size()));
        segments_.push_back(std::move(upper));
    }

    void double_directory() {
        Vector<std::uint32_t> directory(2 * directory_.size());
        for (std::size_t i = 0; i < directory.size(); ++i) directory[i] = directory_[i / 2];
        directory_.swap(directory);
        --shift_;
    }

    // Moves what lies in `buckets` to the segment chosen for it; nullptr drops it. In place, in
    // ascending order, nothing comes to lie behind the bucket it was in: what is still to be read
    // is not overwritten, and there is a place within reach. Elsewhere there may be none: false.
    template <bool InPlace, class Choose>
    bool spread(Bucket* buckets, std::size_t count, Choose choose) noexcept {
        const std::uint64_t homes = homes_of(buckets_);
        for (std::size_t i = 0; i < count; ++i) {
            const Bucket old = buckets[i];
            if (InPlace) buckets[i].fill = 0;
            for (std::size_t slot = 0; slot < old.fill; ++slot) {
                const std::uint64_t hash = hash_(old, slot);
                Segment* const target = choose(old, slot, hash);
                if (target == nullptr) continue;
                Bucket* const home = target->first + home_of(hash, homes);
                Bucket* bucket = home;
                while (bucket->fill == Bucket::kSlots) {
                    if (++bucket == home + kReach) return false;
                }
                bucket->push(old, slot);
                ++target->size;
            }
        }
        return true;
    }

    Hash hash_;
    Vector<Segment> segments_;
    Vector<std::uint32_t> directory_;
    std::size_t buckets_ = 0;
    unsigned shift_ = 63;
};

}  // namespace tensorstate
