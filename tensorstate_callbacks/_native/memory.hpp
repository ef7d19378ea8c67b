// Memory that may fail: a size in, an owned block or std::bad_alloc out.
//
// Fresh pages cost more than counting into them, so chunks of freed tables wait in a pool for the
// next one: at most kPooledBytes for the process, shared by all counters.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(_MSC_VER)
#define TS_NOINLINE __declspec(noinline)
#else
#define TS_NOINLINE __attribute__((noinline))
#endif

namespace tensorstate {

inline constexpr std::size_t kChunkBytes = 65536;
#ifndef TS_POOLED_BYTES  // a sanitizer that looks for use after free wants 0
#define TS_POOLED_BYTES (std::size_t{64} << 20)
#endif
inline constexpr std::size_t kPooledBytes = TS_POOLED_BYTES;

inline thread_local std::uint64_t allocations_until_failure = 0;

// Tests make the nth allocation of this thread fail; 0 lets all succeed.
inline void fail_allocation(std::uint64_t number) noexcept { allocations_until_failure = number; }

inline void count_allocation() {
    if (allocations_until_failure != 0 && --allocations_until_failure == 0) throw std::bad_alloc();
}

// Chunks nobody uses. Who finds it busy goes to the system instead of waiting, so that a process
// forked at the wrong moment cannot wait for ever.
class ChunkPool {
  public:
    void* take() noexcept {
        void* chunk = nullptr;
        if (!busy_.test_and_set(std::memory_order_acquire)) {
            if (size_ != 0) chunk = chunks_[--size_];
            busy_.clear(std::memory_order_release);
        }
        return chunk;
    }

    bool keep(void* chunk) noexcept {
        bool kept = false;
        if (!busy_.test_and_set(std::memory_order_acquire)) {
            kept = size_ < kMost;
            if (kept) chunks_[size_++] = chunk;
            busy_.clear(std::memory_order_release);
        }
        return kept;
    }

  private:
    static constexpr std::size_t kMost = kPooledBytes / kChunkBytes;

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::size_t size_ = 0;
    void* chunks_[kMost + 1] = {};
};

inline ChunkPool chunk_pool;

struct ReturnMemory {
    std::size_t bytes = 0;

    void operator()(void* memory) const noexcept {
        if (bytes == kChunkBytes && chunk_pool.keep(memory)) return;
        ::operator delete(memory, std::align_val_t{64});
    }
};

using Memory = std::unique_ptr<void, ReturnMemory>;

// What is in it is anybody's guess; it starts at a cache line.
inline Memory take_memory(std::size_t bytes) {
    count_allocation();
    void* memory = bytes == kChunkBytes ? chunk_pool.take() : nullptr;
    if (memory == nullptr) memory = ::operator new(bytes, std::align_val_t{64});
    return Memory(memory, ReturnMemory{bytes});
}

struct FreeMemory {
    void operator()(void* memory) const noexcept { std::free(memory); }
};

template <class T>
using Block = std::unique_ptr<T[], FreeMemory>;

// Zeros. calloc, not new: pages never touched cost nothing.
template <class T>
Block<T> allocate(std::size_t count) {
    count_allocation();
    Block<T> block(static_cast<T*>(std::calloc(count, sizeof(T))));
    if (block == nullptr && count != 0) throw std::bad_alloc();
    return block;
}

// For containers of the standard library that belong to a table.
template <class T>
struct Allocator {
    using value_type = T;

    Allocator() = default;
    template <class U>
    Allocator(const Allocator<U>&) noexcept {}

    T* allocate(std::size_t count) {
        count_allocation();
        return std::allocator<T>().allocate(count);
    }
    void deallocate(T* memory, std::size_t count) noexcept {
        std::allocator<T>().deallocate(memory, count);
    }
    template <class U>
    bool operator==(const Allocator<U>&) const noexcept {
        return true;
    }
    template <class U>
    bool operator!=(const Allocator<U>&) const noexcept {
        return false;
    }
};

template <class T>
using Vector = std::vector<T, Allocator<T>>;

}  // namespace tensorstate
