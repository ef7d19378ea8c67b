// One kernel: the packing loops compiled for one instruction set, for each width of an element.
#pragma once

#include "pack.hpp"

namespace tensorstate {

using Pack = void (*)(const Run& run, Firing firing, std::uint64_t* out);

struct Kernel {
    const char* name;
    bool (*runs_here)();
    Pack pack[4][2];  // [log2 of the element's bytes][folded]
};

}  // namespace tensorstate

// Defines namespace `name` with its `pack`; `target` is the attribute of the instruction set.
#define TS_DEFINE_KERNEL(name, target)                                                      \
    namespace tensorstate::name {                                                           \
    template <class Bits, bool Folded>                                                      \
    target void pack(const Run& run, Firing firing, std::uint64_t* out) {                   \
        pack_run<Bits, Folded>(run, firing, out);                                           \
    }                                                                                       \
    }

#define TS_KERNEL_ROW(name)                                                                 \
    {                                                                                       \
        #name, name::runs_here, {                                                           \
            {name::pack<std::uint8_t, false>, name::pack<std::uint8_t, true>},              \
            {name::pack<std::uint16_t, false>, name::pack<std::uint16_t, true>},            \
            {name::pack<std::uint32_t, false>, name::pack<std::uint32_t, true>},            \
            {name::pack<std::uint64_t, false>, name::pack<std::uint64_t, true>},            \
        }                                                                                   \
    }
