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
        : RowCounter(neurons, kernel), units_{neurons, std::min(group, neurons), 0},
          in_cell_(std::max<std::size_t>(1, 8 / units_.width)),
          cells_{neurons, std::min(units_.width * in_cell_, neurons), kGap},
          size_(cells_.start(cells_.parts() * copies_of(cells_))),
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
            for (std::size_t i = 0; i < size_; ++i) counts_[i] += other.counts_[i];
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
                for (std::size_t unit = 0; unit < units_.parts(); ++unit) {
                    const std::uint64_t* const table = tables + units_.start(unit);
                    std::uint32_t* const counts = counts_.get() + cells_.start(unit);
                    for (std::size_t state = 0; state < units_.states(unit); ++state) {
                        if (table[state] == 0) continue;
                        counts[state] += static_cast<std::uint32_t>(table[state]);
                    }
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
            return size_ * sizeof counts_[0] + large * sizeof large_[0];
        });
    }

  private:
    static constexpr std::uint64_t kMostPending = std::numeric_limits<std::uint32_t>::max();

    Block<std::uint32_t> allocate_cells() const {
        // Of more not even the size can be told.
        const std::size_t most = std::numeric_limits<std::size_t>::max() >> (cells_.width + 4);
        if (cells_.parts() > most) throw std::bad_alloc();
        return allocate<std::uint32_t>(size_);
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
        const std::size_t row_bytes = words_of(neurons_) * sizeof(std::uint64_t);
        const std::size_t bytes = std::max(kChunkBytes, row_bytes + 8);
        const std::size_t room = std::min((bytes - 8) / row_bytes, kMostPositions);
        const std::uint64_t most = std::min<std::uint64_t>(
            std::max<std::size_t>(1, bytes_at_once() / bytes), source.rows() / room + 1);
        Vector<Memory> chunks(static_cast<std::size_t>(most));
        Vector<OpenRows> blocks(chunks.size());
        for (Memory& chunk : chunks) chunk = take_memory(bytes);
        const std::uint64_t sum = expect(source.rows());
        for (bool more = true; more;) {
            std::size_t filled = 0;
            while (more && filled < blocks.size()) {
                Room here{static_cast<std::uint64_t*>(chunks[filled].get()), nullptr, room};
                const Rows rows = source.next(here);
                more = rows.size != 0;
                const auto* const start = reinterpret_cast<const std::uint8_t*>(rows.words);
                if (more) blocks[filled++] = {start, row_bytes, rows.size};
            }
            count(blocks.data(), filled);
        }
        states_ = sum;
    }

    // Of rows, so that they stay near while they are read once for each few cells; or, where their
    // counts are too many for that, the more rows the more of these are near from row to row.
    std::size_t bytes_at_once() const noexcept {
        return cells_.width <= 10 ? std::size_t{128} << 10 : std::size_t{4} << 20;
    }

    void count(OpenRows rows) noexcept {
        const std::size_t most = std::max<std::size_t>(64, bytes_at_once() / rows.bytes);
        while (rows.size != 0) {
            const OpenRows some{rows.rows, rows.bytes, std::min(rows.size, most)};
            count(&some, 1);
            rows.rows += some.size * rows.bytes;
            rows.size -= some.size;
        }
    }

    void count(const OpenRows* blocks, std::size_t n_blocks) noexcept {
        std::uint64_t size = 0;
        for (std::size_t i = 0; i < n_blocks; ++i) size += blocks[i].size;
        if (!fits(size)) settle();
        count_rows(cells_, blocks, n_blocks, counts_.get());
        pending_ += size;
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
        for (std::size_t i = 0; i < size_; ++i) {
            if (counts_[i] != 0) counts_[i] = 0;
        }
        pending_ = 0;
    }

    // Adds the cells' counts to those of their units.
    void fold_into(std::uint64_t* tables) const noexcept {
        for (std::size_t copy = 0; copy < copies_of(cells_); ++copy) {
            const std::uint32_t* const counts = counts_.get() + cells_.start(copy * cells_.parts());
            for (std::size_t cell = 0; cell < cells_.parts(); ++cell) {
                fold(cell, counts + cells_.start(cell), tables);
            }
        }
    }

    void fold(std::size_t cell, const std::uint32_t* counts, std::uint64_t* tables) const noexcept {
        const std::size_t width = units_.width, mask = (std::size_t{1} << width) - 1;
        const std::size_t first = cell * in_cell_;
        const std::size_t units = std::min(in_cell_, units_.parts() - first);
        for (std::size_t state = 0; state < cells_.states(cell); ++state) {
            if (counts[state] == 0) continue;
            for (std::size_t unit = 0; unit < units; ++unit) {
                tables[units_.start(first + unit) + (state >> unit * width & mask)] += counts[state];
            }
        }
    }

    Division units_;
    std::size_t in_cell_;  // units
    Division cells_;
    std::size_t size_;  // of counts_
    Block<std::uint32_t> counts_;
    std::uint64_t pending_ = 0;   // states in counts_: no count there is more
    Block<std::uint64_t> large_;  // null until it is needed
};

}  // namespace tensorstate
