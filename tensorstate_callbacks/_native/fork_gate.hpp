// Counting and forking: a fork waits until no thread is inside a counter.
//
// A child has a copy of what the threads were in the middle of, and of their locks, but none of the
// threads: a lock that one of them held would never be given back.
#pragma once

#include <atomic>
#include <thread>

namespace tensorstate {

class ForkGate {
  public:
    void enter() noexcept {
        while (true) {
            ++inside_;
            if (forks_ == 0 || this_thread_forks) return;
            --inside_;
            while (forks_ != 0) std::this_thread::yield();
        }
    }
    void leave() noexcept { --inside_; }

    void before_fork() noexcept {
        this_thread_forks = true;
        ++forks_;
        while (inside_ != 0) std::this_thread::yield();
    }
    void after_fork_in_parent() noexcept {
        this_thread_forks = false;
        --forks_;
    }
    // The threads that waited here are none of the child's.
    void after_fork_in_child() noexcept {
        this_thread_forks = false;
        forks_ = 0;
        inside_ = 0;
    }

  private:
    // It may count in other code that runs before a fork.
    inline static thread_local bool this_thread_forks = false;

    std::atomic<unsigned> inside_{0}, forks_{0};
};

inline ForkGate fork_gate;

struct InsideGate {
    InsideGate() noexcept { fork_gate.enter(); }
    ~InsideGate() { fork_gate.leave(); }
    InsideGate(const InsideGate&) = delete;
    InsideGate& operator=(const InsideGate&) = delete;
};

}  // namespace tensorstate
