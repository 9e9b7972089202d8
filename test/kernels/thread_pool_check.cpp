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

// Calls of every size, from two threads at once, close together and after the workers fell asleep.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/thread_pool.h"

namespace {

// Each index is visited once: the slots are plain integers, so that a second visit is also a race.
void check_call(int64_t count, int threads) {
  std::vector<int> visits(count);
  tinychat::ThreadPool::instance().parallel_for(count, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++visits[i];
  });
  for (int64_t i = 0; i < count; ++i) {
    if (visits[i] == 1) continue;
    std::printf("count %ld, threads %d: index %ld visited %d times\n", static_cast<long>(count),
                threads, static_cast<long>(i), visits[i]);
    std::exit(1);
  }
}

void check_calls(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
      for (int threads : {1, 2, 3, 5}) check_call(count, threads);
    }
    if (round % 16 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

int main() {
  std::thread other(check_calls, 40);
  check_calls(40);
  other.join();
  std::puts("clean");
}
