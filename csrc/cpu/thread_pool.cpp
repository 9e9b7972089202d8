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

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "common.h"

namespace tinychat {
namespace {

int available_processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

int threads_for(int64_t work, int64_t min_per_thread, int num_threads) {
  static const int processors = available_processors();
  const int64_t worthwhile = ceil_div(work, min_per_thread);
  return static_cast<int>(
      std::min<int64_t>(num_threads == 0 ? processors : num_threads, worthwhile));
}

ThreadPool::ThreadPool() : owner_(getpid()) {}

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
  workers_.reserve(workers_.size() + 1);
  auto worker = std::make_unique<Worker>();
  std::thread(&ThreadPool::work, this, std::ref(*worker)).detach();
  workers_.push_back(std::move(worker));
}

void ThreadPool::work(Worker& worker) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    worker.wake.wait(lock, [&worker] { return worker.task != nullptr; });
    lock.unlock();
    (*worker.task)(worker.begin, worker.end);
    lock.lock();
    worker.task = nullptr;
    if (--pending_ == 0) done_.notify_one();
  }
}

void ThreadPool::parallel_for(int64_t count, int num_threads, const Task& task) {
  const int64_t parts = std::min<int64_t>(num_threads, count);
  if (parts <= 1) return task(0, count);
  const std::lock_guard<std::mutex> turn(caller_mutex_);
  while (static_cast<int64_t>(workers_.size()) < parts - 1) add_worker();
  std::unique_lock<std::mutex> lock(mutex_);
  pending_ = parts - 1;
  for (int64_t part = 1; part < parts; ++part) {
    Worker& worker = *workers_[part - 1];
    worker.task = &task;
    worker.begin = count * part / parts;
    worker.end = count * (part + 1) / parts;
    worker.wake.notify_one();
  }
  lock.unlock();
  task(0, count / parts);
  lock.lock();
  done_.wait(lock, [this] { return pending_ == 0; });
}

}  // namespace tinychat
