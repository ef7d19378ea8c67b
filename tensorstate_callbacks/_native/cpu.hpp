// What an x86-64 processor and its operating system can run: cpuid in, yes or no out.
#pragma once

#include "platform.hpp"

#if TS_X86
#include <cstdint>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace tensorstate {

// Registers of cpuid leaf 7 and the part of the state which the system saves (XCR0).
struct Cpu {
    std::uint32_t ebx = 0, ecx = 0;
    std::uint64_t saved = 0;

    // Asked once: in a virtual machine each cpuid costs microseconds.
    static const Cpu& here() {
        static const Cpu cpu = detected();
        return cpu;
    }

    bool avx2() const { return (saved & 0x6) == 0x6 && has(ebx, 5); }

    // F, DQ, BW, VL, and of the second generation VBMI and GFNI: Ice Lake, Zen 4 and later.
    bool avx512_gfni() const {
        return avx2() && (saved & 0xE6) == 0xE6 && has(ebx, 16) && has(ebx, 17) && has(ebx, 30) &&
               has(ebx, 31) && has(ebx, 8) && has(ecx, 1) && has(ecx, 8);
    }

  private:
    static Cpu detected() {
        Cpu cpu;
        std::uint32_t leaf[4];
        cpuid(0, leaf);
        if (leaf[0] < 7) return cpu;
        cpuid(1, leaf);
        if (!(leaf[2] >> 27 & 1)) return cpu;  // OSXSAVE: XCR0 can be read
        cpu.saved = read_xcr0();
        cpuid(7, leaf);
        cpu.ebx = leaf[1];
        cpu.ecx = leaf[2];
        return cpu;
    }

    static bool has(std::uint32_t features, unsigned bit) { return features >> bit & 1; }

#if defined(_MSC_VER)
    static void cpuid(int number, std::uint32_t* leaf) {
        __cpuidex(reinterpret_cast<int*>(leaf), number, 0);
    }
    static std::uint64_t read_xcr0() { return _xgetbv(0); }
#else
    static void cpuid(int number, std::uint32_t* leaf) {
        __cpuid_count(number, 0, leaf[0], leaf[1], leaf[2], leaf[3]);
    }
    static std::uint64_t read_xcr0() {
        std::uint32_t low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return static_cast<std::uint64_t>(high) << 32 | low;
    }
#endif
};

}  // namespace tensorstate
#endif
