// Threads that share the work of one call with the thread that makes it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <csignal>
#endif

namespace tensorstate {

// How an OpenMP runtime is told to run a function on so many threads.
using ParallelRegion = void (*)(void (*function)(void*), void* data, unsigned threads,
                                unsigned flags);

// The helpers are those of an OpenMP runtime where one was given: a framework's own, which go on
// spinning for a while behind its operations, where others would have to wait for a processor. Else
// threads of ours, which sleep in between.
class Team {
  public:
    // Null: threads of our own.
    void use(ParallelRegion region) noexcept { region_ = region; }

    // Whether helpers are there within microseconds; else it takes them some tens to wake up.
    bool is_ready() const noexcept { return region_ != nullptr; }

    // Calls job(lane) once for each lane, on at most so many threads; the first exception of any
    // is thrown when all have ended. Where no helper comes in time, the caller does it all.
    template <class Job>
    void run(std::size_t lanes, const Job& job) {
        Work work(lanes, &job, [](const void* made, std::size_t lane) {
            (*static_cast<const Job*>(made))(lane);
        });
        if (lanes > 1) {
            const ParallelRegion region = region_;
            if (region != nullptr) {
                region([](void* data) { static_cast<Work*>(data)->take_lanes(); }, &work,
                       static_cast<unsigned>(lanes), 0);
            } else {
                run_with_ours(work, lanes - 1);
            }
        }
        work.take_lanes();
        if (work.error != nullptr) std::rethrow_exception(work.error);
    }

    // The parent's threads are not there, whosever they were.
    void after_fork_in_child() {
        region_ = nullptr;
        ours_ = new Ours;
    }

  private:
    struct Work {
        Work(std::size_t lanes, const void* job, void (*call)(const void*, std::size_t))
            : lanes(lanes), job(job), call(call) {}

        void take_lanes() noexcept {
            for (std::size_t lane = next++; lane < lanes; lane = next++) {
                try {
                    call(job, lane);
                } catch (...) {
                    if (!failed.test_and_set()) error = std::current_exception();
                }
            }
        }

        const std::size_t lanes;
        const void* const job;
        void (*const call)(const void*, std::size_t);
        std::atomic<std::size_t> next{0};
        std::atomic_flag failed = ATOMIC_FLAG_INIT;
        std::exception_ptr error;
    };

    // Never destroyed: its threads wait for work until the process ends.
    struct Ours {
        static constexpr int kSpins = 100;  // some tens of microseconds

        std::mutex mutex;
        std::condition_variable work_is_there, helpers_have_left;
        std::size_t threads = 0, places = 0, helping = 0;
        Work* work = nullptr;
        std::atomic<unsigned> calls{0};

        void help() {
            std::unique_lock<std::mutex> lock(mutex);
            while (true) {
                // Calls come in pairs, and waking up takes longer than a part of one.
                const unsigned seen = calls;
                lock.unlock();
                for (int i = 0; i < kSpins && calls == seen; ++i) std::this_thread::yield();
                lock.lock();
                work_is_there.wait(lock, [&] { return work != nullptr && places != 0; });
                --places;
                ++helping;
                Work* const found = work;
                lock.unlock();
                found->take_lanes();
                lock.lock();
                if (--helping == 0) helpers_have_left.notify_all();
            }
        }

        void start(std::size_t wanted) {
#if !defined(_WIN32)
            // Signals are for threads that know what to do with them.
            sigset_t all, before;
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
            try {
                for (; threads < wanted; ++threads) std::thread([this] { help(); }).detach();
            } catch (const std::system_error&) {
                // As many as there are.
            }
#if !defined(_WIN32)
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
        }
    };

    // Works on it, and returns when no helper does any more; who comes later finds nothing.
    void run_with_ours(Work& work, std::size_t helpers) {
        Ours& ours = *ours_;
        {
            const std::lock_guard<std::mutex> lock(ours.mutex);
            if (ours.work != nullptr) return;  // another thread's: the caller works alone
            if (ours.threads < helpers) ours.start(helpers);
            ours.work = &work;
            ours.places = helpers;
            ++ours.calls;
        }
        ours.work_is_there.notify_all();
        work.take_lanes();
        std::unique_lock<std::mutex> lock(ours.mutex);
        ours.work = nullptr;
        ours.helpers_have_left.wait(lock, [&] { return ours.helping == 0; });
    }

    std::atomic<ParallelRegion> region_{nullptr};
    Ours* ours_ = new Ours;
};

inline Team team;

// Numbers from 0 on, each given to one of the threads that ask.
class Numbers {
  public:
    explicit Numbers(std::size_t end) : end_(end) {}

    bool take(std::size_t& number) noexcept { return (number = next_++) < end_; }

  private:
    std::atomic<std::size_t> next_{0};
    const std::size_t end_;
};

}  // namespace tensorstate
