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

#include "primitives.h"

#include "cuda/prim.cuh"

namespace tinychat {
namespace {

template <typename T>
__global__ void matmul_16_kernel(const T* a, const T* b, float* d) {
  __shared__ uint4 tiles[2][32];
  const int lane = threadIdx.x;
  tiles[0][lane] = reinterpret_cast<const uint4*>(a)[lane];
  tiles[1][lane] = reinterpret_cast<const uint4*>(b)[lane];
  __syncwarp();
  uint32_t a_fragment[4], b_fragments[4];
  const int chunk = lane % 16 * 2 + lane / 16;  // Row lane % 16, its first or second half.
  ldmatrix_x4(a_fragment, &tiles[0][chunk]);
  ldmatrix_x4_trans(b_fragments, &tiles[1][chunk]);
  for (int half_of_d = 0; half_of_d < 2; ++half_of_d) {
    float sums[4] = {};
    const uint32_t b_fragment[2] = {b_fragments[2 * half_of_d], b_fragments[2 * half_of_d + 1]};
    mma_m16n8k16<T>(sums, a_fragment, b_fragment);
    for (int i = 0; i < 4; ++i) {
      d[(lane / 4 + i / 2 * 8) * 16 + half_of_d * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
  }
}

__global__ void load_matrices_kernel(const uint4* matrices, uint32_t* fragments,
                                     bool transposed) {
  __shared__ uint4 rows[32];
  rows[threadIdx.x] = matrices[threadIdx.x];
  __syncwarp();
  uint32_t fragment[4];
  if (transposed) {
    ldmatrix_x4_trans(fragment, &rows[threadIdx.x]);
  } else {
    ldmatrix_x4(fragment, &rows[threadIdx.x]);
  }
  for (int i = 0; i < 4; ++i) fragments[threadIdx.x * 4 + i] = fragment[i];
}

constexpr int kStages = 3;

__global__ void ring_copy_kernel(const uint4* in, uint4* out, int steps) {
  TINYCHAT_DYNAMIC_SHARED(uint4, ring);
  const int threads = blockDim.x;
  const int thread = threadIdx.x;
  const auto begin_step = [&](int step) {
    if (step < steps) {
      cp_async_16(&ring[step % kStages * threads + thread], &in[step * threads + thread]);
    }
    cp_async_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) begin_step(step);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    begin_step(step + kStages - 1);
    out[step * threads + thread] = ring[step % kStages * threads + threads - 1 - thread];
  }
}

__global__ void copy_and_look_kernel(const uint4* in, uint4* before, uint4* after) {
  __shared__ uint4 chunks[32];
  const int lane = threadIdx.x;
  cp_async_16(&chunks[lane], &in[lane]);
  cp_async_commit();
  before[lane] = chunks[lane];
  cp_async_wait<0>();
  after[lane] = chunks[lane];
}

__global__ void handed_over_copy_kernel(const uint4* in, uint4* out) {
  __shared__ uint4 chunks[64];
  constexpr int kLoaded = 1;
  constexpr int kStored = 2;
  grid_dependency_launch();
  grid_dependency_wait();
  const int thread = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    const int64_t first = (int64_t{blockIdx.x} * 2 + round) * 64;
    if (thread < 64) {
      if (round > 0) named_barrier_wait(kStored, 128);
      prefetch_l2(&in[first + thread]);
      chunks[thread] = load_streaming(&in[first + thread]);
      named_barrier_arrive(kLoaded, 128);
    } else {
      named_barrier_wait(kLoaded, 128);
      out[first + 127 - thread] = chunks[127 - thread];
      if (round == 0) named_barrier_arrive(kStored, 128);
    }
  }
}

__global__ void shuffle_32_kernel(const int* in, int* out) {
  const int lane = threadIdx.x;
  const int value = in[lane];
  out[lane] = __shfl_sync(~0u, value, 3);
  out[32 + lane] = __shfl_xor_sync(~0u, value, 5);
  out[64 + lane] = __shfl_down_sync(~0u, value, 2);
  out[96 + lane] = __shfl_down_sync(~0u, value, 2, 8);
  out[128 + lane] = static_cast<int>(__ballot_sync(~0u, value % 2));
}

template <typename T>
void run_matmul_16(const void* a, const void* b, void* d, void* stream) {
  launch("matmul_16", matmul_16_kernel<T>, 1, 32, 0, stream, static_cast<const T*>(a),
         static_cast<const T*>(b), static_cast<float*>(d));
}

}  // namespace

void matmul_16(const void* a, const void* b, void* d, DType dtype, void* stream) {
  (dtype == DType::kFloat16 ? run_matmul_16<half> : run_matmul_16<__nv_bfloat16>)(a, b, d, stream);
}

void load_matrices(const void* matrices, void* fragments, bool transposed, void* stream) {
  launch("load_matrices", load_matrices_kernel, 1, 32, 0, stream,
         static_cast<const uint4*>(matrices), static_cast<uint32_t*>(fragments), transposed);
}

void ring_copy(const void* in, void* out, int steps, void* stream) {
  constexpr int kThreads = 256;
  launch("ring_copy", ring_copy_kernel, 1, kThreads, kStages * kThreads * sizeof(uint4), stream,
         static_cast<const uint4*>(in), static_cast<uint4*>(out), steps);
}

void copy_and_look(const void* in, void* before, void* after, void* stream) {
  launch("copy_and_look", copy_and_look_kernel, 1, 32, 0, stream, static_cast<const uint4*>(in),
         static_cast<uint4*>(before), static_cast<uint4*>(after));
}

void handed_over_copy(const void* in, void* out, int blocks, void* stream) {
  launch("handed_over_copy", handed_over_copy_kernel, blocks, 128, 0, stream,
         static_cast<const uint4*>(in), static_cast<uint4*>(out));
}

void shuffle_32(const void* in, void* out, void* stream) {
  launch("shuffle_32", shuffle_32_kernel, 1, 32, 0, stream, static_cast<const int*>(in),
         static_cast<int*>(out));
}

}  // namespace tinychat
