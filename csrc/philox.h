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

// The random numbers of both samplers: the same seed gives the same ones on a GPU and on the CPU.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TINYCHAT_HOST_DEVICE __host__ __device__
#else
#define TINYCHAT_HOST_DEVICE
#endif

namespace tinychat {

// Philox 4x32-10 (Salmon et al., Parallel random numbers, 2011): the first 32 bits for a counter.
TINYCHAT_HOST_DEVICE inline uint32_t philox(uint32_t counter, uint32_t key_low,
                                            uint32_t key_high) {
  uint32_t words[4] = {counter, 0, 0, 0};
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xd2511f53} * words[0];
    const uint64_t second = uint64_t{0xcd9e8d57} * words[2];
    words[0] = static_cast<uint32_t>(second >> 32) ^ words[1] ^ key_low;
    words[1] = static_cast<uint32_t>(second);
    words[2] = static_cast<uint32_t>(first >> 32) ^ words[3] ^ key_high;
    words[3] = static_cast<uint32_t>(first);
    key_low += 0x9e3779b9;
    key_high += 0xbb67ae85;
  }
  return words[0];
}

}  // namespace tinychat

#undef TINYCHAT_HOST_DEVICE
