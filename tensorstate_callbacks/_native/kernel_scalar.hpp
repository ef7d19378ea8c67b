// The reference kernel: what every processor of the architecture runs.
#pragma once

#include "kernel.hpp"

TS_DEFINE_KERNEL(scalar, )

namespace tensorstate::scalar {
inline bool runs_here() { return true; }
}  // namespace tensorstate::scalar
