// Hostile bytes in: they choose counters, widths, kernels, number types, thresholds, shapes, strides
// and calls; out comes a crash where a counter and a plain std::map disagree.
#include <algorithm>
#include <iterator>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "counter.hpp"
#include "fuzz_inputs.hpp"
#include "groups.hpp"

using namespace tensorstate;

namespace {

void compare(const Counter& counter, const Oracle& oracle, std::size_t neurons) {
    const std::size_t bytes = (neurons + 7) / 8;
    std::uint64_t states = 0;
    std::vector<std::uint64_t> fired(neurons);
    std::map<std::uint64_t, std::uint64_t> spectrum;
    const Snapshot snapshot = counter.snapshot();
    require(snapshot.counts.size() == oracle.size(), "the number of distinct states");
    const auto* row = reinterpret_cast<const std::uint8_t*>(snapshot.rows.data());
    std::size_t i = 0;
    for (const auto& [state, count] : oracle) {
        require(std::equal(state.begin(), state.end(), row + i * bytes), "a state, or their order");
        require(snapshot.counts[i] == count, "a count");
        for (std::size_t c = 0; c < neurons; ++c) fired[c] += (state[c / 8] >> (c % 8) & 1) * count;
        states += count;
        ++spectrum[count];
        ++i;
    }
    require(counter.states() == states, "the number of states");
    require(counter.distinct() == oracle.size(), "the number of distinct states, asked alone");
    require(counter.fired() == fired, "the firings of a neuron");
    const Spectrum found = counter.spectrum();
    require(found.values.size() == spectrum.size(), "the number of different counts");
    i = 0;
    for (const auto& [value, multiplicity] : spectrum) {
        require(found.values[i] == value && found.multiplicities[i] == multiplicity, "spectrum");
        ++i;
    }
}

void compare(const GroupCounter& counter, const Oracle& oracle, std::size_t neurons,
             std::size_t group) {
    std::vector<std::uint64_t> expected(counter.n_counts());
    std::uint64_t states = 0;
    for (const auto& [row, count] : oracle) {
        states += count;
        for (std::size_t first = 0; first < neurons; first += group) {
            std::size_t state = 0;
            for (std::size_t i = 0; i < std::min(group, neurons - first); ++i) {
                const std::size_t c = first + i;
                state |= static_cast<std::size_t>(row[c / 8] >> (c % 8) & 1) << i;
            }
            expected[(first / group << group) + state] += count;
        }
    }
    const GroupTables found = counter.tables();
    require(counter.states() == states && found.states == states, "the number of states");
    require(found.counts == expected, "a count of a unit");
}

// `make` gives an empty counter of any kernel, `check` compares one with an oracle.
template <class Make, class Check>
void call(Choices& choices, std::size_t neurons, Make make, Check check) {
    const auto counter = make();
    using Counted = std::remove_reference_t<decltype(*counter)>;
    Oracle oracle;
    for (int calls = 0; calls < 6 && !choices.empty(); ++calls) {
        const std::uint8_t call = choices.byte() % 16;
        fail_allocation(choices.byte() % 8 == 0 ? 1 + choices.below(6) : 0);
        try {
            Oracle after = oracle;
            if (call < 8) {
                update(choices, *counter, after, neurons);
            } else if (call < 12) {
                update_packed(choices, *counter, after, neurons);
            } else if (call == 12) {
                counter->merge(*counter);
                for (auto& [state, count] : after) count *= 2;
            } else if (call < 15) {
                const auto other = make();
                Oracle others;
                update(choices, *other, others, neurons);
                update_packed(choices, *other, others, neurons);
                if constexpr (std::is_same_v<Counted, GroupCounter>) {
                    const GroupTables tables = other->tables();
                    if (call == 14) counter->add_tables(tables.counts.data(), tables.states);
                }
                if (call == 13 || std::is_same_v<Counted, Counter>) counter->merge(*other);
                check(*other, others);
                for (const auto& [state, count] : others) after[state] += count;
            } else {
                counter->reset();
                after.clear();
            }
            oracle.swap(after);
        } catch (const std::bad_alloc&) {  // all or nothing: the oracle stays as it was
        } catch (const std::invalid_argument&) {  // a bit beyond the neurons: likewise
        }
        fail_allocation(0);
        check(*counter, oracle);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<std::string> kernels = kernel_names();
    constexpr std::size_t widths[] = {1,  2,  3,  7,  8,  9,   15,  16,  17,  20,  22,
                                      23, 31, 32, 33, 50, 63,  64,  65,  100, 127, 128,
                                      129, 192, 193, 512, 513, 2048, 4095, 4097};
    Choices choices(data, size);
    const std::size_t neurons = widths[choices.below(std::size(widths))];
    const bool groups = choices.byte() % 2 != 0;
    const std::size_t threads = 1 + choices.below(3);
    if (!groups) {
        call(
            choices, neurons,
            [&] {
                const std::string& kernel = kernels[choices.below(kernels.size())];
                return std::make_unique<Counter>(neurons, kernel, threads);
            },
            [&](const Counter& counter, const Oracle& oracle) { compare(counter, oracle, neurons); });
        return 0;
    }
    std::size_t group = 1 + choices.below(18);
    while (neurons / group << group > 1 << 18) --group;  // all counts are compared
    group = std::min(group, neurons);
    call(
        choices, neurons,
        [&] {
            const std::string& kernel = kernels[choices.below(kernels.size())];
            return std::make_unique<GroupCounter>(neurons, group, kernel, threads);
        },
        [&](const GroupCounter& counter, const Oracle& oracle) {
            compare(counter, oracle, neurons, group);
        });
    return 0;
}
