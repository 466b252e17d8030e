// SPDX-License-Identifier: Apache-2.0
//
// A team of threads that stays: workers start when the team is made and end with it. A decoded token is some hundred
// regions of a few microseconds each, so what a region costs beyond its work decides what a second core is worth.
//
// One word, the order, starts a region: the caller writes down the job, then the number of the region and of threads
// that share it. Each worker has a word of its own, where it claims its share and later says that it is done.
// Because shares are claimed, the caller, done with its own, runs those that nobody has begun: a worker that sleeps, or
// lost its core to another process, delays nobody. Only a share that was begun is waited for.
//
// Everyone waits in the same way: briefly awake, because the next region of a step is mostly microseconds away, then
// asleep. How briefly follows from what waiting brought so far.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/exec/executor.hpp>
#include <hymba/exec/flush_denormals.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

HYMBA_NAMESPACE_BEGIN

namespace detail {

/// Tells the core that this is a loop that waits.
HYMBA_ALWAYS_INLINE void relax() noexcept {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
  __asm__ volatile("isb" : : : "memory");  // `yield` does nothing on most cores
#endif
}

/// Where one thread sleeps. Whoever changes what it waits for calls wake() afterwards.
class Bell {
 public:
  /// Sleeps until `ready()`, which loads what it looks at with memory_order_seq_cst: so either it sees the change, or
  /// wake() sees the sleeper.
  template <class Ready>
  void sleep_until(Ready&& ready) noexcept {
    for (;;) {
      asleep_.store(1, std::memory_order_seq_cst);
      if (ready()) break;
      wait();
    }
    asleep_.store(0, std::memory_order_relaxed);
  }
  /// Wakes the sleeper, if there is one. The change before was stored with memory_order_seq_cst.
  void wake() noexcept {
    if (asleep_.load(std::memory_order_seq_cst) != 0 && asleep_.exchange(0, std::memory_order_seq_cst) != 0) notify();
  }

 private:
#if defined(__linux__) && defined(SYS_futex)
  // Not std::atomic's wait: the one of libstdc++ yields some times before it sleeps, and a thread that yields on a busy
  // core comes back a time slice later, whatever was sent to it.
  static_assert(sizeof(std::atomic<std::uint32_t>) == 4 && std::atomic<std::uint32_t>::is_always_lock_free);
  void wait() noexcept { syscall(SYS_futex, &asleep_, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0); }
  void notify() noexcept { syscall(SYS_futex, &asleep_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }
#else
  void wait() noexcept { asleep_.wait(1, std::memory_order_acquire); }
  void notify() noexcept { asleep_.notify_one(); }
#endif

  std::atomic<std::uint32_t> asleep_{0};
};

/// How one thread waits: awake for a time, then asleep.
class Patience {
 public:
  /// Returns when `ready()`, which looks as Bell::sleep_until says.
  template <class Ready>
  void wait(Bell& bell, Ready&& ready) noexcept {
    using Clock = std::chrono::steady_clock;
    if (ready()) return;
    const Clock::time_point start = Clock::now();
    do {
      for (int i = 0; i < looks_per_time; ++i) {
        relax();
        if (ready()) {
          time_ = std::min(longest, time_ + longest / 4);
          return;
        }
      }
    } while (Clock::now() - start < time_);
    bell.sleep_until(ready);
    // Sleeping was a mistake if all in all it was soon over. Else there was nothing to do, or others need the cores,
    // and waiting awake would take them away from the very thread that is waited for.
    time_ = Clock::now() - start < longest ? longest : std::max(shortest, time_ / 2);
  }

 private:
  // To wake a thread whose core sleeps takes some 20 us of the waker's time on a virtual machine (a few without) and as
  // much again until it runs: waiting that long costs at most twice what the best decision would.
  static constexpr std::chrono::nanoseconds longest{50000}, shortest{1000};
  static constexpr int looks_per_time = 16;  // reading the time costs about as much as a look
  std::chrono::nanoseconds time_ = longest;
};

/// The numbers of the CPUs the calling thread may run on, ascending. Where the system does not say: 0, 1, ..., as many
/// as the hardware has.
inline std::vector<int> usable_cpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  // The system refuses a set that is smaller than its own, whose size only it knows.
  for (int room = CPU_SETSIZE; room <= CPU_SETSIZE << 8 && cpus.empty(); room *= 2) {
    std::vector<cpu_set_t> sets(static_cast<std::size_t>(room / CPU_SETSIZE));
    const std::size_t bytes = sets.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, sets.data()) != 0) continue;
    for (int i = 0; i < room; ++i) {
      if (CPU_ISSET_S(static_cast<std::size_t>(i), bytes, sets.data())) cpus.push_back(i);
    }
  }
#endif
  if (cpus.empty()) {
    const int count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    for (int i = 0; i < count; ++i) cpus.push_back(i);
  }
  return cpus;
}

/// Keeps the calling thread on one CPU. False: the system refuses.
inline bool stay_on([[maybe_unused]] int cpu) noexcept {
#if defined(__linux__)
  cpu_set_t sets[CPU_SETSIZE / 32] = {};  // 32768 CPUs
  if (cpu < 0 || cpu >= CPU_SETSIZE * (CPU_SETSIZE / 32)) return false;
  CPU_SET_S(static_cast<std::size_t>(cpu), sizeof(sets), sets);
  return sched_setaffinity(0, sizeof(sets), sets) == 0;
#else
  return false;
#endif
}

}  // namespace detail

struct TeamOptions {
  int threads = 0;           ///< the caller included; 0: as many as there are CPUs to run on
  bool pin = false;          ///< thread i stays on the i-th of the CPUs; the caller, thread 0, does only if asked below
  bool pin_caller = false;   ///< with `pin`: the thread that makes the team stays on the first CPU, after the team too
  std::vector<int> cpus{};   ///< with `pin`: these CPUs, by number; empty: those the calling thread may run on
};

/// Worker threads of its own, from construction to destruction; the caller is thread 0. Tasks are handed out in the
/// same contiguous chunks as OpenMp's, so results are the same bits. The chunk a task is in decides its thread *index*;
/// the thread itself is the caller when the worker was late. Denormal numbers count as zero in tasks.
///
/// One parallel_for at a time: calls from several threads must not overlap, as those of a session do not. A body that
/// calls parallel_for of the team that runs it gets its tasks run one after the other on its own thread, with index 0,
/// which may be another's: such tasks must not use it.
class Team {
 public:
  /// @param threads 0: as many as there are CPUs that the calling thread may run on.
  /// @throws ArgumentError for a number outside 0 to 4096, or one the system has no room for.
  explicit Team(int threads = 0) : Team(TeamOptions{.threads = threads}) {}

  /// @throws ArgumentError for a number of threads outside 0 to 4096, or one the system has no room for; with `pin`,
  /// for more threads than CPUs, for a CPU that the calling thread may not run on, and where threads cannot be pinned.
  explicit Team(const TeamOptions& options) {
    if (options.threads < 0 || options.threads > most) {
      throw ArgumentError(detail::message("threads is ", options.threads, ", expected 0 (all cores) to ", most));
    }
    std::vector<int> cpus = detail::usable_cpus();
    if (options.pin) cpus = checked(options, std::move(cpus));
    threads_ = options.threads > 0 ? options.threads : std::min(most, static_cast<int>(cpus.size()));
    if (threads_ > 1) shared_ = std::make_unique<Shared>(threads_, options.pin ? cpus : std::vector<int>{});
    if (options.pin && options.pin_caller) detail::stay_on(cpus.front());
  }
  Team(Team&& other) noexcept
      : shared_(std::move(other.shared_)), threads_(std::exchange(other.threads_, 1)) {}
  Team& operator=(Team&& other) noexcept {
    shared_ = std::move(other.shared_);
    threads_ = std::exchange(other.threads_, 1);
    return *this;
  }

  /// One for a team that was moved from: it runs everything on the caller.
  int threads() const { return threads_; }

  template <class Body>
  void parallel_for(std::int64_t tasks, Body&& body) const noexcept {
    if (tasks <= 0) return;
    if (tasks == 1 || threads_ == 1 || !shared_->enter()) {
      const FlushDenormals flush;
      for (std::int64_t i = 0; i < tasks; ++i) body(i, 0);
      return;
    }
    using Callable = std::remove_reference_t<Body>;
    const auto run = [](void* callable, std::int64_t first, std::int64_t last, int thread) noexcept {
      for (std::int64_t i = first; i < last; ++i) (*static_cast<Callable*>(callable))(i, thread);
    };
    shared_->run({const_cast<void*>(static_cast<const void*>(std::addressof(body))), run, tasks,
                  static_cast<int>(std::min<std::int64_t>(tasks, threads_))});
    shared_->leave();
  }

 private:
  static constexpr int most = 4096;

  struct Job {
    void* callable;
    void (*run)(void* callable, std::int64_t first, std::int64_t last, int thread) noexcept;
    std::int64_t tasks;
    int shares;

    /// The share of one thread: OpenMP's static schedule.
    void operator()(int thread) const noexcept {
      const std::int64_t each = tasks / shares, more = tasks % shares;
      const std::int64_t first = thread * each + std::min<std::int64_t>(thread, more);
      run(callable, first, first + each + (thread < more ? 1 : 0), thread);
    }
  };

  /// What the threads of a team share; it has an address that stays when the team is moved.
  class Shared {
   public:
    Shared(int threads, const std::vector<int>& cpus) : workers_(static_cast<std::size_t>(threads - 1)) {
      threads_.reserve(workers_.size());
      try {
        for (int i = 1; i < threads; ++i) {
          const int cpu = cpus.empty() ? -1 : cpus[static_cast<std::size_t>(i)];
          threads_.emplace_back([this, i, cpu] {
            if (cpu >= 0) detail::stay_on(cpu);
            serve(i);
          });
        }
      } catch (const std::system_error& error) {
        const std::size_t started = threads_.size();
        stop();
        throw ArgumentError(detail::message("threads is ", threads, ", but the system started only ", started + 1,
                                            ": ", error.code().message()));
      } catch (...) {
        stop();
        throw;
      }
    }
    Shared(const Shared&) = delete;
    Shared& operator=(const Shared&) = delete;
    ~Shared() { stop(); }

    /// False within a region.
    bool enter() noexcept {
      if (inside_.load(std::memory_order_relaxed)) return false;
      inside_.store(true, std::memory_order_relaxed);
      return true;
    }
    void leave() noexcept { inside_.store(false, std::memory_order_relaxed); }

    void run(const Job& job) noexcept {
      const FlushDenormals flush;
      job_ = job;
      ++round_;
      order_.store(round_ << share_bits | static_cast<std::uint64_t>(job.shares), std::memory_order_seq_cst);
      worker(1).bell.wake();
      job(0);
      for (int i = 1; i < job.shares; ++i) {
        if (claim(i, round_)) {
          wake_below(i, job.shares);
          job(i);
          worker(i).state.store(done(round_), std::memory_order_relaxed);
        }
      }
      for (int i = 1; i < job.shares; ++i) {
        const std::atomic<std::uint64_t>& state = worker(i).state;
        patience_.wait(bell_, [&] { return state.load(std::memory_order_seq_cst) == done(round_); });
      }
    }

   private:
    // A worker's state: twice the region it last claimed, and one more once that is done. Numbers of regions only grow
    // (51 bits of them), so that a worker who comes late finds its share taken, however many regions later.
    static constexpr std::uint64_t claimed(std::uint64_t round) { return 2 * round; }
    static constexpr std::uint64_t done(std::uint64_t round) { return 2 * round + 1; }

    static constexpr int share_bits = 13;
    static constexpr std::uint64_t end = ~std::uint64_t{0};  // the order to go home
    static_assert(most < 1 << share_bits);
    static int shares(std::uint64_t order) { return static_cast<int>(order & ((1u << share_bits) - 1)); }

    struct Worker {
      alignas(128) std::atomic<std::uint64_t> state{0};
      alignas(128) detail::Bell bell;  // apart: the caller looks at it in every region, and it hardly ever changes
    };

    Worker& worker(int thread) { return workers_[static_cast<std::size_t>(thread - 1)]; }

    bool claim(int thread, std::uint64_t round) noexcept {
      std::atomic<std::uint64_t>& state = worker(thread).state;
      std::uint64_t now = state.load(std::memory_order_relaxed);
      return now < claimed(round) && state.compare_exchange_strong(now, claimed(round), std::memory_order_acq_rel,
                                                                   std::memory_order_relaxed);
    }

    /// Threads wake each other as a tree, 1 under the caller, 2 i and 2 i + 1 under i: to wake takes its time.
    void wake_below(int thread, int shares) noexcept {
      for (int i = 2 * thread; i < std::min(2 * thread + 2, shares); ++i) worker(i).bell.wake();
    }

    /// A worker's life.
    void serve(int thread) noexcept {
      const FlushDenormals flush;
      detail::Patience patience;
      Worker& me = worker(thread);
      std::uint64_t seen = 0, order = 0;
      for (;;) {
        patience.wait(me.bell, [&] {
          order = order_.load(std::memory_order_seq_cst);
          return order != seen && shares(order) > thread;
        });
        if (order == end) return;
        seen = order;
        wake_below(thread, shares(order));
        const std::uint64_t round = order >> share_bits;
        if (!claim(thread, round)) continue;
        job_(thread);
        me.state.store(done(round), std::memory_order_seq_cst);
        bell_.wake();
      }
    }

    void stop() noexcept {
      order_.store(end, std::memory_order_seq_cst);
      for (Worker& w : workers_) w.bell.wake();
      for (std::thread& t : threads_) t.join();
      threads_.clear();
    }

    // What starts a region lies in one cache line.
    alignas(128) std::atomic<std::uint64_t> order_{0};
    Job job_{};
    // The caller's own.
    alignas(128) std::uint64_t round_ = 0;
    detail::Patience patience_;
    std::atomic<bool> inside_{false};
    alignas(128) detail::Bell bell_;
    std::vector<Worker> workers_;
    std::vector<std::thread> threads_;
  };

  /// The CPUs to pin to, one for each thread.
  static std::vector<int> checked(const TeamOptions& options, std::vector<int> usable) {
#if defined(__linux__)
    for (const int cpu : options.cpus) {
      if (!std::binary_search(usable.begin(), usable.end(), cpu)) {
        throw ArgumentError(detail::message("cpus names CPU ", cpu, ", which this thread may not run on"));
      }
    }
    if (!options.cpus.empty()) usable = options.cpus;
    if (static_cast<std::size_t>(options.threads) > usable.size()) {
      throw ArgumentError(detail::message("threads is ", options.threads, ", but there are ", usable.size(),
                                          " CPUs to pin them to"));
    }
    return usable;
#else
    static_cast<void>(usable);
    throw ArgumentError(detail::message("pin is set, but threads (", options.threads,
                                        ") cannot be pinned on this system"));
#endif
  }

  std::unique_ptr<Shared> shared_;
  int threads_ = 1;
};
static_assert(Executor<Team>);

HYMBA_NAMESPACE_END
