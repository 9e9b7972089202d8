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

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace tinychat {

// How many threads some work is worth: one for each min_per_thread of it or part thereof, at most
// num_threads, where 0 stands for the processors that this process may run on.
int threads_for(int64_t work, int64_t min_per_thread, int num_threads);

// Worker threads that sleep on a condition variable between calls. They do not spin: on a robot
// the other cores belong to other processes, and a spinning worker that loses its core stalls all.
class ThreadPool {
 public:
  using Task = std::function<void(int64_t begin, int64_t end)>;

  // The process's only pool, made on first use and again in a forked child, where the parent's
  // workers do not exist. It is never destroyed, because its workers run until the process ends.
  static ThreadPool& instance();

  // Splits [0, count) into num_threads contiguous ranges, calls the task once for each, the first
  // on the calling thread, and returns when all are done. Calls from several threads at once take
  // turns. The task must not throw and must not call parallel_for.
  void parallel_for(int64_t count, int num_threads, const Task& task);

 private:
  struct Worker {
    std::condition_variable wake;
    const Task* task = nullptr;  // Null while there is nothing to do.
    int64_t begin = 0;
    int64_t end = 0;
  };

  ThreadPool();
  void add_worker();
  void work(Worker& worker);

  const pid_t owner_;
  std::mutex caller_mutex_;  // Held through a whole parallel_for; guards workers_.
  std::mutex mutex_;         // Guards what the workers hold, and pending_.
  std::condition_variable done_;
  int64_t pending_ = 0;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace tinychat
