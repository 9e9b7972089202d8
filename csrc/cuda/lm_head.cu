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

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cuda/activation.cuh"
#include "cuda/candidate.cuh"
#include "cuda/dispatch.cuh"
#include "cuda/launchers.h"
#include "cuda/prim.cuh"
#include "cuda/rms_norm.cuh"
#include "cuda/warp.cuh"

namespace tinychat {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
// Of a tile, for each warp: the more there are, the less often x is loaded and steps are counted.
constexpr int kRows = kCandidateTile / kWarps;

// 32 KB of weights are on their way for each block, of which two or more share an SM. 40 KB hide
// the latency of an H200's memory, 10 KB that of an Orin's.
constexpr int kStages = 4;
constexpr int kRingChunks = kStages * kRows * kThreads;

// Rows of `chunks` times 16 bytes.
struct Weight {
  const uint4* values;
  int64_t rows;
  int64_t tiles;
  int chunks;

  // The thread's row i of a tile. Behind the last row it is that one, for there must be something.
  __device__ int64_t row(int64_t tile, int i) const {
    return min(tile * kCandidateTile + threadIdx.x / kWarp * kRows + i, rows - 1);
  }
};

// The way of a thread through the weight, tile by tile; a step is one chunk of each of its rows. A
// thread reads only what it copied itself, so that the steps need no barrier.
class Ring {
 public:
  __device__ Ring(const Weight& weight, uint4* chunks)
      : weight_(weight), chunks_(chunks + threadIdx.x), tile_(blockIdx.x) {
    find_rows();
    for (int i = 0; i < kStages; ++i) begin_copy();
  }

  // Goes one step on. For the chunk that `chunk` counts in its row there are new ones, or none
  // where the row has ended.
  template <typename Use>
  __device__ void step(int chunk, Use use) {
    cp_async_wait<kStages - 1>();
    if (chunk < weight_.chunks) use(&chunks_[stage_ * kRows * kThreads]);
    begin_copy();
  }

 private:
  __device__ void find_rows() {
    for (int i = 0; i < kRows; ++i) {
      rows_[i] = &weight_.values[weight_.row(tile_, i) * weight_.chunks];
    }
  }

  // Into the stage of the oldest step, which has been read.
  __device__ void begin_copy() {
    const int chunk = first_ + threadIdx.x % kWarp;
    if (tile_ < weight_.tiles && chunk < weight_.chunks) {
      for (int i = 0; i < kRows; ++i) {
        cp_async_16(&chunks_[(stage_ * kRows + i) * kThreads], &rows_[i][chunk]);
      }
    }
    cp_async_commit();
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    first_ += kWarp;
    if (first_ >= weight_.chunks) {
      first_ = 0;
      tile_ += gridDim.x;
      find_rows();
    }
  }

  const Weight& weight_;
  uint4* chunks_;
  const uint4* rows_[kRows];
  int64_t tile_;
  int first_ = 0;
  int stage_ = 0;
};

// What one load of x moves. A chunk of an int8 weight meets four of these, any other chunk two.
template <typename T>
using Quad = Pack<T, 4>;

// RMSNorm, if it has a weight. y[i][c] is quad i of those that meet chunk c of the LM head's
// weight, kQuads in all, so that neighbours read neighbours whatever a chunk holds.
template <int kQuads, typename T>
__device__ void normalize(const Quad<T>* x, const Quad<T>* weight, float eps, int k, float4* y) {
  __shared__ float partial[kWarps];
  float squares = 0.0f;
  for (int i = threadIdx.x; i < k / 4; i += kThreads) {
    squares += sum_of_squares(load(&x[i]));
  }
  const float scale = rsqrtf(block_sum(squares, partial) / k + eps);
  for (int i = threadIdx.x; i < k / 4; i += kThreads) {
    Quad<T> quad = load(&x[i]);
    if (weight != nullptr) quad = scaled(quad, scale, load(&weight[i]));
    float values[4];
    for (int j = 0; j < 4; ++j) values[j] = static_cast<float>(quad.values[j]);
    y[i % kQuads * (k / 4 / kQuads) + i / kQuads] =
        make_float4(values[0], values[1], values[2], values[3]);
  }
}

template <typename W>
constexpr int kQuadsOf = 16 / sizeof(W) / 4;

// The chunk's values. An int8 q becomes the last byte of the float 2^23 + 128 + q: I2F, which the
// compiler would take, runs at a fourth of the rate that an H200's memory asks for.
template <typename W>
__device__ void unpack(const uint4& chunk, float (&values)[kQuadsOf<W> * 4]) {
  if constexpr (std::is_same_v<W, int8_t>) {
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    for (int i = 0; i < 16; ++i) {
      const uint32_t bytes = words[i / 4] ^ 0x80808080;
      const uint32_t bits = __byte_perm(bytes, 0x4b000000, 0x7440 | i % 4);
      values[i] = __uint_as_float(bits) - (0x1p23f + 128.0f);
    }
  } else {
    W weights[8];
    memcpy(weights, &chunk, sizeof(weights));
    for (int i = 0; i < 8; ++i) values[i] = static_cast<float>(weights[i]);
  }
}

template <typename W>
__device__ float dot(const uint4& chunk, const float4 (&x)[kQuadsOf<W>]) {
  float values[kQuadsOf<W> * 4];
  unpack<W>(chunk, values);
  float sum = 0.0f;
  for (int i = 0; i < kQuadsOf<W>; ++i) {
    sum += values[4 * i] * x[i].x;
    sum += values[4 * i + 1] * x[i].y;
    sum += values[4 * i + 2] * x[i].z;
    sum += values[4 * i + 3] * x[i].w;
  }
  return sum;
}

using TileLogits = float[kCandidateTile];

// For one warp.
__device__ void write_tile(const TileLogits& logits, int64_t tile, int64_t n,
                           const LogitsOutput& output) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = tile * kCandidateTile + lane % kCandidateTile;
  float logit = row < n ? logits[lane % kCandidateTile] : -INFINITY;
  if (output.softcap != 0.0f && row < n) logit = softcapped(logit, output.softcap);
  if (lane < kCandidateTile && row < n) output.logits[row] = logit;
  const Candidate best = best_of_lanes({logit, static_cast<int32_t>(row)}, kCandidateTile);
  if (lane == 0) output.best[tile] = best;
}

// Blocks stay and take tile after tile. W is int8_t where there are scales, else T.
template <typename T, typename W>
__global__ void __launch_bounds__(kThreads)
    lm_head_kernel(const Quad<T>* x, const Quad<T>* norm_weight, float norm_eps, Weight weight,
                   const float* scales, LogitsOutput output, int k) {
  constexpr int kQuads = kQuadsOf<W>;
  TINYCHAT_DYNAMIC_SHARED(uint4, chunks);
  __shared__ TileLogits logits[2];  // By turns, so that one barrier per tile is enough.
  grid_dependency_launch();
  Ring ring(weight, chunks);
  constexpr int kLineQuads = 128 / sizeof(Quad<T>);
  for (int i = threadIdx.x * kLineQuads; i < k / 4; i += kThreads * kLineQuads) {
    if (norm_weight != nullptr) prefetch_l2(&norm_weight[i]);
  }
  grid_dependency_wait();
  float4* normalized = reinterpret_cast<float4*>(chunks + kRingChunks);
  normalize<kQuads>(x, norm_weight, norm_eps, k, normalized);
  __syncthreads();

  const int lane = threadIdx.x % kWarp;
  int turn = 0;
  for (int64_t tile = blockIdx.x; tile < weight.tiles; tile += gridDim.x, turn ^= 1) {
    float sums[kRows] = {}, scale[kRows];
    for (int i = 0; i < kRows; ++i) {
      scale[i] = scales == nullptr ? 1.0f : scales[weight.row(tile, i)];
    }
    for (int first = 0; first < weight.chunks; first += kWarp) {
      const int chunk = first + lane;
      ring.step(chunk, [&](const uint4* rows) {
        float4 x_chunk[kQuads];
        for (int i = 0; i < kQuads; ++i) x_chunk[i] = normalized[i * weight.chunks + chunk];
        for (int i = 0; i < kRows; ++i) sums[i] += dot<W>(rows[i * kThreads], x_chunk);
      });
    }
    for (int i = 0; i < kRows; ++i) {
      const float logit = warp_sum(sums[i]) * scale[i];
      if (lane == 0) logits[turn][threadIdx.x / kWarp * kRows + i] = logit;
    }
    __syncthreads();
    if (threadIdx.x < kWarp) write_tile(logits[turn], tile, weight.rows, output);
  }
}

template <typename T, typename W>
void run(const void* x, const void* norm_weight, float norm_eps, const void* weight,
         const float* scales, const LogitsOutput& output, int64_t n, int64_t k, void* stream) {
  const auto kernel = lm_head_kernel<T, W>;
  const size_t shared_bytes = kRingChunks * sizeof(uint4) + k * sizeof(float);
  const Weight rows{static_cast<const uint4*>(weight), n, ceil_div(n, kCandidateTile),
                    static_cast<int>(k * sizeof(W) / sizeof(uint4))};
  const int64_t blocks = std::min<int64_t>(
      rows.tiles, resident_blocks("lm_head", kernel, kThreads, shared_bytes));
  launch_dependent("lm_head", kernel, static_cast<unsigned>(blocks), kThreads, shared_bytes,
                   stream, static_cast<const Quad<T>*>(x),
                   static_cast<const Quad<T>*>(norm_weight), norm_eps, rows, scales, output,
                   static_cast<int>(k));
}

}  // namespace

void lm_head(const void* x, const void* norm_weight, float norm_eps, const void* weight,
             const float* scales, const LogitsOutput& output, int64_t n, int64_t k, DType dtype,
             void* stream) {
  with_half_type("lm_head", dtype, [&](auto t) {
    using T = decltype(t);
    const auto run_as = scales == nullptr ? run<T, T> : run<T, int8_t>;
    run_as(x, norm_weight, norm_eps, weight, scales, output, n, k, stream);
  });
}

}  // namespace tinychat
