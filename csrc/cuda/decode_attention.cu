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

constexpr int kPositions = 16;  // A tile, which is one warp's.
constexpr int kMinChunk = 64;   // The least positions that a split is made for.
constexpr int kMaxSplits = kWarp;  // A lane for each, and not too much for one block to merge.

// What a part of the positions gives for a query head: the maximum of its scores in units of log2,
// the softmax's sum, and from kHeader on the sums of its values, which are not divided by it.
constexpr int kHeader = 8;

// Per query head and split such a part, per group of query heads how many splits are done.
struct Workspace {
  int* done;     // [kv_heads, groups]
  float* parts;  // [heads, splits, kHeader + head_dim]
};

struct Decode {
  const void* q;
  KvCache cache;
  void* out;
  Workspace workspace;
  int heads_per_kv;
  int splits;
  Scores scores;  // in_log2
};

// What one block computes: a group of query heads over the positions of a split.
struct Task {
  int kv_head;
  int head;   // the first of the group
  int heads;  // up to kQueryRows
  int begin;  // of the positions
  int end;
  int length;
  int active_splits;
};

__device__ Task task_of(const Decode& decode) {
  const KvCache& cache = decode.cache;
  const int length = min(cache.state->position + 1, static_cast<int>(cache.max_seq_len));
  // With the first position of a window comes the tile that it is in, for copies are aligned.
  const int first = max(0, length - decode.scores.window) / kPositions * kPositions;
  const int share = (length - first + decode.splits - 1) / decode.splits;
  const int chunk = max(kMinChunk, (share + kPositions - 1) / kPositions * kPositions);
  const int begin = first + blockIdx.x * chunk;
  const int row = blockIdx.y * kQueryRows;
  const int kv_head = blockIdx.z;
  return {kv_head, kv_head * decode.heads_per_kv + row,
          min(decode.heads_per_kv - row, kQueryRows), begin, min(begin + chunk, length), length,
          (length - first + chunk - 1) / chunk};
}

template <typename T, typename Kv, int kHeadDim, bool kBent>
struct Shapes {
  // Rings of which an Orin's multiprocessor holds 8, or 2 of a long head's.
  static constexpr int kWarps = kHeadDim > 128 ? 2 : 4;
  static constexpr int kStages = kHeadDim > 80 ? 2 : kHeadDim > 64 ? 3 : 4;
  using Attention = WarpAttention<T, Kv, kHeadDim, kPositions, kBent>;
  struct Ring {
    Tile<Kv, kHeadDim, kPositions> keys[kStages];
    Tile<Kv, kHeadDim, kPositions> values[kStages];
  };
  // Of the warps, in place of the rings. Each part begins 8 banks behind the one before.
  using Parts = float[kWarps][kQueryRows][kHeader + kHeadDim];
  struct Shared {
    union {
      Ring rings[kWarps];
      Parts parts;
    };
    typename Attention::Kept kept[kWarps];
  };
};

__device__ int warps() { return blockDim.x / kWarp; }

// One warp's tiles. Keys and values go by turns, so that each place in the ring is filled again as
// soon as it has been read.
template <int kHeadDim, int kStages, typename Kv, typename Ring, typename Attention>
__device__ void attend(const Decode& decode, const Task& task, Ring& ring, Attention& attention) {
  const KvCache& cache = decode.cache;
  const auto k = kv_rows<Kv>(cache, cache.k, cache.k_scale, task.kv_head);
  const auto v = kv_rows<Kv>(cache, cache.v, cache.v_scale, task.kv_head);
  const int lane = threadIdx.x % kWarp;
  const int begin = task.begin + warp() * kPositions;
  const int stride = warps() * kPositions;
  const auto load = [&](auto& tiles, const KvRows<Kv>& rows, int step) {
    const int first = begin + step * stride;
    if (first < task.end) load_tile<kWarp>(tiles[step % kStages], rows, first, task.end, lane);
    cp_async_commit();
  };
  const auto wait = [] {
    cp_async_wait<2 * kStages - 1>();
    __syncwarp();
  };
  if (k.head_dim < kHeadDim) {
    clear(&ring, 1, lane, kWarp);
    __syncwarp();
  }
  for (int step = 0; step < kStages; ++step) {
    load(ring.keys, k, step);
    load(ring.values, v, step);
  }
  const int row = lane / 4;
  const int last_head = task.head + task.heads - 1;
  const int head[2] = {min(task.head + row, last_head), min(task.head + row + 8, last_head)};
  for (int step = 0; begin + step * stride < task.end; ++step) {
    const int own = task.length - 1 - begin - step * stride;
    wait();
    attention.add_keys(ring.keys[step % kStages], k.skew, decode.scores, {own, own}, head);
    __syncwarp();
    load(ring.keys, k, step + kStages);
    wait();
    attention.add_values(ring.values[step % kStages], v.skew);
    __syncwarp();
    load(ring.values, v, step + kStages);
  }
}

// A warp's part of each head of the group.
template <typename Attention, typename Parts>
__device__ void keep(Attention& attention, int heads, int head_dim, Parts& parts) {
  auto& mine = parts[warp()];
  const int row = threadIdx.x % kWarp / 4;
  attention.finish();
  for (int i = 0; i < 2; ++i) {
    if (threadIdx.x % 4 != 0 || row + 8 * i >= heads) continue;
    mine[row + 8 * i][0] = attention.max(i);
    mine[row + 8 * i][1] = attention.sum(i);
  }
  attention.each_pair(head_dim, [&](int i, int dim, float2 pair) {
    if (row + 8 * i >= heads) return;
    *reinterpret_cast<float2*>(&mine[row + 8 * i][kHeader + dim]) = pair;
  });
}

__device__ float warp_max(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, distance));
  }
  return value;
}

// Adds up to 32 parts of a head up in their order, each `stride` floats behind the one before.
// Calls store(dim, four of the sums, the softmax's maximum and sum).
template <typename Store>
__device__ void merge(const float* parts, int64_t stride, int count, int head_dim, Store store) {
  const int lane = threadIdx.x % kWarp;
  const float max = lane < count ? parts[lane * stride] : -INFINITY;
  const float sum = lane < count ? parts[lane * stride + 1] : 0.0f;
  const float top = warp_max(max);
  // A part without positions has no maximum. (One with NaN has a sum, and it is NaN.)
  const float weight = sum == 0.0f ? 0.0f : exp2f(max - top);
  const float2 softmax = make_float2(top, warp_sum(sum * weight));
  for (int first = 0; first < head_dim; first += 4 * kWarp) {
    const int dim = first + 4 * lane;
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float factor = __shfl_sync(~0u, weight, i);
      if (dim >= head_dim) continue;
      const float4 x = *reinterpret_cast<const float4*>(&parts[i * stride + kHeader + dim]);
      total = make_float4(total.x + factor * x.x, total.y + factor * x.y, total.z + factor * x.z,
                          total.w + factor * x.w);
    }
    if (dim < head_dim) store(dim, total, softmax);
  }
}

template <typename T>
__device__ void write(const Decode& decode, int head, int dim, float4 total, float2 softmax) {
  const float scale = 1.0f / softmax.y;
  T* out = static_cast<T*>(decode.out) + head * decode.cache.head_dim + dim;
  *reinterpret_cast<uint2*>(out) = make_uint2(pack<T>(total.x * scale, total.y * scale),
                                              pack<T>(total.z * scale, total.w * scale));
}

__device__ float* part_of(const Decode& decode, int head, int split) {
  return decode.workspace.parts +
         (int64_t{head} * decode.splits + split) * (kHeader + decode.cache.head_dim);
}

// Unites the warps' parts; a split that is not the only one leaves what others have to add.
template <typename T, typename Parts>
__device__ void merge_warps(const Decode& decode, const Task& task, const Parts& parts) {
  constexpr int64_t kStride = sizeof(parts[0]) / sizeof(float);
  const int head_dim = static_cast<int>(decode.cache.head_dim);
  for (int row = warp(); row < task.heads; row += warps()) {
    const int head = task.head + row;
    float* part = part_of(decode, head, blockIdx.x);
    merge(parts[0][row], kStride, warps(), head_dim, [&](int dim, float4 total, float2 softmax) {
      if (task.active_splits == 1) return write<T>(decode, head, dim, total, softmax);
      if (dim == 0) *reinterpret_cast<float2*>(part) = softmax;
      *reinterpret_cast<float4*>(&part[kHeader + dim]) = total;
    });
  }
}

// Says whether the block is the last of its group's, which then sees what the others left. It has
// set the count back for the next launch.
__device__ bool is_last(const Decode& decode, int splits) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* done = &decode.workspace.done[blockIdx.z * gridDim.y + blockIdx.y];
    last = atomicAdd(done, 1) == splits - 1;
    if (last) *done = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

template <typename T>
__device__ void merge_splits(const Decode& decode, const Task& task) {
  const int head_dim = static_cast<int>(decode.cache.head_dim);
  for (int row = warp(); row < task.heads; row += warps()) {
    const int head = task.head + row;
    merge(part_of(decode, head, 0), kHeader + head_dim, task.active_splits, head_dim,
          [&](int dim, float4 total, float2 softmax) {
            write<T>(decode, head, dim, total, softmax);
          });
  }
}

template <typename T, typename Kv, int kHeadDim, bool kBent>
__global__ void __launch_bounds__(Shapes<T, Kv, kHeadDim, kBent>::kWarps * kWarp, 2)
    decode_attention_kernel(Decode decode) {
  using Shape = Shapes<T, Kv, kHeadDim, kBent>;
  TINYCHAT_DYNAMIC_SHARED(typename Shape::Shared, shared);
  grid_dependency_launch();
  grid_dependency_wait();
  const Task task = task_of(decode);
  if (static_cast<int>(blockIdx.x) >= task.active_splits) return;
  const int head_dim = static_cast<int>(decode.cache.head_dim);
  typename Shape::Attention attention(
      static_cast<const T*>(decode.q) + int64_t{task.head} * head_dim, head_dim, task.heads,
      head_dim, shared->kept[warp()]);
  attend<kHeadDim, Shape::kStages, Kv>(decode, task, shared->rings[warp()], attention);
  __syncthreads();
  keep(attention, task.heads, head_dim, shared->parts);
  __syncthreads();
  merge_warps<T>(decode, task, shared->parts);
  if (task.active_splits == 1 || !is_last(decode, task.active_splits)) return;
  merge_splits<T>(decode, task);
}

// How a launch is cut, and with it the workspace.
struct Grid {
  int64_t groups;  // of query heads, per KV head
  int64_t splits;  // of the positions: as many as run at a time

  Grid(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t max_seq_len)
      : groups(ceil_div(heads / kv_heads, kQueryRows)) {
    const int64_t resident = (head_dim > 128 ? 1 : 2) * multiprocessors();
    splits = std::min(resident / (kv_heads * groups), ceil_div(max_seq_len, kMinChunk));
    splits = std::clamp<int64_t>(splits, 1, kMaxSplits);
  }
};

// The bytes of Workspace::done, after which the parts begin.
int64_t done_bytes(int64_t kv_heads, int64_t groups) {
  return ceil_div(kv_heads * groups * sizeof(int), 16) * 16;
}

template <typename T, typename Kv, int kHeadDim, bool kBent>
void run(const Decode& decode, const Grid& grid, void* stream) {
  using Shape = Shapes<T, Kv, kHeadDim, kBent>;
  launch_dependent("decode_attention", decode_attention_kernel<T, Kv, kHeadDim, kBent>,
                   dim3(grid.splits, grid.groups, decode.cache.kv_heads), Shape::kWarps * kWarp,
                   sizeof(typename Shape::Shared), stream, decode);
}

}  // namespace

int64_t decode_attention_workspace(int64_t heads, int64_t kv_heads, int64_t head_dim,
                                   int64_t max_seq_len) {
  const Grid grid(heads, kv_heads, head_dim, max_seq_len);
  const int64_t part_bytes = (kHeader + head_dim) * sizeof(float);
  return done_bytes(kv_heads, grid.groups) + heads * grid.splits * part_bytes;
}

void decode_attention(const void* q, const KvCache& cache, void* out, void* workspace,
                      int64_t heads, const Scores& scores, DType dtype, void* stream) {
  const Grid grid(heads, cache.kv_heads, cache.head_dim, cache.max_seq_len);
  char* parts = static_cast<char*>(workspace) + done_bytes(cache.kv_heads, grid.groups);
  const Decode decode = {q, cache, out,
                         {static_cast<int*>(workspace), reinterpret_cast<float*>(parts)},
                         static_cast<int>(heads / cache.kv_heads),
                         static_cast<int>(grid.splits), in_log2(scores)};
  const auto start = [&](auto t, auto kv, auto head_dim, auto bent) {
    run<decltype(t), decltype(kv), head_dim(), bent()>(decode, grid, stream);
  };
  with_attention_types("decode_attention", cache, scores, dtype, start);
}

}  // namespace tinychat
