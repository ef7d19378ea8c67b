// The kernel for x86-64 processors with AVX2.
#pragma once

#include "kernel.hpp"

#if TS_X86
TS_DEFINE_KERNEL(avx2, __attribute__((target("avx2,bmi,bmi2"))))

namespace tensorstate::avx2 {
inline bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }
}  // namespace tensorstate::avx2
#endif
