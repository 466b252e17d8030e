// SPDX-License-Identifier: Apache-2.0
//
// The thread team: every task once, with a thread index of its own; sleep, moves, ends; CPUs; denormal numbers; and a
// model that cannot tell it from OpenMP.
#include "model_support.hpp"

#include <hymba/exec/executor.hpp>
#include <hymba/exec/flush_denormals.hpp>
#include <hymba/exec/team.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using namespace hymba;
using namespace model_test;

namespace {

/// Runs one region and looks at what happened: how often each task ran and with which index, and whether two tasks with
/// the same index overlapped.
class Ledger {
 public:
  explicit Ledger(int threads) : busy_(static_cast<std::size_t>(threads)) {}

  template <class E>
  bool region(const E& exec, std::int64_t tasks) {
    times_.assign(static_cast<std::size_t>(tasks), 0);
    index_.assign(static_cast<std::size_t>(tasks), -1);
    std::atomic<bool> fine{true};
    exec.parallel_for(tasks, [&](std::int64_t task, int thread) noexcept {
      if (task < 0 || task >= tasks || thread < 0 || thread >= static_cast<int>(busy_.size())) {
        fine = false;
        return;
      }
      if (busy_[static_cast<std::size_t>(thread)].exchange(true)) fine = false;
      ++times_[static_cast<std::size_t>(task)];  // not atomic: a task that ran twice at once would be a race
      index_[static_cast<std::size_t>(task)] = thread;
      busy_[static_cast<std::size_t>(thread)] = false;
    });
    for (const int times : times_) fine = fine && times == 1;
    return fine;
  }
  const std::vector<int>& index() const { return index_; }

 private:
  std::vector<std::atomic<bool>> busy_;
  std::vector<int> times_, index_;
};

template <class Body>
std::string refusal(Body&& body) {
  try {
    body();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "";
}

template <class E>
using WithExecutor = Cpu<Weights::f32, Cache::f32, arch::best, E>;

}  // namespace

static_assert(std::is_nothrow_move_constructible_v<Team> && std::is_nothrow_move_assignable_v<Team>);
static_assert(noexcept(std::declval<Team&>().parallel_for(2, [](std::int64_t, int) noexcept {})));

TEST_CASE("every task of a region runs once, no two with the same index at once") {
  for (const int threads : {1, 2, 3, 8}) {
    const Team team(threads);
    CHECK(team.threads() == threads);
    Ledger ledger(threads);
    bool fine = true;
    for (int round = 0; round < 300; ++round) {
      for (const std::int64_t tasks : {0, 1, 2, 3, 5, 8, 9, 64, 1000}) fine = ledger.region(team, tasks) && fine;
    }
    CHECK(fine);
  }
}

TEST_CASE("no task, no call") {
  const Team team(2);
  bool called = false;
  for (const std::int64_t tasks : {std::int64_t{0}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::min()}) {
    team.parallel_for(tasks, [&](std::int64_t, int) noexcept { called = true; });
  }
  CHECK_FALSE(called);
}

TEST_CASE("a single task runs on the caller") {
  const Team team(3);
  for (int i = 0; i < 100; ++i) {
    std::thread::id where;
    team.parallel_for(1, [&](std::int64_t, int) noexcept { where = std::this_thread::get_id(); });
    CHECK(where == std::this_thread::get_id());
  }
}

TEST_CASE("tasks are handed out in contiguous chunks, those of OpenMP") {
  for (const int threads : {2, 3, 7}) {
    const Team team(threads);
    Ledger ledger(threads);
    for (std::int64_t tasks = 1; tasks < 40; ++tasks) {
      CHECK(ledger.region(team, tasks));
      const std::vector<int> index = ledger.index();
      std::int64_t task = 0;
      for (int thread = 0; thread < threads; ++thread) {
        const std::int64_t mine = tasks / threads + (thread < tasks % threads ? 1 : 0);
        for (std::int64_t i = 0; i < mine; ++i) CHECK(index[static_cast<std::size_t>(task++)] == thread);
      }
      CHECK(task == tasks);
#if defined(_OPENMP)
      CHECK(ledger.region(OpenMp(threads), tasks));
      CHECK(ledger.index() == index);
#endif
    }
  }
}

TEST_CASE("what tasks write is there after the region, what the caller wrote before it is there in tasks") {
  const Team team(4);
  std::vector<std::int64_t> values(64, 0);
  for (std::int64_t round = 1; round <= 3000; ++round) {
    // Each task reads what another one wrote in the round before.
    std::vector<std::int64_t> next(values.size());
    team.parallel_for(64, [&](std::int64_t task, int) noexcept {
      next[static_cast<std::size_t>(task)] = values[static_cast<std::size_t>((task + 17) % 64)] + 1;
    });
    values.swap(next);
  }
  for (const std::int64_t value : values) CHECK(value == 3000);
}

TEST_CASE("regions of few and of all threads in turn") {
  // Threads that are not needed miss regions, and must neither run an old one nor lose the next.
  const Team team(6);
  Ledger ledger(6);
  bool fine = true;
  for (int round = 0; round < 4000; ++round) fine = ledger.region(team, 2 + (round * 7919) % 6) && fine;
  CHECK(fine);
}

TEST_CASE("a team that slept works on") {
  const Team team(3);
  Ledger ledger(3);
  for (int round = 0; round < 15; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 5));
    CHECK(ledger.region(team, 30));
  }
}

TEST_CASE("long tasks: the caller sleeps until the last one is done, and workers do take part") {
  const Team team(2);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> elsewhere{0};
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> ran{0};
    team.parallel_for(2, [&](std::int64_t task, int) noexcept {
      if (std::this_thread::get_id() != caller) ++elsewhere;
      std::this_thread::sleep_for(std::chrono::milliseconds(task == 0 ? 5 : 10));
      ++ran;
    });
    CHECK(ran == 2);
  }
  CHECK(elsewhere > 0);
}

TEST_CASE("moves: the team goes along, what is left behind runs on the caller") {
  Team first(3);
  Ledger ledger(3);
  CHECK(ledger.region(first, 20));
  Team second(std::move(first));
  CHECK(second.threads() == 3);
  CHECK(ledger.region(second, 20));
  CHECK(first.threads() == 1);  // NOLINT(bugprone-use-after-move): it is promised
  CHECK(ledger.region(first, 20));
  Team third(2);
  third = std::move(second);
  CHECK(third.threads() == 3);
  CHECK(ledger.region(third, 20));
  first = Team(2);
  CHECK(first.threads() == 2);
  CHECK(ledger.region(first, 20));
  {
    const Team gone(std::move(third));
    CHECK(ledger.region(gone, 20));
  }
  CHECK(ledger.region(third, 20));  // NOLINT(bugprone-use-after-move)
}

TEST_CASE("teams come and go, used or not") {
  for (int round = 0; round < 100; ++round) {
    const Team team(1 + round % 5);
    if (round % 3 == 0) continue;
    Ledger ledger(team.threads());
    CHECK(ledger.region(team, round % 11));
  }
}

TEST_CASE("many teams at once, each with a caller of its own") {
  std::vector<std::thread> callers;
  std::vector<char> fine(6, 1);
  for (std::size_t i = 0; i < fine.size(); ++i) {
    callers.emplace_back([&fine, i] {
      const Team team(2 + static_cast<int>(i % 3));
      Ledger ledger(team.threads());
      for (int round = 0; round < 500; ++round) fine[i] = static_cast<char>(fine[i] && ledger.region(team, round % 9));
    });
  }
  for (std::thread& t : callers) t.join();
  for (const char one : fine) CHECK(one == 1);
}

TEST_CASE("one team, one caller after the other") {
  const Team team(3);
  Ledger ledger(3);
  for (int round = 0; round < 20; ++round) {
    bool fine = true;
    std::thread caller([&] {
      for (int i = 0; i < 50; ++i) fine = ledger.region(team, 12) && fine;
    });
    caller.join();
    CHECK(fine);
  }
}

TEST_CASE("a region within a region is run by the thread that asks") {
  const Team team(3);
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> inner{0};
    std::atomic<bool> fine{true};
    team.parallel_for(6, [&](std::int64_t, int) noexcept {
      const std::thread::id here = std::this_thread::get_id();
      team.parallel_for(4, [&](std::int64_t, int thread) noexcept {
        if (thread != 0 || std::this_thread::get_id() != here) fine = false;
        ++inner;
      });
    });
    CHECK(fine);
    CHECK(inner == 24);
  }
}

TEST_CASE("numbers of threads") {
  CHECK(Team().threads() == static_cast<int>(detail::usable_cpus().size()));
  CHECK(Team(0).threads() >= 1);
  CHECK(refusal([] { Team team(-1); }) == "threads is -1, expected 0 (all cores) to 4096");
  CHECK(refusal([] { Team team(4097); }) == "threads is 4097, expected 0 (all cores) to 4096");
  CHECK(refusal([] { Team team(TeamOptions{.threads = -2, .pin = true}); }) ==
        "threads is -2, expected 0 (all cores) to 4096");
}

#if defined(__linux__)
TEST_CASE("pinned: each worker on its CPU, the caller where it was") {
  const std::vector<int> before = detail::usable_cpus();
  const int count = static_cast<int>(before.size());
  const auto check = [&](const Team& team, const std::vector<int>& cpus) {
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> fine{true};
    for (int round = 0; round < 20; ++round) {
      team.parallel_for(team.threads(), [&](std::int64_t, int thread) noexcept {
        const std::vector<int> mine = detail::usable_cpus();
        if (std::this_thread::get_id() == caller) {
          if (mine != before) fine = false;
        } else if (mine != std::vector<int>{cpus[static_cast<std::size_t>(thread)]}) {
          fine = false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      });
    }
    CHECK(fine);
  };
  const Team all(TeamOptions{.pin = true});
  CHECK(all.threads() == count);
  check(all, before);
  const std::vector<int> backwards(before.rbegin(), before.rend());
  check(Team(TeamOptions{.threads = count, .pin = true, .cpus = backwards}), backwards);
  CHECK(Team(TeamOptions{.pin = true, .cpus = {before.back()}}).threads() == 1);
  CHECK(detail::usable_cpus() == before);

  const std::string many = std::to_string(count + 1);
  CHECK(refusal([&] { Team team(TeamOptions{.threads = count + 1, .pin = true}); }) ==
        "threads is " + many + ", but there are " + std::to_string(count) + " CPUs to pin them to");
  for (const int absent : {-1, before.back() + 1, 1 << 20}) {
    CHECK(refusal([&] { Team team(TeamOptions{.pin = true, .cpus = {absent}}); }) ==
          "cpus names CPU " + std::to_string(absent) + ", which this thread may not run on");
  }
}

TEST_CASE("the caller is pinned when asked, and counts as having one CPU from then on") {
  std::thread([] {
    const std::vector<int> before = detail::usable_cpus();
    const Team team(TeamOptions{.pin = true, .pin_caller = true});
    CHECK(detail::usable_cpus() == std::vector<int>{before.front()});
    Ledger ledger(team.threads());
    CHECK(ledger.region(team, 10));
    CHECK(Team(0).threads() == 1);
  }).join();
}
#else
TEST_CASE("where threads cannot be pinned, it is said") {
  CHECK(refusal([] { Team team(TeamOptions{.threads = 1, .pin = true}); }) ==
        "pin is set, but threads (1) cannot be pinned on this system");
}
#endif

#if defined(__x86_64__) || defined(_M_X64) || defined(__aarch64__)
namespace {

/// Whether a product below the smallest normal number is zero here, and whether a denormal operand counts as zero.
bool flushes() {
  volatile float tiny = std::numeric_limits<float>::min(), half = 0.5f, big = 0x1p100f;
  volatile float denormal = std::numeric_limits<float>::denorm_min();
  const bool results = tiny * half == 0.0f, operands = denormal * big == 0.0f;
  CHECK(results == operands);
  return results;
}

template <class E>
void check_denormals(const E& exec) {
  CHECK_FALSE(flushes());
  for (const std::int64_t tasks : {1, 2, 12}) {
    std::atomic<bool> fine{true};
    for (int round = 0; round < 50; ++round) {
      exec.parallel_for(tasks, [&](std::int64_t, int) noexcept {
        volatile float tiny = std::numeric_limits<float>::min(), half = 0.5f;
        if (tiny * half != 0.0f || !FlushDenormals::set()) fine = false;
      });
    }
    CHECK(fine);
    CHECK_FALSE(flushes());  // the host's mode is as it was
  }
  {
    const FlushDenormals host;
    CHECK(flushes());
    exec.parallel_for(12, [](std::int64_t, int) noexcept {});
    CHECK(flushes());
  }
  CHECK_FALSE(flushes());
}

}  // namespace

TEST_CASE("denormal numbers count as zero in tasks, on all threads and executors, and nowhere else") {
  check_denormals(Team(3));
  check_denormals(Team(1));
  check_denormals(Serial());
#if defined(_OPENMP)
  check_denormals(OpenMp(3));
#endif
}
#endif

TEST_CASE("a model cannot tell a team from the default executor") {
  for (const std::string& name : golden_names()) {
    CAPTURE(name);
    const Golden golden = read_golden(golden_root() / name);
    const auto usual = Model<DynamicHymba, WithExecutor<DefaultExecutor>>::open(golden_root() / name);
    const auto ours = Model<DynamicHymba, WithExecutor<Team>>::open(golden_root() / name);
    auto options = room_for(golden.ids.size());
    const auto expected = full_pass(usual, golden.ids, options);
    for (const int threads : {1, 2, 3}) {
      options.threads = threads;
      CHECK(full_pass(ours, golden.ids, options) == expected);
      // Token by token.
      auto session = ours.session(options);
      CHECK(session.threads() == threads);
      auto reference = usual.session({.max_context = options.max_context, .threads = 1});
      for (const Token token : golden.ids) {
        const auto a = session.decode(token), b = reference.decode(token);
        CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
      }
    }
  }
}

TEST_CASE("sessions of one model, each with its team, at the same time; a session moves with its team") {
  const auto model = Model<DynamicHymba, WithExecutor<Team>>::open(golden_root() / "hymba_tiny");
  const Golden golden = read_golden(golden_root() / "hymba_tiny");
  const auto expected = full_pass(model, golden.ids, room_for(golden.ids.size()));
  const std::size_t vocabulary = expected.size() / golden.ids.size();
  std::vector<std::vector<float>> results(4);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < results.size(); ++i) {
    threads.emplace_back([&, i] {
      auto made = model.session({.max_context = 64, .threads = 1 + static_cast<int>(i % 3)});
      auto session = std::move(made);
      for (const Token token : golden.ids) {
        const auto logits = session.decode(token);
        results[i].insert(results[i].end(), logits.begin(), logits.end());
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (const auto& result : results) {
    CHECK(result.size() == golden.ids.size() * vocabulary);
    CHECK(result == results[0]);
    CHECK(relative_error(result, expected) < 2e-5);
  }
}
