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

// What the lanes of a warp, and the warps of a block, do together.

#pragma once

#include <algorithm>

#include "cuda/runtime.cuh"

namespace tinychat {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;  // of a block

__device__ inline int lane() { return threadIdx.x % kWarp; }
__device__ inline int warp() { return threadIdx.x / kWarp; }

// Whole warps that have a thread for each of `items`, as far as a block can.
inline int threads_for(int items) {
  return std::min<int>(kMaxThreads, ceil_div(items, kWarp) * kWarp);
}

// The sum over the warp, for each lane of it.
template <typename T>
__device__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(~0u, value, distance);
  }
  return value;
}

// The sum over the block, for every thread of it. `partial` is shared memory for one call, with
// room for each warp.
template <int kWarps>
__device__ float block_sum(float value, float (&partial)[kWarps]) {
  value = warp_sum(value);
  if (lane() == 0) partial[warp()] = value;
  __syncthreads();
  // Every warp adds the partial sums up, which spares a second barrier.
  const int warps = blockDim.x / kWarp;
  return warp_sum(lane() < warps ? partial[lane()] : 0.0f);
}

}  // namespace tinychat
