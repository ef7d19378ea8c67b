// Zeroed memory that may fail: bytes in; an owned block or std::bad_alloc out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace tensorstate {

struct FreeMemory {
    void operator()(void* memory) const noexcept { std::free(memory); }
};

template <class T>
using Block = std::unique_ptr<T[], FreeMemory>;

inline thread_local std::uint64_t allocations_until_failure = 0;

// Tests make the nth allocation of this thread fail; 0 lets all succeed.
inline void fail_allocation(std::uint64_t number) noexcept { allocations_until_failure = number; }

// calloc, not new: pages never touched cost nothing.
template <class T>
Block<T> allocate(std::size_t count) {
    if (allocations_until_failure != 0 && --allocations_until_failure == 0) throw std::bad_alloc();
    Block<T> block(static_cast<T*>(std::calloc(count, sizeof(T))));
    if (block == nullptr && count != 0) throw std::bad_alloc();
    return block;
}

}  // namespace tensorstate
