// The kernel for x86-64 processors with AVX-512 (F, BW, DQ, VL: Skylake-X, Zen 4 and later).
#pragma once

#include "kernel.hpp"

#if TS_X86
#if defined(__clang__)
#define TS_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2"
#else
// GCC keeps to 256 bits unless told.
#define TS_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,prefer-vector-width=512"
#endif

TS_DEFINE_KERNEL(avx512, __attribute__((target(TS_AVX512))))

namespace tensorstate::avx512 {
inline bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("bmi2");
}
}  // namespace tensorstate::avx512
#endif
