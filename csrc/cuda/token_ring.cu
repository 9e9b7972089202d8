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

// The host's end of the ring that the sampler writes.

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "cuda/launchers.h"
#include "cuda/runtime.cuh"

namespace tinychat {
namespace {

// A token that comes this soon is taken at once; else the core is left to others.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr auto kSleep = std::chrono::microseconds(20);
constexpr auto kQuery = std::chrono::milliseconds(1);

bool landed(const uint64_t* entry, int64_t number, int32_t* token) {
  const uint64_t found = __atomic_load_n(entry, __ATOMIC_ACQUIRE);
  *token = static_cast<int32_t>(found);
  return found >> 32 == static_cast<uint64_t>(number);
}

}  // namespace

int32_t wait_for_token(const uint64_t* ring, int ring_size, int64_t step, void* stream) {
  const uint64_t* entry = ring + step % ring_size;
  const auto start = std::chrono::steady_clock::now();
  auto query = start + kQuery;
  int32_t token;
  while (!landed(entry, step + 1, &token)) {
    const auto now = std::chrono::steady_clock::now();
    if (now < start + kSpin) continue;
    if (now >= query) {
      query = now + kQuery;
      if (stream_ended(stream) && !landed(entry, step + 1, &token)) {
        throw std::runtime_error("wait_for_token: expected token " + std::to_string(step) +
                                 " in the ring, and the stream ended without it");
      }
    }
    std::this_thread::sleep_for(kSleep);
  }
  return token;
}

}  // namespace tinychat
