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
        : neurons_(neurons), kernel_(find_kernel(kernel)), engine_(make_engine(neurons)) {
        if (kernel_ == nullptr) throw std::invalid_argument("this machine has no such kernel");
    }

    void add_activations(const char* data, const std::vector<Axis>& positions, Axis channels,
                         std::size_t item_bytes, bool folded, Firing firing) {
        Activations source(*kernel_, data, positions, channels, item_bytes, folded, firing);
        const std::lock_guard<std::mutex> lock(mutex_);
        add(source);
    }

    void add_packed(const std::uint8_t* rows, const std::uint64_t* counts, std::size_t size) {
        PackedRows source(rows, counts, size, neurons_);
        const std::lock_guard<std::mutex> lock(mutex_);
        add(source);
    }

    void merge(Counter& other) {
        if (&other == this) {
            const std::lock_guard<std::mutex> lock(mutex_);
            states_ = exact_sum(states_, states_);
            engine_->double_counts();
            return;
        }
        const std::scoped_lock lock(mutex_, other.mutex_);
        Distinct source(*other.engine_, other.states_);
        add(source);
    }

    void reset() {
        std::unique_ptr<Engine> empty = make_engine(neurons_);
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
        bool counted() const override { return true; }
        void rewind() override { cursor_ = 0; }
        std::size_t next(const Rows& room) override { return engine_.read(cursor_, room); }

      private:
        const Engine& engine_;
        std::uint64_t states_;
        std::size_t cursor_ = 0;
    };

    static std::unique_ptr<Engine> make_engine(std::size_t neurons) {
        if (neurons <= 64) return std::make_unique<NarrowEngine>(neurons);
        return std::make_unique<WideEngine>(neurons);
    }

    // Blocks are small enough for the cache. Only making room can fail, between two blocks; then
    // the source runs again, and what was added is taken back.
    void add(Source& source) {
        const std::uint64_t states = exact_sum(states_, source.states());
        const std::size_t words = words_of(neurons_);
        const std::size_t room = std::clamp<std::size_t>(kBlockWords / words, 1, kMostPositions);
        const Block<std::uint64_t> rows = allocate<std::uint64_t>(room * words);
        const Block<std::uint64_t> counts =
            source.counted() ? allocate<std::uint64_t>(room) : nullptr;
        std::size_t blocks = 0;
        try {
            while (const std::size_t size = source.next(Rows{rows.get(), counts.get(), room})) {
                engine_->reserve(size);
                engine_->add(Rows{rows.get(), counts.get(), size});
                ++blocks;
            }
        } catch (...) {
            source.rewind();
            for (; blocks != 0; --blocks) {
                const std::size_t size = source.next(Rows{rows.get(), counts.get(), room});
                engine_->remove(Rows{rows.get(), counts.get(), size});
            }
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
