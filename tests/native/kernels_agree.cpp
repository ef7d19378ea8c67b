// Every kernel that this processor runs against the reference and against plain comparisons:
// a number of cases and a seed in; out comes how many agreed, or the first that did not.
//
// The elements lie in memory of random bytes, so all kinds of NaN and denormals occur, and next to
// a guard page, so that a read beyond either end ends the program.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <vector>

#include "chosen.hpp"
#include "kernels.hpp"
#include "pack.hpp"

using namespace tensorstate;

namespace {

std::mt19937_64 generator;
constexpr std::uint64_t untouched = 0xA5A5A5A5A5A5A5A5u;

std::size_t below(std::size_t limit) { return generator() % limit; }

std::size_t size_around_an_edge() {
    static const std::size_t edges[] = {1, 8, 16, 32, 57, 64, 128, 192, 512, 1000, 4096};
    const std::size_t edge = edges[below(std::size(edges))];
    if (below(4) == 0) return 1 + below(600);
    return std::max<std::size_t>(3, edge + below(5)) - 2;
}

// Some memory between two pages that cannot be read.
class Guarded {
  public:
    explicit Guarded(std::size_t most)
        : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))),
          size_((most + page_ - 1) / page_ * page_) {
        void* memory =
            mmap(nullptr, size_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        start_ = static_cast<char*>(memory) + page_;
        if (memory == MAP_FAILED || mprotect(start_, size_, PROT_READ | PROT_WRITE) != 0) {
            std::perror("no memory");
            std::exit(2);
        }
    }
    char* start() const { return start_; }
    char* end() const { return start_ + size_; }
    std::size_t size() const { return size_; }

  private:
    std::size_t page_, size_;
    char* start_;
};

struct Case {
    std::size_t width, channels, positions;
    std::ptrdiff_t channel_stride, position_stride;
    bool folded;
    Firing firing;
    Run run;

    std::uint64_t most() const { return ~std::uint64_t{0} >> (64 - (std::size_t{8} << width)); }
    const char* address(std::size_t position, std::size_t channel) const {
        return run.data + static_cast<std::ptrdiff_t>(position) * position_stride +
               static_cast<std::ptrdiff_t>(channel) * channel_stride;
    }
};

std::uint64_t key_of(const Case& c, const char* address) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, address, std::size_t{1} << c.width);
    const std::uint64_t magnitude = bits & c.most() / 2;
    return c.folded && bits != magnitude ? (0 - magnitude) & c.most() : bits;
}

bool fires_plainly(const Case& c, const char* address) {
    return ((key_of(c, address) - c.firing.first) & c.most()) < c.firing.span;
}

// Half of all ranges are a float's for threshold 0, and half begin or end at one of the elements.
Firing some_range(const Case& c) {
    Firing firing{1, c.most() / 2 - c.most() / 512};
    if (below(2) == 0) {
        firing.first = generator() & c.most();
        firing.span = std::max<std::uint64_t>(1, generator() & c.most());
    }
    if (below(2) == 0) {
        const std::uint64_t places[] = {0, ~std::uint64_t{0}, firing.span - 1, firing.span};
        const char* address = c.address(below(c.positions), below(c.channels));
        firing.first = (key_of(c, address) - places[below(4)]) & c.most();
    }
    return firing;
}

// Channels or positions innermost, dense or not, forwards or backwards.
bool choose(Case& chosen, const Guarded& memory) {
    Case c{};
    c.width = below(4);
    const auto item = static_cast<std::ptrdiff_t>(1) << c.width;
    c.channels = size_around_an_edge();
    c.positions = std::min(size_around_an_edge(), kMostPositions);
    const bool planes = below(2) == 0;
    const std::size_t inner = planes ? c.positions : c.channels;
    const std::size_t outer = planes ? c.channels : c.positions;
    const std::size_t step = below(4) == 0 ? 1 + below(3) : 1, gap = below(2) == 0 ? below(40) : 0;
    std::ptrdiff_t near = item * static_cast<std::ptrdiff_t>(step);
    const auto last_inner = static_cast<std::ptrdiff_t>(inner - 1);
    const auto last_outer = static_cast<std::ptrdiff_t>(outer - 1);
    std::ptrdiff_t far = near * (last_inner + 1) + static_cast<std::ptrdiff_t>(gap);
    const auto bytes = static_cast<std::size_t>(near * last_inner + far * last_outer + item);
    if (bytes > memory.size()) return false;
    const char* data = below(2) == 0 ? memory.start() : memory.end() - bytes;
    if (below(5) == 0) {
        data += near * last_inner;
        near = -near;
    }
    if (below(5) == 0) {
        data += far * last_outer;
        far = -far;
    }
    c.position_stride = planes ? near : far;
    c.channel_stride = planes ? far : near;
    c.folded = c.width != 0 && below(2) == 0;
    c.run = {data, c.positions, c.position_stride, c.channels, c.channel_stride};
    c.firing = some_range(c);
    chosen = c;
    return true;
}

std::vector<std::uint64_t> expected_rows(const Case& c) {
    const std::size_t words = words_of(c.channels);
    std::vector<std::uint64_t> rows(c.positions * words);
    for (std::size_t i = 0; i < c.positions; ++i) {
        for (std::size_t n = 0; n < c.channels; ++n) {
            rows[i * words + n / 64] |= std::uint64_t{fires_plainly(c, c.address(i, n))} << n % 64;
        }
    }
    return rows;
}

bool agrees(const Kernel& kernel, const Case& c, const std::vector<std::uint64_t>& expected) {
    std::vector<std::uint64_t> found(expected.size() + 1, untouched);
    Packer(kernel, std::size_t{1} << c.width, c.folded, c.firing, below(2) == 0)
        .pack(c.run, found.data());
    const bool overrun = found.back() != untouched;
    found.pop_back();
    if (found == expected && !overrun) return true;
    std::size_t first = 0;
    while (first < expected.size() && found[first] == expected[first]) ++first;
    std::fprintf(stderr,
                 "%s differs at word %zu%s: %zu bytes an element, %zu channels %td bytes apart,"
                 " %zu positions %td bytes apart, folded %d, first %#llx, span %#llx\n",
                 kernel.name, first, overrun ? " (wrote beyond the end)" : "",
                 std::size_t{1} << c.width, c.channels, c.channel_stride, c.positions,
                 c.position_stride, c.folded, static_cast<unsigned long long>(c.firing.first),
                 static_cast<unsigned long long>(c.firing.span));
    return false;
}

// All positions as rows of bytes, or some of them, ascending or not.
bool packs_bytes(const Kernel& kernel, const Case& c, const std::vector<std::uint64_t>& expected) {
    const std::size_t words = words_of(c.channels), bytes = (c.channels + 7) / 8;
    const Axis positions{c.positions, c.position_stride}, none{1, 0};
    const bool all = below(4) == 0, of_one_sample = below(2) == 0;
    std::vector<std::ptrdiff_t> places(1 + below(100));
    for (auto& place : places) place = static_cast<std::ptrdiff_t>(below(c.positions));
    if (below(2) == 0) std::sort(places.begin(), places.end());
    const Batch batch{c.run.data, of_one_sample ? none : positions,
                      {of_one_sample ? positions : none}, {c.channels, c.channel_stride},
                      std::size_t{1} << c.width, c.folded, c.firing};
    if (all || !of_one_sample) {
        places.resize(c.positions);
        for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<std::ptrdiff_t>(i);
    }
    std::vector<std::uint8_t> found(places.size() * bytes + 1, 0xA5), rows;
    for (const std::ptrdiff_t place : places) {
        const auto* row = reinterpret_cast<const std::uint8_t*>(&expected[0]) +
                          static_cast<std::size_t>(place) * 8 * words;
        rows.insert(rows.end(), row, row + bytes);
    }
    rows.push_back(0xA5);
    if (all) {
        pack_all(kernel, batch, 1, found.data());
    } else {
        const std::ptrdiff_t first = 0;
        pack_chosen(kernel, batch, of_one_sample ? places.data() : &first,
                    of_one_sample ? places.size() : 1, 1, found.data());
    }
    if (found == rows) return true;
    std::fprintf(stderr, "%s packs chosen positions wrongly: %zu bytes an element, %zu channels %td"
                 " bytes apart, %zu of %zu positions %td bytes apart\n", kernel.name,
                 std::size_t{1} << c.width, c.channels, c.channel_stride, places.size(),
                 c.positions, c.position_stride);
    return false;
}

// Packed rows of 1 to 8 bytes, which end where the memory ends.
bool widens(const Kernel& kernel, const Guarded& memory, std::size_t bytes, std::size_t count,
            std::uint64_t mask) {
    const auto* rows = reinterpret_cast<const std::uint8_t*>(memory.end()) - count * bytes;
    std::vector<std::uint64_t> expected(count + 1, untouched), found(count + 1, untouched);
    for (std::size_t i = 0; i < count; ++i) {
        expected[i] = 0;
        std::memcpy(&expected[i], rows + i * bytes, bytes);
        expected[i] &= mask;
    }
    kernel.widen(rows, bytes, count, mask, found.data());
    if (found == expected) return true;
    std::fprintf(stderr, "%s widens wrongly: %zu rows of %zu bytes, mask %#llx\n", kernel.name,
                 count, bytes, static_cast<unsigned long long>(mask));
    return false;
}

// Rows of 1 to 4 bytes, or of 8, which end where the memory ends. Many prevail, or are like the one
// before.
bool sifts(const Kernel& kernel, const Guarded& memory, std::size_t bytes, std::size_t count,
           std::uint32_t mask) {
    auto* const rows = reinterpret_cast<std::uint8_t*>(memory.end()) - count * bytes;
    const std::vector<std::uint8_t> before(rows, rows + count * bytes);
    const std::uint64_t few[] = {0, 1, 0xFFFFFFFFFFFFFFFFu, 0x8070605040302010u};
    for (std::size_t i = 0; i < count; ++i) {
        std::memcpy(rows + i * bytes, &few[below(below(2) == 0 ? 2 : 4)], bytes);
    }
    const std::uint32_t prevailing = static_cast<std::uint32_t>(few[below(4)]) & mask;
    std::vector<std::uint32_t> begin, again, first(count), other(count);
    Sifted sifted{first.data(), other.data(), 0, 0};
    kernel.sift({rows, bytes, count, mask}, prevailing, sifted);
    std::uint64_t last = ~std::uint64_t{0};
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t state = 0;
        std::memcpy(&state, rows + i * bytes, bytes);
        state &= mask;
        if (state != prevailing) (state == last ? again : begin).push_back(state);
        last = state;
    }
    std::memcpy(rows, before.data(), before.size());
    first.resize(sifted.n_begin);
    other.resize(sifted.n_again);
    if (first == begin && other == again) return true;
    std::fprintf(stderr, "%s sifts %zu rows of %zu bytes wrongly, mask %#x\n", kernel.name, count,
                 bytes, mask);
    return false;
}

}  // namespace

int main(int count, char** arguments) {
    const std::size_t cases = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1000;
    const std::uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
    generator.seed(seed);
    const Guarded memory(std::size_t{1} << 20);
    for (char* byte = memory.start(); byte != memory.end(); ++byte) {
        *byte = static_cast<char>(below(3) == 0 ? below(3) - 1 : generator());
    }
    std::map<std::string, std::size_t> checked;
    for (std::size_t done = 0; done < cases;) {
        Case chosen;
        if (!choose(chosen, memory)) continue;
        ++done;
        const std::vector<std::uint64_t> expected = expected_rows(chosen);
        for (const Kernel* kernel : kKernels) {
            if (!kernel->runs_here()) continue;
            if (!agrees(*kernel, chosen, expected)) return 1;
            if (!packs_bytes(*kernel, chosen, expected)) return 1;
            const std::size_t bytes = 1 + below(8);
            const std::uint64_t mask = ~std::uint64_t{0} >> (64 - 8 * bytes + below(8));
            if (!widens(*kernel, memory, bytes, below(100), mask)) return 1;
            const std::size_t narrow = below(5) < 4 ? 1 + below(4) : 8;
            const std::size_t unused = 32 - 8 * std::min<std::size_t>(narrow, 4) + below(8);
            if (!sifts(*kernel, memory, narrow, 16 * (1 + below(32)), ~0u >> unused)) return 1;
            ++checked[kernel->name];
        }
    }
    for (const auto& [name, number] : checked) {
        std::printf("%s: %zu cases agree\n", name.c_str(), number);
    }
}
