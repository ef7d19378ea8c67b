// The counter of groups: how often each unit of a few neighbouring neurons was in each state.
#pragma once

#include <algorithm>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "group_cells.hpp"
#include "memory.hpp"
#include "row_counter.hpp"

namespace tensorstate {

struct GroupTables {
    std::vector<std::uint64_t> counts;
    std::uint64_t states;
};

// Rows are counted in cells: a unit, or as many small ones as have 8 neurons together, which takes
// the time of one. Cells hold 32 bits; before one could be full, all counts go to arrays of 64
// bits, one for each unit. Whatever may fail is done before the first row of a call is counted.
class GroupCounter final : public RowCounter {
  public:
    // A unit has at most 22 neurons.
    GroupCounter(std::size_t neurons, std::size_t group, const std::string& kernel)
        : RowCounter(neurons, kernel), units_{neurons, std::min(group, neurons)},
          in_cell_(std::max<std::size_t>(1, 8 / units_.width)),
          cells_{neurons, std::min(units_.width * in_cell_, neurons)},
          counts_(allocate_cells()) {}

    void add_packed(const std::uint8_t* rows, const std::uint64_t* times,
                    std::size_t size) override {
        if (!padding_is_clear(rows, size, neurons_)) {
            throw std::invalid_argument("packed rows have bits set beyond their " +
                                        std::to_string(neurons_) + " neurons");
        }
        // The last rows are copied, to be read beyond their end; the others are read in place.
        const std::size_t bytes = (neurons_ + 7) / 8, behind = std::min(size, (6 + bytes) / bytes);
        const std::size_t front = size - behind;
        const Block<std::uint8_t> last = allocate<std::uint8_t>(behind * bytes + 8);
        std::copy_n(rows + front * bytes, behind * bytes, last.get());
        const OpenRows parts[] = {{rows, bytes, front}, {last.get(), bytes, behind}};
        if (times == nullptr) {
            return locked([&] {
                const std::uint64_t sum = expect(size);
                for (const OpenRows& part : parts) count(part);
                states_ = sum;
            });
        }
        // What is added up is what is counted, whatever another thread writes there meanwhile.
        const Block<std::uint64_t> copied = allocate<std::uint64_t>(size);
        std::copy_n(times, size, copied.get());
        std::uint64_t added = 0;
        for (std::size_t i = 0; i < size; ++i) added = exact_sum(added, copied[i]);
        locked([&] {
            const std::uint64_t sum = expect(added);
            count(parts[0], copied.get(), added);
            count(parts[1], copied.get() + front, added);
            if (fits(added)) pending_ += added;
            states_ = sum;
        });
    }

    void merge(GroupCounter& other) {
        const InsideGate inside;
        std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
        std::unique_lock<std::mutex> others(other.mutex_, std::defer_lock);
        if (&other == this) {
            lock.lock();
        } else {
            std::lock(lock, others);
        }
        const std::uint64_t sum = exact_sum(states_, other.states_);
        if (other.large_ == nullptr && fits(other.pending_)) {
            for (std::size_t i = 0; i < cells_.entries(); ++i) counts_[i] += other.counts_[i];
            pending_ += other.pending_;
        } else {
            need_large();
            if (other.large_ != nullptr) add_to_large(other.large_.get());
            other.fold_into(large_.get());
        }
        states_ = sum;
    }

    std::size_t n_counts() const noexcept { return units_.entries(); }

    // The counts of each unit add up to `states`; nobody else writes to them.
    void add_tables(const std::uint64_t* tables, std::uint64_t states) {
        locked([&] {
            const std::uint64_t sum = exact_sum(states_, states);
            if (cells_.width == units_.width && fits(states)) {
                for (std::size_t i = 0; i < cells_.entries(); ++i) {
                    if (tables[i] != 0) counts_[i] += static_cast<std::uint32_t>(tables[i]);
                }
                pending_ += states;
            } else {
                need_large();
                add_to_large(tables);
            }
            states_ = sum;
        });
    }

    GroupTables tables() const {
        return locked([&] {
            GroupTables found{std::vector<std::uint64_t>(units_.entries()), states_};
            if (large_ != nullptr) {
                std::copy_n(large_.get(), units_.entries(), found.counts.begin());
            }
            fold_into(found.counts.data());
            return found;
        });
    }

    void reset() override {
        Block<std::uint32_t> empty = allocate_cells();
        locked([&] {
            counts_.swap(empty);
            large_.reset();
            pending_ = states_ = 0;
        });
    }

    std::size_t nbytes() const override {
        return locked([&] {
            const std::size_t large = large_ == nullptr ? 0 : units_.entries();
            return cells_.entries() * sizeof counts_[0] + large * sizeof large_[0];
        });
    }

  private:
    static constexpr std::uint64_t kMostPending = std::numeric_limits<std::uint32_t>::max();
    static constexpr std::size_t kBlockBytes = std::size_t{128} << 10;

    Block<std::uint32_t> allocate_cells() const {
        // Of more not even the size can be told.
        const std::size_t most = std::numeric_limits<std::size_t>::max() >> (cells_.width + 4);
        if (cells_.parts() > most) throw std::bad_alloc();
        return allocate<std::uint32_t>(cells_.entries());
    }

    bool fits(std::uint64_t states) const noexcept { return states <= kMostPending - pending_; }

    void need_large() {
        if (large_ == nullptr) large_ = allocate<std::uint64_t>(units_.entries());
    }

    // How many states there will be in all; from here on nothing fails.
    std::uint64_t expect(std::uint64_t states) {
        const std::uint64_t sum = exact_sum(states_, states);
        if (!fits(states)) need_large();
        return sum;
    }

    void add(Source& source) override {
        const std::size_t words = words_of(neurons_), row_bytes = words * sizeof(std::uint64_t);
        const Memory memory = take_memory(std::max(kChunkBytes, row_bytes + 8));
        const std::uint64_t sum = expect(source.rows());
        Room room{static_cast<std::uint64_t*>(memory.get())};
        room.size = std::clamp<std::size_t>((kChunkBytes - 8) / row_bytes, 1, kMostPositions);
        for (Rows rows = source.next(room); rows.size != 0; rows = source.next(room)) {
            count({reinterpret_cast<const std::uint8_t*>(rows.words), row_bytes, rows.size});
        }
        states_ = sum;
    }

    void count(OpenRows rows) noexcept {
        const std::size_t most = std::max<std::size_t>(64, kBlockBytes / rows.bytes);
        while (rows.size != 0) {
            const std::size_t size = std::min(rows.size, most);
            if (!fits(size)) settle();
            count_rows(cells_, {rows.rows, rows.bytes, size}, counts_.get());
            pending_ += size;
            rows = {rows.rows + size * rows.bytes, rows.bytes, rows.size - size};
        }
    }

    // `added`: by the whole call.
    void count(const OpenRows& rows, const std::uint64_t* times, std::uint64_t added) noexcept {
        if (fits(added)) {
            count_rows(cells_, rows, times, counts_.get());
        } else {
            count_rows(units_, rows, times, large_.get());
        }
    }

    void add_to_large(const std::uint64_t* tables) noexcept {
        // Pages that nothing is added to may stay unused.
        for (std::size_t i = 0; i < units_.entries(); ++i) {
            if (tables[i] != 0) large_[i] += tables[i];
        }
    }

    void settle() noexcept {
        fold_into(large_.get());
        for (std::size_t i = 0; i < cells_.entries(); ++i) {
            if (counts_[i] != 0) counts_[i] = 0;
        }
        pending_ = 0;
    }

    // Adds the cells' counts to those of their units.
    void fold_into(std::uint64_t* tables) const noexcept {
        const std::size_t width = units_.width, mask = (std::size_t{1} << width) - 1;
        for (std::size_t cell = 0; cell < cells_.parts(); ++cell) {
            const std::size_t first = cell * in_cell_;
            const std::size_t units = std::min(in_cell_, units_.parts() - first);
            const std::size_t states = std::size_t{1} << cells_.width_of(cell);
            const std::uint32_t* const counts = counts_.get() + (cell << cells_.width);
            for (std::size_t state = 0; state < states; ++state) {
                if (counts[state] == 0) continue;
                for (std::size_t unit = 0; unit < units; ++unit) {
                    tables[((first + unit) << width) + (state >> unit * width & mask)] +=
                        counts[state];
                }
            }
        }
    }

    Division units_;
    std::size_t in_cell_;  // units
    Division cells_;
    Block<std::uint32_t> counts_;
    std::uint64_t pending_ = 0;      // states in counts_, which no count of them is more than
    Block<std::uint64_t> large_;     // null until it is needed
};

}  // namespace tensorstate
