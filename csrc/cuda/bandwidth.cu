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

// Reads memory and does nothing else: the bandwidth that other kernels are measured by.

#include "cuda/launchers.h"
#include "cuda/prim.cuh"

namespace tinychat {
namespace {

constexpr int kThreads = 512;
// Of 16 bytes each, in flight at a time. An H200 needs about 40 KB in flight per multiprocessor.
constexpr int kLoads = 8;
constexpr int kTile = kThreads * kLoads;

__device__ uint32_t folded(uint4 value) { return value.x ^ value.y ^ value.z ^ value.w; }

__global__ void __launch_bounds__(kThreads)
    read_bytes_kernel(const uint4* data, int64_t packs, uint32_t* sink) {
  uint32_t found = 0;
  const int64_t tiles = packs / kTile;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const uint4* first = data + tile * kTile + threadIdx.x;
    uint4 values[kLoads];
    for (int i = 0; i < kLoads; ++i) values[i] = load_streaming(first + i * kThreads);
    for (int i = 0; i < kLoads; ++i) found ^= folded(values[i]);
  }
  const int64_t rest = tiles * kTile + int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t i = rest; i < packs; i += int64_t{gridDim.x} * kThreads) {
    found ^= folded(load_streaming(data + i));
  }
  if (found == kReadMark) *sink = found;
}

}  // namespace

void read_bytes(const void* data, int64_t bytes, void* sink, void* stream) {
  const int blocks = resident_blocks("read_bytes", read_bytes_kernel, kThreads, 0);
  launch("read_bytes", read_bytes_kernel, blocks, kThreads, 0, stream,
         static_cast<const uint4*>(data), bytes / 16, static_cast<uint32_t*>(sink));
}

}  // namespace tinychat
