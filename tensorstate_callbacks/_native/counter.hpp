// The counter of distinct states: all or nothing of each call, and summaries of what was counted.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "narrow.hpp"
#include "row_counter.hpp"
#include "shards.hpp"
#include "summaries.hpp"
#include "wide.hpp"

namespace tensorstate {

class Counter final : public RowCounter {
  public:
    Counter(std::size_t neurons, const std::string& kernel, std::size_t threads)
        : RowCounter(neurons, kernel, threads), engines_(make_engines(1)) {}

    void add_packed(const std::uint8_t* rows, const std::uint64_t* counts,
                    std::size_t size) override {
        PackedRows source(*kernel_, rows, counts, size, neurons_);
        locked([&] { add(source); });
    }

    void merge(Counter& other) {
        if (&other == this) {
            return locked([&] {
                Copied source(AllStates(engines_), words_of(neurons_));
                add(source);
            });
        }
        const InsideGate inside;
        const std::scoped_lock lock(mutex_, other.mutex_);
        const AllStates states(other.engines_);
        Distinct source(states);
        add(source);
    }

    void reset() override {
        Engines empty = make_engines(1);
        locked([&] {
            engines_.swap(empty);
            states_ = 0;
        });
    }

    std::size_t distinct() const { return locked([&] { return AllStates(engines_).distinct(); }); }
    std::size_t nbytes() const override {
        return locked([&] {
            std::size_t nbytes = 0;
            for (const auto& engine : engines_) nbytes += engine->nbytes();
            return nbytes;
        });
    }
    Snapshot snapshot() const {
        return locked([&] { return sorted_snapshot(AllStates(engines_), neurons_); });
    }
    Spectrum spectrum() const { return locked([&] { return spectrum_of(AllStates(engines_)); }); }
    Words fired() const { return locked([&] { return fired_of(AllStates(engines_), neurons_); }); }

  private:
    // The states of a counter that stays locked while they are read.
    class Distinct final : public Source {
      public:
        explicit Distinct(const States& states) : states_(states) {}
        std::uint64_t rows() const override { return states_.distinct(); }
        bool counted() const override { return true; }
        Rows next(const Room& room) override {
            const std::size_t size = states_.read(cursor_, room);
            return Rows{room.words, room.counts, size};
        }

      private:
        const States& states_;
        std::size_t cursor_ = 0;
    };

    // The same, copied, for a counter that is merged into itself.
    class Copied final : public Source {
      public:
        Copied(const States& states, std::size_t words)
            : words_(words), size_(states.distinct()),
              rows_(allocate<std::uint64_t>(size_ * words)),
              counts_(allocate<std::uint64_t>(size_)) {
            read_all(states, words_, rows_.get(), counts_.get());
        }
        std::uint64_t rows() const override { return size_; }
        bool counted() const override { return true; }
        Rows next(const Room& room) override {
            const std::size_t size = std::min(room.size, size_ - done_);
            std::copy_n(rows_.get() + done_ * words_, size * words_, room.words);
            std::copy_n(counts_.get() + done_, size, room.counts);
            done_ += size;
            return Rows{room.words, room.counts, size};
        }

      private:
        std::size_t words_, size_, done_ = 0;
        Block<std::uint64_t> rows_, counts_;
    };

    std::unique_ptr<Engine> make_engine() const {
        if (neurons_ <= DirectCounts::kMostNeurons) {
            return std::make_unique<NarrowEngine>(neurons_, *kernel_);
        }
        if (neurons_ <= 64) return std::make_unique<Table<1>>(kernel_->avx2);
        if (neurons_ <= 128) return std::make_unique<Table<2>>(false);
        return std::make_unique<WideEngine>(neurons_);
    }

    Engines make_engines(std::size_t count) const {
        Engines engines(count);
        for (auto& engine : engines) engine = make_engine();
        return engines;
    }

    // Where memory runs out, or what would be added is refused, what was added is taken back.
    void add(Source& source) override {
        if (source.rows() == 0) return;
        // Of counts the sum is known when they have been read.
        if (!source.counted()) exact_sum(states_, source.rows());
        const std::size_t lanes = lanes_for(source.rows(), neurons_, threads_);
        // Both the old table and the new ones are there for a while: not where that is much.
        if (lanes > 1 && engines_.size() == 1 && neurons_ > DirectCounts::kMostNeurons &&
            engines_[0]->distinct() <= source.rows() / 4) {
            divide(lanes, source.rows());
        }
        engines_.size() == 1 ? add_to_one(source) : add_to_shards(source, engines_, lanes);
    }

    void add_to_one(Source& source) {
        Engine& engine = *engines_[0];
        if (!engine.expect(source.rows())) throw std::bad_alloc();
        AddedRows added(neurons_, source.counted(), engine);
        std::uint64_t states = states_;
        try {
            add_rows(source, engine, added, states);
        } catch (...) {
            added.take_back(engine);
            throw;
        }
        states_ = states;
    }

    static void add_rows(Source& source, Engine& engine, AddedRows& added, std::uint64_t& states) {
        for (Rows rows = added.next(source); rows.size != 0; rows = added.next(source)) {
            const std::size_t size = rows.size;
            states = sum_of(states, rows);
            rows.size = engine.add(rows);
            added.keep(rows);
            if (rows.size != size) throw std::bad_alloc();
        }
    }

    static std::uint64_t sum_of(std::uint64_t states, const Rows& rows) {
        if (rows.counts == nullptr) return exact_sum(states, rows.size);
        for (std::size_t i = 0; i < rows.size; ++i) states = exact_sum(states, rows.counts[i]);
        return states;
    }

    // Some tables in place of one: twice as many as threads, since some states are seen more often,
    // but fewer where they would be small, as these are filled less.
    void divide(std::size_t lanes, std::uint64_t rows) {
        std::size_t count = 2;
        while (count < 2 * lanes && count < kMostShards && rows / count >= 4096) count *= 2;
        Engines engines = make_engines(count);
        if (engines_[0]->distinct() != 0) {
            const std::uint64_t states = states_;
            const AllStates before(engines_);
            Distinct source(before);
            states_ = 0;
            try {
                add_to_shards(source, engines, 1);
            } catch (...) {
                states_ = states;
                throw;
            }
        }
        engines_.swap(engines);
    }

    // Some rows at a time: read, each thread a part of them, then added, each thread to a table.
    void add_to_shards(Source& source, Engines& engines, std::size_t lanes) {
        const std::size_t shards = engines.size();
        const bool counted = source.counted(), divisible = source.part(0, 1) != nullptr;
        const std::size_t most = OrderedRows::most_rows(neurons_, counted);
        const Parts parts(source, lanes, most);
        const std::size_t room = divisible ? parts.size() : most;
        const auto at_once = static_cast<std::size_t>(
            std::min<std::uint64_t>(source.rows() / room + 1, kMostBlocks));
        Vector<OrderedRows> blocks;
        blocks.reserve(at_once);
        for (std::size_t i = 0; i < at_once; ++i) blocks.emplace_back(neurons_, counted, room);
        Vector<AddedRows> added;
        added.reserve(shards);
        for (const auto& engine : engines) added.emplace_back(neurons_, counted, *engine);
        std::uint64_t states = states_;
        try {
            for (std::size_t done = 0, n_blocks = 0;; done += n_blocks) {
                n_blocks = divisible ? read_parts(source, parts, done, blocks, shards, lanes)
                                     : read_some(source, blocks, shards);
                if (n_blocks == 0) break;
                for (std::size_t i = 0; i < n_blocks; ++i) states = blocks[i].sum(states);
                Numbers numbers(shards);
                team.run(lanes, [&](std::size_t) {
                    for (std::size_t shard; numbers.take(shard);) {
                        std::uint64_t unused = 0;
                        RowsOfShard rows(blocks, n_blocks, shard, counted);
                        add_rows(rows, *engines[shard], added[shard], unused);
                    }
                });
            }
        } catch (...) {
            for (std::size_t shard = 0; shard < shards; ++shard) {
                added[shard].take_back(*engines[shard]);
            }
            throw;
        }
        states_ = states;
    }

    // The parts from `done` on, each by one thread. How many blocks were filled.
    static std::size_t read_parts(const Source& source, const Parts& parts, std::size_t done,
                                  Vector<OrderedRows>& blocks, std::size_t shards,
                                  std::size_t lanes) {
        const std::size_t n_blocks = std::min(blocks.size(), parts.count() - done);
        Numbers numbers(n_blocks);
        team.run(lanes, [&](std::size_t) {
            for (std::size_t i; numbers.take(i);) {
                const auto part = source.part(parts.begin(done + i), parts.end(done + i));
                blocks[i].read(*part, shards);
            }
        });
        return n_blocks;
    }

    static std::size_t read_some(Source& source, Vector<OrderedRows>& blocks, std::size_t shards) {
        std::size_t n_blocks = 0;
        while (n_blocks < blocks.size() && blocks[n_blocks].read(source, shards) != 0) ++n_blocks;
        return n_blocks;
    }

    static constexpr std::size_t kMostBlocks = 64, kMostShards = 32;

    Engines engines_;  // one, or several that states are divided among
};

}  // namespace tensorstate
