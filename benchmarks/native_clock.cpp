// Runs the counter's packing, or a plain read, some times over; the seconds that it took out.
//
// Python could only time an update, in which counting and the call itself weigh more than packing.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "source.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point began) {
    return std::chrono::duration<double>(Clock::now() - began).count();
}

typedef std::uint64_t Lanes __attribute__((vector_size(64), aligned(8), may_alias));

// Eight sums: neither the loads nor the folding wait for one another.
TS_INLINE std::uint64_t folded(const std::uint64_t* words, std::size_t size) {
    constexpr std::size_t lanes = 8;
    Lanes a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};
    for (std::size_t i = 0; i + 8 * lanes <= size; i += 8 * lanes) {
        const Lanes* next = reinterpret_cast<const Lanes*>(words + i);
        a |= next[0];
        b |= next[1];
        c |= next[2];
        d |= next[3];
        e |= next[4];
        f |= next[5];
        g |= next[6];
        h |= next[7];
    }
    const Lanes all = ((a | b) | (c | d)) | ((e | f) | (g | h));
    std::uint64_t sum = 0;
    for (std::size_t lane = 0; lane < lanes; ++lane) sum |= all[lane];
    return sum;
}

std::uint64_t read_plainly(const std::uint64_t* words, std::size_t size) {
    return folded(words, size);
}

#if TS_X86
__attribute__((target("avx512f,prefer-vector-width=512"))) std::uint64_t read_avx512(
    const std::uint64_t* words, std::size_t size) {
    return folded(words, size);
}
__attribute__((target("avx2"))) std::uint64_t read_avx2(const std::uint64_t* words,
                                                        std::size_t size) {
    return folded(words, size);
}
#endif

auto reader() {
#if TS_X86
    if (__builtin_cpu_supports("avx512f")) return read_avx512;
    if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
    return read_plainly;
}

volatile std::uint64_t sink;

}  // namespace

// Packs in blocks as the counter does, into the same few rows; into `all` if it isn't null.
extern "C" double pack_seconds(const char* kernel, const char* data, std::size_t n_axes,
                               const std::size_t* sizes, const std::ptrdiff_t* strides,
                               std::size_t item_bytes, std::uint64_t first, std::uint64_t span,
                               std::size_t repeats, std::uint64_t* all) {
    using namespace tensorstate;
    const Kernel* found = find_kernel(kernel);
    if (found == nullptr) return -1;
    std::vector<Axis> positions;
    for (std::size_t i = 0; i + 1 < n_axes; ++i) positions.push_back(Axis{sizes[i], strides[i]});
    const Axis channels{sizes[n_axes - 1], strides[n_axes - 1]};
    const std::size_t words = words_of(channels.size);
    const std::size_t room = std::clamp<std::size_t>(32768 / words, 1, kMostPositions);
    std::vector<std::uint64_t> block(room * words);
    const auto began = Clock::now();
    for (std::size_t repeat = 0; repeat < repeats; ++repeat) {
        Activations source(*found, data, positions, channels, item_bytes, false,
                           Firing{first, span});
        std::uint64_t* target = all == nullptr ? block.data() : all;
        while (const std::size_t size = source.next(Room{target, nullptr, room}).size) {
            if (all != nullptr) target += size * words;
            sink = *block.data();
        }
    }
    return since(began);
}

extern "C" double read_seconds(const std::uint64_t* words, std::size_t size, std::size_t repeats) {
    const auto read = reader();
    const auto began = Clock::now();
    for (std::size_t repeat = 0; repeat < repeats; ++repeat) sink = read(words, size);
    return since(began);
}
