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

#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tinychat {

// How many threads some work is worth: one for each min_per_thread of it or part thereof, at most
// num_threads, where 0 stands for the processors that this process may run on.
int threads_for(int64_t work, int64_t min_per_thread, int num_threads);

// Worker threads for calls that follow one another closely. Between two of them a worker spins for
// a moment, since to wake one takes longer than a small call, and then sleeps: on a robot the
// other cores belong to other processes. Where one of those takes a core, the calls must not wait
// for a worker that has lost it: others do its work, and when it still kept a call waiting, the
// next ones do without workers for a while.
class ThreadPool {
 public:
  using Task = std::function<void(int64_t begin, int64_t end)>;

  // The process's only pool, made on first use and again in a forked child, where the parent's
  // workers do not exist. It is never destroyed, because its workers run until the process ends.
  static ThreadPool& instance();

  // Calls the task for ranges that make up [0, count), on num_threads threads, this one among
  // them, and returns when all are done. Each thread has a contiguous part, which it takes in
  // order, a piece at a time; one that is through takes pieces from the ends of the others'.
  // Calls from several threads at once take turns. The task must not throw and must not call
  // parallel_for.
  void parallel_for(int64_t count, int num_threads, const Task& task);

  // Keeps all workers, those to come too, to these processors.
  void set_processors(const std::vector<int>& processors);

 private:
  using Clock = std::chrono::steady_clock;

  // What is left of a thread's part: its first index in the upper half, its end in the lower.
  struct alignas(64) Part {
    std::atomic<uint64_t> left{0};
  };

  ThreadPool();
  void add_worker();
  void keep_to_processors(std::thread::native_handle_type worker) const;
  void work(int index);
  void run_parts(int index);
  bool take(Part& part, bool from_the_end, int64_t* begin, int64_t* end);
  void wait_for_workers();
  void note_wait(Clock::duration wait);

  const pid_t owner_;
  std::mutex caller_mutex_;  // Held through a whole parallel_for.
  std::vector<std::thread::native_handle_type> workers_;  // As all that the caller alone uses.
  std::vector<int> processors_;
  Clock::time_point alone_until_{};
  Clock::duration penalty_{};

  // A call: how many threads take part is in the lower bits of what grows with each call.
  std::atomic<uint32_t> call_{0};
  const Task* task_ = nullptr;
  int64_t piece_ = 1;
  std::unique_ptr<Part[]> parts_;
  std::atomic<int> running_{0};  // Workers that are not through.

  std::mutex mutex_;  // For those that sleep.
  std::condition_variable called_;
  std::condition_variable done_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> caller_sleeps_{false};
};

}  // namespace tinychat
