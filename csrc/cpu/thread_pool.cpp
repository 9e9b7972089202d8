// Copyright 2026 tinychat_ros developers
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "common.h"

namespace tinychat {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kThreadBits = 10;
constexpr int kMaxThreads = (1 << kThreadBits) - 1;

// Of a thread's part. Others can take over all but the one that it is at.
constexpr int64_t kPieces = 8;

// Between two kernels of a decode step pass a few microseconds; to wake a worker takes about 50.
constexpr auto kSpin = microseconds(100);

// A worker that has its core is through within a piece of the caller's; the slice of time that
// another process gets is some milliseconds.
constexpr auto kPatience = microseconds(500);
constexpr auto kFirstPenalty = milliseconds(20);
constexpr auto kLongestPenalty = milliseconds(500);

int available_processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks at a condition until it holds, or not for long any more; returns whether it held.
template <typename Condition>
bool spin(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

uint64_t pack(int64_t begin, int64_t end) { return static_cast<uint64_t>(begin) << 32 | end; }

}  // namespace

int threads_for(int64_t work, int64_t min_per_thread, int num_threads) {
  static const int processors = available_processors();
  const int64_t worthwhile = ceil_div(work, min_per_thread);
  return static_cast<int>(
      std::min<int64_t>(num_threads == 0 ? processors : num_threads, worthwhile));
}

ThreadPool::ThreadPool() : owner_(getpid()), parts_(new Part[kMaxThreads]) {}

ThreadPool& ThreadPool::instance() {
  // No lock guards this: another thread could hold it at the moment of a fork, and the child would
  // wait for it for ever. For the same reason a child leaves its copy of the parent's pool behind.
  static std::atomic<ThreadPool*> current{nullptr};
  ThreadPool* pool = current.load();
  if (pool != nullptr && pool->owner_ == getpid()) return *pool;
  ThreadPool* fresh = new ThreadPool();
  if (current.compare_exchange_strong(pool, fresh)) return *fresh;
  delete fresh;
  return *pool;
}

void ThreadPool::add_worker() {
  std::thread worker(&ThreadPool::work, this, static_cast<int>(workers_.size()) + 1);
  workers_.push_back(worker.native_handle());
  keep_to_processors(workers_.back());
  worker.detach();
}

void ThreadPool::set_processors(const std::vector<int>& processors) {
  const std::lock_guard<std::mutex> turn(caller_mutex_);
  processors_ = processors;
  for (const auto worker : workers_) keep_to_processors(worker);
}

void ThreadPool::keep_to_processors(
    [[maybe_unused]] std::thread::native_handle_type worker) const {
#if defined(__linux__)
  if (processors_.empty()) return;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  for (const int processor : processors_) CPU_SET(processor, &allowed);
  const int error = pthread_setaffinity_np(worker, sizeof(allowed), &allowed);
  if (error != 0) throw std::system_error(error, std::generic_category(), "set_processors");
#endif
}

// A worker looks at nothing but call_ until it takes part: the rest is the caller's until then.
void ThreadPool::work(int index) {
  uint32_t seen = 0;
  const auto called = [&] { return call_.load() != seen; };
  for (;;) {
    if (!spin(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleeping_;
      called_.wait(lock, called);
      --sleeping_;
    }
    seen = call_.load();
    if (index >= static_cast<int>(seen & kMaxThreads)) continue;
    run_parts(index);
    if (running_.fetch_sub(1) == 1 && caller_sleeps_.load()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

bool ThreadPool::take(Part& part, bool from_the_end, int64_t* begin, int64_t* end) {
  uint64_t left = part.left.load();
  for (;;) {
    const int64_t first = static_cast<int64_t>(left >> 32);
    const int64_t last = static_cast<int64_t>(left & 0xffffffff);
    if (first >= last) return false;
    const int64_t size = std::min(piece_, last - first);
    *begin = from_the_end ? last - size : first;
    *end = *begin + size;
    const uint64_t rest = from_the_end ? pack(first, *begin) : pack(*end, last);
    if (part.left.compare_exchange_weak(left, rest)) return true;
  }
}

void ThreadPool::run_parts(int index) {
  const int threads = static_cast<int>(call_.load() & kMaxThreads);
  int64_t begin, end;
  for (int i = 0; i < threads; ++i) {
    Part& part = parts_[(index + i) % threads];
    while (take(part, i > 0, &begin, &end)) (*task_)(begin, end);
  }
}

void ThreadPool::parallel_for(int64_t count, int num_threads, const Task& task) {
  const int64_t parts = std::min<int64_t>({num_threads, count, kMaxThreads});
  if (parts <= 1 || count > INT32_MAX) return task(0, count);
  const std::lock_guard<std::mutex> turn(caller_mutex_);
  if (Clock::now() < alone_until_) return task(0, count);
  while (static_cast<int64_t>(workers_.size()) < parts - 1) add_worker();
  task_ = &task;
  piece_ = ceil_div(count, parts * kPieces);
  for (int64_t i = 0; i < parts; ++i) {
    parts_[i].left.store(pack(count * i / parts, count * (i + 1) / parts));
  }
  running_.store(static_cast<int>(parts) - 1);
  call_.store(((call_.load() >> kThreadBits) + 1) << kThreadBits | static_cast<uint32_t>(parts));
  if (sleeping_.load() > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    called_.notify_all();
  }
  run_parts(0);
  const auto begin = Clock::now();
  wait_for_workers();
  note_wait(Clock::now() - begin);
}

void ThreadPool::wait_for_workers() {
  const auto done = [&] { return running_.load() == 0; };
  if (spin(done)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeps_.store(true);
  done_.wait(lock, done);
  caller_sleeps_.store(false);
}

// A worker whose core went to another process costs more than it brings.
void ThreadPool::note_wait(Clock::duration wait) {
  const auto now = Clock::now();
  if (wait > kPatience) {
    penalty_ = std::clamp<Clock::duration>(2 * penalty_, kFirstPenalty, kLongestPenalty);
    alone_until_ = now + penalty_;
  } else if (now > alone_until_ + 2 * kLongestPenalty) {
    penalty_ = Clock::duration::zero();
  }
}

}  // namespace tinychat
