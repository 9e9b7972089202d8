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

#include "cuda/attention.cuh"

namespace tinychat {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTokens = kWarps * kQueryRows;
constexpr int kStages = 2;

struct Prefill {
  const void* q;
  KvCache cache;
  void* out;
  int tokens;
  int heads;
  Scores scores;  // in_log2
};

// A block takes kTokens tokens of a head, a warp 16 of them.
struct Task {
  int token;    // the warp's first
  int tokens;   // of the warp, below 1 where they have come to an end
  int start;    // position of token 0
  int visible;  // the last position that the warp sees, -1 where it has no tokens
  int begin;    // of the positions that the block sees
  int end;      //

  // Where in a tile, or behind or before it, the token of a row of the warp stands.
  __device__ int own(int row, int tile_first) const {
    return min(start + token + row, end - 1) - tile_first;
  }
};

// In a head the blocks that see the most come first.
__device__ Task task_of(const Prefill& prefill) {
  const int block_token = (gridDim.x - 1 - blockIdx.x) * kTokens;
  const int token = block_token + threadIdx.x / kWarp * kQueryRows;
  const int tokens = min(prefill.tokens - token, kQueryRows);
  const int start = prefill.cache.state->position;
  const int end = min(start + min(block_token + kTokens, prefill.tokens),
                      static_cast<int>(prefill.cache.max_seq_len));
  const int visible = tokens < 1 ? -1 : min(start + token + tokens, end) - 1;
  const int begin = max(0, min(start + block_token, end - 1) - prefill.scores.window + 1);
  return {token, tokens, start, visible, begin, end};
}

template <typename T>
__device__ T* row_of(T* rows, const Prefill& prefill, int token) {
  return rows + (int64_t{token} * prefill.heads + blockIdx.y) * prefill.cache.head_dim;
}

template <typename T, typename Attention>
__device__ void store(const Attention& attention, const Prefill& prefill, const Task& task) {
  const int row = threadIdx.x % kWarp / 4;
  attention.each_pair(prefill.cache.head_dim, [&](int i, int dim, float2 pair) {
    if (row + 8 * i >= task.tokens) return;
    T* out = row_of(static_cast<T*>(prefill.out), prefill, task.token + row + 8 * i);
    const float scale = 1.0f / attention.sum(i);
    *reinterpret_cast<uint32_t*>(out + dim) = pack<T>(pair.x * scale, pair.y * scale);
  });
}

template <typename T, typename Kv, int kHeadDim, bool kBent>
struct Shapes {
  static constexpr int kPositions = kHeadDim > 128 ? 32 : 64;
  // On a multiprocessor at a time, as far as registers go.
  static constexpr int kBlocks = kHeadDim <= 80 && sizeof(Kv) == sizeof(T) ? 3 : 2;
  using Tiles = Tile<Kv, kHeadDim, kPositions>;
  using Attention = WarpAttention<T, Kv, kHeadDim, kPositions, kBent>;
  struct Stage {
    Tiles keys;
    Tiles values;
  };
  struct Shared {
    Stage stages[kStages];
    typename Attention::Kept kept[kWarps];
  };
};

template <typename T, typename Kv, int kHeadDim, bool kBent>
__global__ void __launch_bounds__(kThreads, Shapes<T, Kv, kHeadDim, kBent>::kBlocks)
    prefill_attention_kernel(Prefill prefill) {
  using Shape = Shapes<T, Kv, kHeadDim, kBent>;
  constexpr int kPositions = Shape::kPositions;
  TINYCHAT_DYNAMIC_SHARED(typename Shape::Shared, shared);
  auto& stages = shared->stages;
  const KvCache& cache = prefill.cache;
  const Task task = task_of(prefill);
  const int kv_head = blockIdx.y / (prefill.heads / static_cast<int>(cache.kv_heads));
  const auto k = kv_rows<Kv>(cache, cache.k, cache.k_scale, kv_head);
  const auto v = kv_rows<Kv>(cache, cache.v, cache.v_scale, kv_head);
  const auto load = [&](int step) {
    const int first = step * kPositions;
    if (first < task.end) {
      load_tile<kThreads>(stages[step % kStages].keys, k, first, task.end, threadIdx.x);
      load_tile<kThreads>(stages[step % kStages].values, v, first, task.end, threadIdx.x);
    }
    cp_async_commit();
  };
  if (k.head_dim < kHeadDim) {
    clear(stages, kStages, threadIdx.x, kThreads);
    __syncthreads();
  }
  const int first_step = task.begin / kPositions;
  load(first_step);
  typename Shape::Attention attention(
      row_of(static_cast<const T*>(prefill.q), prefill, task.token),
      int64_t{prefill.heads} * k.head_dim, task.tokens, k.head_dim,
      shared->kept[threadIdx.x / kWarp]);
  const int row = threadIdx.x % kWarp / 4;
  const int head[2] = {static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.y)};
  for (int step = first_step; step * kPositions < task.end; ++step) {
    const int first = step * kPositions;
    cp_async_wait<0>();
    __syncthreads();
    load(step + 1);
    if (first > task.visible) continue;
    if (task.own(0, first) - (kPositions - 1) >= prefill.scores.window) continue;
    const auto& stage = stages[step % kStages];
    const int own[2] = {task.own(row, first), task.own(row + 8, first)};
    attention.add_keys(stage.keys, k.skew, prefill.scores, own, head);
    attention.add_values(stage.values, v.skew);
  }
  attention.finish();
  store<T>(attention, prefill, task);
}

template <typename T, typename Kv, int kHeadDim, bool kBent>
void run(const Prefill& prefill, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(prefill.tokens, kTokens)), prefill.heads);
  launch("prefill_attention", prefill_attention_kernel<T, Kv, kHeadDim, kBent>, grid, kThreads,
         sizeof(typename Shapes<T, Kv, kHeadDim, kBent>::Shared), stream, prefill);
}

}  // namespace

void prefill_attention(const void* q, const KvCache& cache, void* out, int64_t tokens,
                       int64_t heads, const Scores& scores, DType dtype, void* stream) {
  const Prefill prefill = {q, cache, out, static_cast<int>(tokens), static_cast<int>(heads),
                           in_log2(scores)};
  const auto start = [&](auto t, auto kv, auto head_dim, auto bent) {
    run<decltype(t), decltype(kv), head_dim(), bent()>(prefill, stream);
  };
  with_attention_types("prefill_attention", cache, scores, dtype, start);
}

}  // namespace tinychat
