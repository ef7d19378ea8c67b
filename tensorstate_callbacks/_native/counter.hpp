// The counter of distinct states: all or nothing of each call, and summaries of what was counted.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "added_rows.hpp"
#include "narrow.hpp"
#include "row_counter.hpp"
#include "summaries.hpp"
#include "wide.hpp"

namespace tensorstate {

class Counter final : public RowCounter {
  public:
    Counter(std::size_t neurons, const std::string& kernel)
        : RowCounter(neurons, kernel), engine_(make_engine()) {}

    void add_packed(const std::uint8_t* rows, const std::uint64_t* counts,
                    std::size_t size) override {
        PackedRows source(*kernel_, rows, counts, size, neurons_);
        locked([&] { add(source); });
    }

    void merge(Counter& other) {
        if (&other == this) {
            return locked([&] {
                Copied source(*engine_, words_of(neurons_));
                add(source);
            });
        }
        const InsideGate inside;
        const std::scoped_lock lock(mutex_, other.mutex_);
        Distinct source(*other.engine_);
        add(source);
    }

    void reset() override {
        std::unique_ptr<Engine> empty = make_engine();
        locked([&] {
            engine_.swap(empty);
            states_ = 0;
        });
    }

    std::size_t distinct() const { return locked([&] { return engine_->distinct(); }); }
    std::size_t nbytes() const override { return locked([&] { return engine_->nbytes(); }); }
    Snapshot snapshot() const {
        return locked([&] { return sorted_snapshot(*engine_, neurons_); });
    }
    Spectrum spectrum() const { return locked([&] { return spectrum_of(*engine_); }); }
    Words fired() const { return locked([&] { return fired_of(*engine_, neurons_); }); }

  private:
    // The states of another counter, which stays locked while they are read.
    class Distinct final : public Source {
      public:
        explicit Distinct(const Engine& engine) : engine_(engine) {}
        std::uint64_t rows() const override { return engine_.distinct(); }
        bool counted() const override { return true; }
        Rows next(const Room& room) override {
            const std::size_t size = engine_.read(cursor_, room);
            return Rows{room.words, room.counts, size};
        }

      private:
        const Engine& engine_;
        std::size_t cursor_ = 0;
    };

    // The same, copied, for a counter that is merged into itself.
    class Copied final : public Source {
      public:
        Copied(const Engine& engine, std::size_t words)
            : words_(words), size_(engine.distinct()),
              rows_(allocate<std::uint64_t>(size_ * words)),
              counts_(allocate<std::uint64_t>(size_)) {
            std::size_t cursor = 0;
            engine.read(cursor, Room{rows_.get(), counts_.get(), size_});
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

    // Where memory runs out, or what would be added is refused, what was added is taken back.
    void add(Source& source) override {
        // Of counts the sum is known when they have been read.
        if (!source.counted()) exact_sum(states_, source.rows());
        if (!engine_->expect(source.rows())) throw std::bad_alloc();
        AddedRows added(neurons_, source.counted(), *engine_);
        std::uint64_t states = states_;
        try {
            for (Rows rows = added.next(source); rows.size != 0; rows = added.next(source)) {
                const std::size_t size = rows.size;
                states = sum_of(states, rows);
                rows.size = engine_->add(rows);
                added.keep(rows);
                if (rows.size != size) throw std::bad_alloc();
            }
        } catch (...) {
            added.take_back(*engine_);
            throw;
        }
        states_ = states;
    }

    static std::uint64_t sum_of(std::uint64_t states, const Rows& rows) {
        if (rows.counts == nullptr) return exact_sum(states, rows.size);
        for (std::size_t i = 0; i < rows.size; ++i) states = exact_sum(states, rows.counts[i]);
        return states;
    }

    std::unique_ptr<Engine> engine_;
};

}  // namespace tensorstate
