// SPDX-License-Identifier: Apache-2.0
//
// One model, many threads: sessions made and used at the same time give what they give alone; a user's own pool works.
#include "model_support.hpp"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

using namespace hymba;
using namespace model_test;

namespace {

/// A minimal pool as a user might bring: worker threads that share out tasks by an atomic counter.
class OwnPool {
 public:
  explicit OwnPool(int threads = 0) : shared_(std::make_unique<Shared>()), threads_(threads > 0 ? threads : 2) {
    for (int i = 1; i < threads_; ++i) workers_.emplace_back([s = shared_.get(), i] { s->work(i); });
  }
  OwnPool(OwnPool&&) = default;
  OwnPool& operator=(OwnPool&& o) noexcept {
    std::swap(shared_, o.shared_);
    std::swap(threads_, o.threads_);
    std::swap(workers_, o.workers_);
    return *this;
  }
  ~OwnPool() {
    if (!shared_) return;
    {
      const std::lock_guard lock(shared_->mutex);
      shared_->stop = true;
    }
    shared_->wake.notify_all();
    for (std::thread& t : workers_) t.join();
  }
  int threads() const { return threads_; }
  template <class Body>
  void parallel_for(std::int64_t tasks, Body&& body) const {
    if (tasks <= 0) return;
    Shared& s = *shared_;
    {
      const std::lock_guard lock(s.mutex);
      s.body = [&body](std::int64_t task, int thread) { body(task, thread); };
      s.tasks = tasks;
      s.next = 0;
      s.busy = threads_ - 1;
      ++s.round;
    }
    s.wake.notify_all();
    s.drain(0);
    std::unique_lock lock(s.mutex);
    s.done.wait(lock, [&] { return s.busy == 0; });
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::condition_variable wake, done;
    std::function<void(std::int64_t, int)> body;
    std::int64_t tasks = 0;
    std::atomic<std::int64_t> next{0};
    int busy = 0;
    long round = 0;
    bool stop = false;

    void drain(int thread) {
      for (std::int64_t i = next++; i < tasks; i = next++) body(i, thread);
    }
    void work(int thread) {
      long seen = 0;
      for (;;) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stop || round != seen; });
        if (stop) return;
        seen = round;
        lock.unlock();
        drain(thread);
        lock.lock();
        if (--busy == 0) done.notify_one();
      }
    }
  };
  std::unique_ptr<Shared> shared_;
  int threads_;
  std::vector<std::thread> workers_;
};
static_assert(Executor<OwnPool>);

}  // namespace

TEST_CASE("sessions from several threads over one model, made at the same time") {
  const Golden golden = read_golden(golden_root() / "hymba_tiny");
  const auto alone = full_pass(Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "hymba_tiny"), golden.ids,
                               room_for(golden.ids.size()));
  for (int round = 0; round < 3; ++round) {
    const auto model = Model<DynamicHymba, Cpu<Weights::f32>>::open(golden_root() / "hymba_tiny");
    std::vector<std::vector<float>> results(6);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < results.size(); ++i) {
      // Nobody has computed the state after the meta tokens yet: all threads ask for it at once.
      threads.emplace_back([&, i] {
        auto session = model.session({.max_context = 64, .threads = i % 2 == 0 ? 1 : 2});
        results[i].resize(alone.size());
        const std::size_t vocabulary = alone.size() / golden.ids.size();
        for (std::size_t t = 0; t < golden.ids.size(); ++t) {
          const auto logits = session.decode(golden.ids[t]);
          std::copy(logits.begin(), logits.end(), results[i].begin() + static_cast<std::ptrdiff_t>(t * vocabulary));
        }
      });
    }
    for (std::thread& t : threads) t.join();
    for (const auto& result : results) {
      CHECK(relative_error(result, alone) < 2e-5);
      CHECK(result == results[0]);
    }
  }
}

TEST_CASE("a user's own pool runs a model") {
  const Golden golden = read_golden(golden_root() / "groups_of_three");
  const auto model = Model<DynamicHymba, Cpu<Weights::f32, Cache::f32, arch::best, OwnPool>>::open(golden_root() / "groups_of_three");
  for (const int threads : {1, 2, 4}) {
    auto options = room_for(golden.ids.size());
    options.threads = threads;
    CHECK(relative_error(full_pass(model, golden.ids, options), golden.logits) < 2e-5);
  }
}

TEST_CASE("the serial executor refuses a number of threads it cannot keep") {
  const auto model = Model<DynamicHymba, Cpu<Weights::f32, Cache::f32, arch::best, Serial>>::open(golden_root() / "no_meta");
  CHECK_THROWS_AS(model.session({.threads = 2}), ArgumentError);
  CHECK_NOTHROW(model.session({.threads = 1}));
}
