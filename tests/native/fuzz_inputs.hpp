// Calls of a counter made of hostile bytes, and what a plain std::map counts in them.
//
// Memory is allocated to the byte, so that AddressSanitizer sees each read beyond a view.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "number_types.hpp"
#include "row_counter.hpp"

namespace tensorstate {

// The input's bytes one after the other, then zeros.
class Choices {
  public:
    Choices(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}
    bool empty() const { return left_ == 0; }
    std::uint8_t byte() { return left_ == 0 ? 0 : (--left_, *data_++); }
    std::size_t below(std::size_t end) { return (byte() * 256u + byte()) % end; }
    template <class T>
    T any() {
        T value;
        std::uint8_t bytes[sizeof(T)];
        for (std::uint8_t& each : bytes) each = byte();
        std::memcpy(&value, bytes, sizeof value);
        return value;
    }

  private:
    const std::uint8_t* data_;
    std::size_t left_;
};

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "the counter is wrong: %s\n", what);
    std::abort();
}

using Oracle = std::map<std::vector<std::uint8_t>, std::uint64_t>;

// A view into memory of exactly the size that it spans.
struct View {
    std::vector<Axis> axes;
    std::ptrdiff_t before = 0, after = 0;  // bytes in front of the first element and behind it
};

inline View some_view(Choices& choices, std::size_t neurons, std::size_t item) {
    View view;
    const std::size_t others = choices.below(5), channel_axis = choices.below(others + 1);
    std::size_t positions = 1;
    for (std::size_t i = 0; i < others; ++i) {
        constexpr std::size_t sizes[] = {0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 64, 65, 400, 1100};
        std::size_t size = sizes[choices.below(std::size(sizes))];
        if (positions * size * neurons > 40000) size = 1 + choices.below(2);
        view.axes.push_back(Axis{size, 0});
        positions *= std::max<std::size_t>(size, 1);
    }
    view.axes.insert(view.axes.begin() + static_cast<std::ptrdiff_t>(channel_axis),
                     Axis{neurons, 0});
    // Dense in some order of the axes, then bent: backwards, spaced, standing still, askew.
    std::vector<std::size_t> order(view.axes.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (std::size_t i = order.size(); i-- > 1;) std::swap(order[i], order[choices.below(i + 1)]);
    std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(item);
    for (const std::size_t i : order) {
        Axis& axis = view.axes[i];
        switch (choices.below(12)) {
            case 0: axis.stride = -stride; break;
            case 1: axis.stride = 0; break;
            case 2: axis.stride = 3 * stride; break;
            case 3: axis.stride = static_cast<std::int8_t>(choices.byte()); break;
            case 4: axis.stride = axis.size < 2 ? choices.any<std::int64_t>() : stride; break;
            default: axis.stride = stride;
        }
        if (axis.size > 1) {
            const std::ptrdiff_t reach = axis.stride * static_cast<std::ptrdiff_t>(axis.size - 1);
            (reach < 0 ? view.before : view.after) += std::abs(reach);
            stride = std::max(stride, std::abs(axis.stride) *
                                          static_cast<std::ptrdiff_t>(axis.size));
        }
    }
    // The neurons come last, as the counter takes them.
    std::rotate(view.axes.begin() + static_cast<std::ptrdiff_t>(channel_axis),
                view.axes.begin() + static_cast<std::ptrdiff_t>(channel_axis) + 1,
                view.axes.end());
    return view;
}

inline void update(Choices& choices, RowCounter& counter, Oracle& oracle, std::size_t neurons) {
    const Type type = kTypes[choices.below(std::size(kTypes))];
    const View view = some_view(choices, neurons, type.bytes);
    if (view.before + view.after > (1 << 22)) return;
    const std::size_t size = static_cast<std::size_t>(view.before + view.after) + type.bytes;
    const std::unique_ptr<std::uint8_t[]> memory(new std::uint8_t[size]);
    // Few different elements, so that states recur; some of them are the input's own bytes.
    std::uint8_t pool[64];
    for (std::uint8_t& each : pool) each = choices.byte();
    const std::uint64_t step = choices.byte() | 1u;
    for (std::size_t i = 0; i < size; ++i) memory[i] = pool[(i * step + i / 64) % 64];

    long double threshold = choices.any<double>();
    if (choices.byte() % 2 == 0) {  // a number of the type's own: equal must not fire
        std::uint64_t bits = 0;
        std::memcpy(&bits, memory.get(), type.bytes);
        threshold = value_of(type, bits);
    }
    if (!std::isfinite(threshold)) threshold = 0;
    const Range range = range_above(type, threshold);
    if (range.alike) return;

    std::vector<Axis> positions(view.axes.begin(), view.axes.end() - 1);
    const Axis channels = view.axes.back();
    const char* first = reinterpret_cast<const char*>(memory.get()) + view.before;
    counter.add_activations(first, positions, channels, type.bytes, range.folded, range.firing);

    std::vector<std::size_t> index(positions.size());
    for (const Axis& axis : positions) {
        if (axis.size == 0) return;
    }
    for (bool more = true; more;) {
        std::ptrdiff_t offset = 0;
        for (std::size_t i = 0; i < index.size(); ++i) {
            if (index[i] > 0) offset += static_cast<std::ptrdiff_t>(index[i]) * positions[i].stride;
        }
        std::vector<std::uint8_t> row((neurons + 7) / 8);
        for (std::size_t c = 0; c < neurons; ++c) {
            const std::ptrdiff_t along =
                c == 0 ? 0 : static_cast<std::ptrdiff_t>(c) * channels.stride;
            std::uint64_t bits = 0;
            std::memcpy(&bits, first + offset + along, type.bytes);
            if (value_of(type, bits) > threshold) {
                row[c / 8] = static_cast<std::uint8_t>(row[c / 8] | 1u << (c % 8));
            }
        }
        ++oracle[row];
        more = false;
        for (std::size_t i = index.size(); i-- > 0 && !more;) {
            more = ++index[i] < positions[i].size;
            if (!more) index[i] = 0;
        }
    }
}

inline void update_packed(Choices& choices, RowCounter& counter, Oracle& oracle,
                          std::size_t neurons) {
    const std::size_t bytes = (neurons + 7) / 8;
    const std::size_t blocks = choices.byte() % 4 == 0 ? 1 + choices.below(12) : 1;
    const std::size_t size = choices.below(90) * blocks, before = choices.below(9);
    const bool counted = choices.byte() % 2 == 0;
    const std::unique_ptr<std::uint8_t[]> memory(new std::uint8_t[before + size * bytes]);
    std::uint8_t* const rows = memory.get() + before;  // at any address
    const std::unique_ptr<std::uint64_t[]> counts(new std::uint64_t[size]);
    // Some counts are more than a small one holds.
    const unsigned large = choices.byte() % 33;
    const std::uint8_t seed = choices.byte(), few = static_cast<std::uint8_t>(choices.byte() | 1);
    // Chosen before the rows take what is left: then there are zeros only.
    const bool wrong = choices.byte() % 8 == 1 && size != 0 && neurons % 8 != 0;
    const std::size_t wrong_row = choices.below(std::max<std::size_t>(size, 1));
    for (std::size_t i = 0; i < size; ++i) {
        for (std::size_t byte = 0; byte < bytes; ++byte) {
            rows[i * bytes + byte] =
                static_cast<std::uint8_t>((i % few) * 37 + byte * seed + (choices.byte() & 1));
        }
        if (neurons % 8 != 0) rows[i * bytes + bytes - 1] &= (1u << (neurons % 8)) - 1;
        const std::uint64_t count = 1 + choices.byte();
        counts[i] = count << (choices.byte() % 2 == 0 ? 0 : large);
    }
    if (wrong) rows[(wrong_row + 1) * bytes - 1] |= 128;
    counter.add_packed(rows, counted ? counts.get() : nullptr, size);
    require(!wrong, "a bit beyond the neurons is refused");
    for (std::size_t i = 0; i < size; ++i) {
        std::vector<std::uint8_t> row(rows + i * bytes, rows + (i + 1) * bytes);
        oracle[row] += counted ? counts[i] : 1;
    }
}

}  // namespace tensorstate
