// What every counter is fed with: activations or packed rows, from several threads at once.
#pragma once

#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "fork_gate.hpp"
#include "kernels.hpp"
#include "packed_rows.hpp"

namespace tensorstate {

class RowCounter {
  protected:
    template <class Use>
    auto locked(Use use) const {
        const InsideGate inside;
        const std::lock_guard<std::mutex> lock(mutex_);
        return use();
    }

  public:
    // `threads`: at most so many work on a call.
    RowCounter(std::size_t neurons, const std::string& kernel, std::size_t threads)
        : neurons_(neurons), kernel_(find_kernel(kernel)), threads_(threads) {
        if (kernel_ == nullptr) throw std::invalid_argument("this machine has no such kernel");
    }
    virtual ~RowCounter() = default;
    RowCounter(const RowCounter&) = delete;
    RowCounter& operator=(const RowCounter&) = delete;

    void add_activations(const char* data, const std::vector<Axis>& positions, Axis channels,
                         std::size_t item_bytes, bool folded, Firing firing) {
        Activations source(*kernel_, data, positions, channels, item_bytes, folded, firing);
        locked([&] { add(source); });
    }
    virtual void add_packed(const std::uint8_t* rows, const std::uint64_t* counts,
                            std::size_t size) = 0;
    virtual void reset() = 0;
    virtual std::size_t nbytes() const = 0;
    std::uint64_t states() const { return locked([&] { return states_; }); }

  protected:
    // All of a source, or nothing and an exception.
    virtual void add(Source& source) = 0;

    const std::size_t neurons_;
    const Kernel* const kernel_;
    const std::size_t threads_;
    mutable std::mutex mutex_;
    std::uint64_t states_ = 0;
};

}  // namespace tensorstate
