// One bucket of states: a key in, its slot out. One or two cache lines, searched whole, as that
// costs less than guessing wrong where to stop.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine.hpp"

#if TS_X86
#include <immintrin.h>
#endif

namespace tensorstate {

template <std::size_t Words>
struct Key {
    std::uint64_t words[Words];

    TS_INLINE bool operator==(const Key& other) const noexcept {
        std::uint64_t different = 0;
        for (std::size_t i = 0; i < Words; ++i) different |= words[i] ^ other.words[i];
        return different == 0;
    }
};

template <std::size_t Words>
struct HashKey {
    TS_INLINE std::uint64_t operator()(const Key<Words>& key) const noexcept {
        std::uint64_t hash = mixed(key.words[0]);
        for (std::size_t i = 1; i < Words; ++i) hash = mixed(hash ^ key.words[i]);
        return hash;
    }
};

template <std::size_t Words>
struct Bucket {
    static constexpr std::size_t kSlots = Words == 1 ? 6 : 7;

    Key<Words> keys[kSlots];
    std::uint16_t counts[kSlots];  // see SpilledCounts
    std::uint16_t fill;

    void push(const Bucket& from, std::size_t slot) noexcept {
        keys[fill] = from.keys[slot];
        counts[fill++] = from.counts[slot];
    }
};

static_assert(sizeof(Bucket<1>) == 64 && sizeof(Bucket<2>) == 128);

// Bit i of what find() gives: slot i holds the key.
struct FindPortably {
    template <std::size_t Words>
    TS_INLINE static unsigned find(const Bucket<Words>& bucket, const Key<Words>& key) noexcept {
        unsigned found = 0;
        for (std::size_t i = 0; i < Bucket<Words>::kSlots; ++i) {
            found |= static_cast<unsigned>(bucket.keys[i] == key) << i;
        }
        return found & ((1u << bucket.fill) - 1);
    }
};

#if TS_X86
// Reads the keys alone: a load over counts that were stored a moment ago would wait for them.
struct FindAvx2 {
    TS_TARGET("avx2") static inline unsigned find(const Bucket<1>& bucket,
                                                  const Key<1>& key) noexcept {
        const __m256i wanted = _mm256_set1_epi64x(static_cast<long long>(key.words[0]));
        const auto* keys = reinterpret_cast<const __m256i*>(bucket.keys);
        const __m256i four = _mm256_cmpeq_epi64(_mm256_loadu_si256(keys), wanted);
        const __m128i two = _mm_cmpeq_epi64(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + 1)),
            _mm256_castsi256_si128(wanted));
        const int found = _mm256_movemask_pd(_mm256_castsi256_pd(four)) |
                          _mm_movemask_pd(_mm_castsi128_pd(two)) << 4;
        return static_cast<unsigned>(found) & ((1u << bucket.fill) - 1);
    }
};
#endif

}  // namespace tensorstate
