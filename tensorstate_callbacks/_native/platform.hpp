// What compilers and processors do differently: inlining, prefetching, instruction sets.
#pragma once

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "states are packed in little-endian words; the NumPy counter runs on this machine"
#endif

#if defined(_MSC_VER)
#include <stdlib.h>
#define TS_INLINE __forceinline
#define TS_SWAP_BYTES(word) _byteswap_uint64(word)
#define TS_PREFETCH(address)
#else
// Forced: the loops of pack.hpp must be compiled for the instruction set of their caller.
#define TS_INLINE inline __attribute__((always_inline))
#define TS_SWAP_BYTES(word) __builtin_bswap64(word)
#define TS_PREFETCH(address) __builtin_prefetch(address, 1)
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define TS_X86 1
#else
#define TS_X86 0
#endif
