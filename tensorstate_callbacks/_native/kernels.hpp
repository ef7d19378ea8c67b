// The table of kernels, fastest first: a name in, the kernel out if this processor runs it.
#pragma once

#include <string>
#include <vector>

#include "kernel_avx2.hpp"
#include "kernel_avx512.hpp"
#include "kernel_neon.hpp"
#include "kernel_scalar.hpp"

namespace tensorstate {

inline constexpr const Kernel* kKernels[] = {
#if TS_X86
    &avx512::kernel,
    &avx2::kernel,
#endif
#if TS_ARM
    &neon::kernel,
#endif
    &scalar::kernel,
};

inline std::vector<std::string> kernel_names() {
    std::vector<std::string> names;
    for (const Kernel* kernel : kKernels) {
        if (kernel->runs_here()) names.emplace_back(kernel->name);
    }
    return names;
}

inline const Kernel* find_kernel(const std::string& name) {
    for (const Kernel* kernel : kKernels) {
        if (name == kernel->name && kernel->runs_here()) return kernel;
    }
    return nullptr;
}

}  // namespace tensorstate
