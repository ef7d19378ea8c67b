// The counter of groups: how often each unit of a few neighbouring neurons was in each state.
#pragma once

#include <algorithm>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "group_cells.hpp"
#include "helper_cells.hpp"
#include "memory.hpp"
#include "parts.hpp"
#include "row_counter.hpp"
#include "team.hpp"

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
    GroupCounter(std::size_t neurons, std::size_t group, const std::string& kernel,
                 std::size_t threads)
        : RowCounter(neurons, kernel, threads), units_{neurons, std::min(group, neurons), 0},
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
                if (!share_rows(parts[0])) count(parts[0]);
                count(parts[1]);
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
        const std::size_t lanes = lanes_of(source.rows());
        if (lanes > 1 && share_source(source, lanes)) return;
        Chunks chunks(*this, source.rows());
        const std::uint64_t sum = expect(source.rows());
        while (const std::uint64_t read = chunks.read(source)) {
            if (!fits(read)) settle();
            chunks.count(cells_, counts_.get());
            pending_ += read;
        }
        states_ = sum;
    }

    // Memory for some rows of a source.
    class Chunks {
      public:
        Chunks(const GroupCounter& counter, std::uint64_t rows)
            : row_bytes_(words_of(counter.neurons_) * sizeof(std::uint64_t)) {
            const std::size_t bytes = std::max(kChunkBytes, row_bytes_ + 8);
            room_ = std::min((bytes - 8) / row_bytes_, kMostPositions);
            const std::uint64_t most = std::min<std::uint64_t>(
                std::max<std::size_t>(1, counter.bytes_at_once() / bytes), rows / room_ + 1);
            chunks_ = Vector<Memory>(static_cast<std::size_t>(most));
            blocks_ = Vector<OpenRows>(chunks_.size());
            for (Memory& chunk : chunks_) chunk = take_memory(bytes);
        }

        // How many rows, 0: there are no more.
        std::uint64_t read(Source& source) {
            filled_ = 0;
            std::uint64_t read = 0;
            while (filled_ < blocks_.size()) {
                Room here{static_cast<std::uint64_t*>(chunks_[filled_].get()), nullptr, room_};
                const Rows rows = source.next(here);
                if (rows.size == 0) break;
                const auto* const start = reinterpret_cast<const std::uint8_t*>(rows.words);
                blocks_[filled_++] = {start, row_bytes_, rows.size};
                read += rows.size;
            }
            return read;
        }

        void count(const Division& cells, std::uint32_t* counts) const noexcept {
            count_rows(cells, blocks_.data(), filled_, counts);
        }

      private:
        std::size_t row_bytes_, room_ = 0, filled_ = 0;
        Vector<Memory> chunks_;
        Vector<OpenRows> blocks_;
    };

    // How many threads are to count so many rows: one where adding their cells up takes as long.
    std::size_t lanes_of(std::uint64_t rows) const noexcept {
        const bool pays = rows < kMostPending && rows * cells_.parts() >= 8 * size_;
        return pays ? lanes_for(rows, neurons_, threads_) : 1;
    }

    // Whatever may fail is done before a row is counted. False: the caller's thread is to count.
    bool share_source(const Source& source, std::size_t lanes) {
        const Parts parts(source, lanes, std::numeric_limits<std::uint32_t>::max());
        Vector<std::unique_ptr<Source>> sources(parts.count());
        for (std::size_t i = 0; i < sources.size(); ++i) {
            sources[i] = source.part(parts.begin(i), parts.end(i));
            if (sources[i] == nullptr) return false;
        }
        Vector<Chunks> chunks;
        chunks.reserve(lanes);
        for (std::size_t lane = 0; lane < lanes; ++lane) chunks.emplace_back(*this, parts.size());
        HelperCells helpers(lanes - 1, size_);
        if (!helpers.there()) return false;
        const std::uint64_t sum = expect(source.rows());
        share(source.rows(), parts.count(), lanes, helpers,
              [&](std::size_t part, std::size_t lane, std::uint32_t* counts) {
                  while (chunks[lane].read(*sources[part]) != 0) chunks[lane].count(cells_, counts);
              });
        states_ = sum;
        return true;
    }

    bool share_rows(const OpenRows& rows) {
        const std::size_t lanes = lanes_of(rows.size);
        if (lanes == 1) return false;
        HelperCells helpers(lanes - 1, size_);
        if (!helpers.there()) return false;
        const std::size_t parts = 4 * lanes, size = (rows.size + parts - 1) / parts;
        share(rows.size, parts, lanes, helpers,
              [&](std::size_t part, std::size_t, std::uint32_t* counts) {
                  const std::size_t begin = std::min(rows.size, part * size);
                  const std::size_t end = std::min(rows.size, begin + size);
                  in_pieces({rows.rows + begin * rows.bytes, rows.bytes, end - begin},
                            [&](const OpenRows& some) { count_rows(cells_, &some, 1, counts); });
              });
        return true;
    }

    // Counts `rows` rows, in parts: count_part(part, lane, counts).
    template <class CountPart>
    void share(std::uint64_t rows, std::size_t parts, std::size_t lanes, HelperCells& helpers,
               const CountPart& count_part) {
        if (!fits(rows)) settle();
        Numbers numbers(parts);
        team.run(lanes, [&](std::size_t lane) {
            std::uint32_t* const counts = lane == 0 ? counts_.get() : helpers.of(lane - 1);
            for (std::size_t part; numbers.take(part);) count_part(part, lane, counts);
        });
        helpers.move_to(counts_.get());
        pending_ += rows;
    }

    // Of rows, so that they stay near while they are read once for each few cells; or, where their
    // counts are too many for that, the more rows the more of these are near from row to row.
    std::size_t bytes_at_once() const noexcept {
        return cells_.width <= 10 ? std::size_t{128} << 10 : std::size_t{4} << 20;
    }

    template <class Count>
    void in_pieces(OpenRows rows, const Count& count) const noexcept {
        const std::size_t most = std::max<std::size_t>(64, bytes_at_once() / rows.bytes);
        while (rows.size != 0) {
            const OpenRows some{rows.rows, rows.bytes, std::min(rows.size, most)};
            count(some);
            rows.rows += some.size * rows.bytes;
            rows.size -= some.size;
        }
    }

    void count(const OpenRows& rows) noexcept {
        in_pieces(rows, [&](const OpenRows& some) {
            if (!fits(some.size)) settle();
            count_rows(cells_, &some, 1, counts_.get());
            pending_ += some.size;
        });
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
