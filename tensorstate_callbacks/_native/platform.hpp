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
#define TS_PREFETCH_READ(address)
#else
#define TS_INLINE inline __attribute__((always_inline))
#define TS_SWAP_BYTES(word) __builtin_bswap64(word)
#define TS_PREFETCH(address) __builtin_prefetch(address, 1)
#define TS_PREFETCH_READ(address) __builtin_prefetch(address)
#endif

// The instruction set of one function; MSVC takes every intrinsic anywhere.
#if defined(__GNUC__)
#define TS_TARGET(features) __attribute__((target(features)))
#else
#define TS_TARGET(features)
#endif

#if defined(__x86_64__) || (defined(_M_X64) && !defined(_M_ARM64EC))
#define TS_X86 1
#else
#define TS_X86 0
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
#define TS_ARM 1
#else
#define TS_ARM 0
#endif
