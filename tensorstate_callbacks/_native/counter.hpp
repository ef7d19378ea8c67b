// The counter: states in from any source, all or nothing; summaries out. Safe between threads.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "narrow.hpp"
#include "packed_rows.hpp"
#include "summaries.hpp"
#include "wide.hpp"

namespace tensorstate {

class Counter {
    template <class Read>
    auto locked(Read read) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return read();
    }

  public:
    Counter(std::size_t neurons, const std::string& kernel)
        : neurons_(neurons), kernel_(find_kernel(kernel)) {
        if (kernel_ == nullptr) throw std::invalid_argument("this machine has no such kernel");
        engine_ = make_engine();
    }

    void add_activations(const char* data, const std::vector<Axis>& positions, Axis channels,
                         std::size_t item_bytes, bool folded, Firing firing) {
        Activations source(*kernel_, data, positions, channels, item_bytes, folded, firing);
        const std::lock_guard<std::mutex> lock(mutex_);
        add(source);
    }

    void add_packed(const std::uint8_t* rows, const std::uint64_t* counts, std::size_t size) {
        PackedRows source(*kernel_, rows, counts, size, neurons_);
        const std::lock_guard<std::mutex> lock(mutex_);
        add(source);
    }

    void merge(Counter& other) {
        if (&other == this) {
            const std::lock_guard<std::mutex> lock(mutex_);
            Copied source(*engine_, states_, words_of(neurons_));
            add(source);
            return;
        }
        const std::scoped_lock lock(mutex_, other.mutex_);
        Distinct source(*other.engine_, other.states_);
        add(source);
    }

    void reset() {
        std::unique_ptr<Engine> empty = make_engine();
        const std::lock_guard<std::mutex> lock(mutex_);
        engine_.swap(empty);
        states_ = 0;
    }

    std::uint64_t states() const { return locked([&] { return states_; }); }
    std::size_t distinct() const { return locked([&] { return engine_->distinct(); }); }
    std::size_t nbytes() const { return locked([&] { return engine_->nbytes(); }); }
    Snapshot snapshot() const {
        return locked([&] { return sorted_snapshot(*engine_, neurons_); });
    }
    Spectrum spectrum() const { return locked([&] { return spectrum_of(*engine_); }); }
    Words fired() const { return locked([&] { return fired_of(*engine_, neurons_); }); }

  private:
    // The states of another counter, which stays locked while they are read.
    class Distinct final : public Source {
      public:
        Distinct(const Engine& engine, std::uint64_t states) : engine_(engine), states_(states) {}
        std::uint64_t states() const override { return states_; }
        std::uint64_t rows() const override { return engine_.distinct(); }
        bool counted() const override { return true; }
        void rewind() override { cursor_ = 0; }
        Rows next(const Room& room) override {
            const std::size_t size = engine_.read(cursor_, room);
            return Rows{room.words, room.counts, size};
        }

      private:
        const Engine& engine_;
        std::uint64_t states_;
        std::size_t cursor_ = 0;
    };

    // The same, copied, for a counter that is merged into itself.
    class Copied final : public Source {
      public:
        Copied(const Engine& engine, std::uint64_t states, std::size_t words)
            : words_(words), size_(engine.distinct()),
              rows_(allocate<std::uint64_t>(size_ * words)),
              counts_(allocate<std::uint64_t>(size_)), states_(states) {
            std::size_t cursor = 0;
            engine.read(cursor, Room{rows_.get(), counts_.get(), size_});
        }
        std::uint64_t states() const override { return states_; }
        std::uint64_t rows() const override { return size_; }
        bool counted() const override { return true; }
        void rewind() override { done_ = 0; }
        Rows next(const Room& room) override {
            const std::size_t size = std::min(room.size, size_ - done_), first = done_;
            done_ += size;
            return Rows{rows_.get() + first * words_, counts_.get() + first, size};
        }

      private:
        std::size_t words_, size_, done_ = 0;
        Block<std::uint64_t> rows_, counts_;
        std::uint64_t states_;
    };

    std::unique_ptr<Engine> make_engine() const {
        if (neurons_ <= DirectCounts::kMostNeurons) {
            return std::make_unique<NarrowEngine>(neurons_, *kernel_);
        }
        if (neurons_ <= 64) return std::make_unique<Table<1>>(kernel_->avx2);
        if (neurons_ <= 128) return std::make_unique<Table<2>>(false);
        return std::make_unique<WideEngine>(neurons_);
    }

    // Blocks are small enough for the cache. Where memory runs out in one of them, or what it would
    // add is refused, the source runs again and what the blocks before it added is taken back.
    void add(Source& source) {
        const std::uint64_t states = exact_sum(states_, source.states());
        const std::size_t words = words_of(neurons_);
        const std::size_t room = std::clamp<std::size_t>(kBlockWords / words, 1, kMostPositions);
        const Memory memory = take_memory(room * words * sizeof(std::uint64_t));
        auto* const rows = static_cast<std::uint64_t*>(memory.get());
        const Block<std::uint64_t> counts =
            source.counted() ? allocate<std::uint64_t>(room) : nullptr;
        if (!engine_->expect(source.rows())) throw std::bad_alloc();
        const Room place{rows, counts.get(), room, engine_->takes_packed()};
        std::size_t blocks = 0;
        try {
            for (Rows block = source.next(place); block.size != 0; block = source.next(place)) {
                const std::size_t size = block.size;
                block.size = engine_->add(block);
                if (block.size != size) {
                    engine_->remove(block);
                    throw std::bad_alloc();
                }
                ++blocks;
            }
        } catch (...) {
            for (source.rewind(); blocks != 0; --blocks) engine_->remove(source.next(place));
            engine_->purge();
            throw;
        }
        states_ = states;
    }

    static constexpr std::size_t kBlockWords = 32768;

    const std::size_t neurons_;
    const Kernel* const kernel_;
    mutable std::mutex mutex_;
    std::unique_ptr<Engine> engine_;
    std::uint64_t states_ = 0;
};

}  // namespace tensorstate
