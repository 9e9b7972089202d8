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

#include <cmath>
#include <cstring>

#include "cuda/kv_rows.cuh"
#include "cuda/launchers.h"
#include "cuda/pack.cuh"
#include "cuda/prim.cuh"
#include "cuda/warp.cuh"

namespace tinychat {
namespace {

constexpr int kThreads = 128;
constexpr int kSize = 4;  // Values of one load; a head_dim is a multiple of two loads.
constexpr float kMaxCode = 127.0f;

static_assert(kMaxHeadDim == 2 * kSize * kWarp, "a warp's lanes hold a row");

struct RopeAppend {
  const void* qkv;
  bool permuted;
  void* q;
  KvCache cache;
  HeadNorm norm;
  Rotary rotary;
  int tokens;
  int heads;
};

// What a lane has of a row: kSize values of its first half, and those head_dim / 2 further. Lanes
// that are not needed have zeros.
struct Values {
  float low[kSize] = {};
  float high[kSize] = {};
};

struct Lane {
  int half;  // head_dim / 2
  int first;
  bool needed;
};

__device__ Lane lane_of(int head_dim) {
  const int first = threadIdx.x % kWarp * kSize;
  return {head_dim / 2, first, first < head_dim / 2};
}

template <typename T>
__device__ void load(const T* row, float (&values)[kSize]) {
  const uint2 bits = *reinterpret_cast<const uint2*>(row);
  T rounded[kSize];
  memcpy(rounded, &bits, sizeof(bits));
  for (int i = 0; i < kSize; ++i) values[i] = static_cast<float>(rounded[i]);
}

// As reference.rms_norm, over the lanes of a warp.
template <typename T>
__device__ void normalize(Values& x, const T* weight, float eps, const Lane& lane) {
  Values weights;
  float squares = 0.0f;
  if (lane.needed) {
    load(weight + lane.first, weights.low);
    load(weight + lane.half + lane.first, weights.high);
  }
  for (int i = 0; i < kSize; ++i) squares += x.low[i] * x.low[i] + x.high[i] * x.high[i];
  const float scale = rsqrtf(warp_sum(squares) / (2 * lane.half) + eps);
  for (int i = 0; i < kSize; ++i) {
    x.low[i] = static_cast<float>(T(static_cast<float>(T(x.low[i] * scale)) * weights.low[i]));
    x.high[i] = static_cast<float>(T(static_cast<float>(T(x.high[i] * scale)) * weights.high[i]));
  }
}

// Neither product is fused with the difference or the sum: the reference rounds each.
template <typename T>
__device__ void rotate(Values& x, const float* cos, const float* sin) {
  const float4 cosines = *reinterpret_cast<const float4*>(cos);
  const float4 sines = *reinterpret_cast<const float4*>(sin);
  const float c[kSize] = {cosines.x, cosines.y, cosines.z, cosines.w};
  const float s[kSize] = {sines.x, sines.y, sines.z, sines.w};
  for (int i = 0; i < kSize; ++i) {
    const float low = __fsub_rn(__fmul_rn(x.low[i], c[i]), __fmul_rn(x.high[i], s[i]));
    const float high = __fadd_rn(__fmul_rn(x.high[i], c[i]), __fmul_rn(x.low[i], s[i]));
    x.low[i] = static_cast<float>(T(low));
    x.high[i] = static_cast<float>(T(high));
  }
}

template <typename T>
__device__ void store(T* row, const float (&values)[kSize]) {
  *reinterpret_cast<uint2*>(row) =
      make_uint2(pack<T>(values[0], values[1]), pack<T>(values[2], values[3]));
}

template <typename T>
__device__ void store(T* row, const Lane& lane, const Values& x) {
  if (!lane.needed) return;
  store(row + lane.first, x.low);
  store(row + lane.half + lane.first, x.high);
}

// NaN is the largest.
__device__ float largest_magnitude(const Values& x) {
  unsigned bits = 0;
  for (int i = 0; i < kSize; ++i) {
    bits = max(bits, max(__float_as_uint(fabsf(x.low[i])), __float_as_uint(fabsf(x.high[i]))));
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    bits = max(bits, __shfl_xor_sync(~0u, bits, distance));
  }
  return __uint_as_float(bits);
}

__device__ uint32_t quantized(const float (&values)[kSize], float scale) {
  uint32_t codes = 0;
  for (int i = 0; i < kSize; ++i) {
    const float code = fminf(fmaxf(rintf(values[i] / scale), -kMaxCode), kMaxCode);
    codes |= (static_cast<int>(code) & 0xffu) << 8 * i;
  }
  return codes;
}

// As reference.quantize_kv.
__device__ void quantize(int8_t* row, half* row_scale, const Lane& lane, const Values& x) {
  const half rounded = half(largest_magnitude(x) / kMaxCode);
  const float scale = static_cast<float>(rounded);
  const bool usable = scale > 0.0f && scale < INFINITY;
  if (lane.first == 0) *row_scale = rounded;
  if (!lane.needed) return;
  *reinterpret_cast<uint32_t*>(row + lane.first) = usable ? quantized(x.low, scale) : 0;
  *reinterpret_cast<uint32_t*>(row + lane.half + lane.first) =
      usable ? quantized(x.high, scale) : 0;
}

// Appends a row to the keys or the values.
template <typename Kv>
__device__ void append(const KvRows<Kv>& rows, int position, const Lane& lane, const Values& x) {
  Kv* row = rows.values + int64_t{position} * rows.head_dim;
  if constexpr (sizeof(Kv) == 1) {
    quantize(row, rows.scales + position, lane, x);
  } else {
    store(row, lane, x);
  }
}

// A warp takes a head of a token.
template <typename T, typename Kv>
__global__ void __launch_bounds__(kThreads) rope_append_kernel(RopeAppend rope) {
  grid_dependency_launch();
  grid_dependency_wait();
  const KvCache& cache = rope.cache;
  const int kv_heads = static_cast<int>(cache.kv_heads);
  const int head_dim = static_cast<int>(cache.head_dim);
  const int rows = rope.heads + 2 * kv_heads;
  const int64_t item = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int token = static_cast<int>(item / rows);
  const int head = static_cast<int>(item % rows);
  const int position = cache.state->position + token;
  if (token >= rope.tokens || position >= cache.max_seq_len) return;

  const Lane lane = lane_of(head_dim);
  Values x;
  const bool rotated = head < rope.heads + kv_heads;
  if (lane.needed) {
    // In the tiles of QkvOutput 8 dimensions of the first half alternate with 8 of the second.
    const bool tiled = rope.permuted && rotated;
    const int first = tiled ? lane.first / 8 * 16 + lane.first % 8 : lane.first;
    const T* row = static_cast<const T*>(rope.qkv) + item * head_dim + first;
    load(row, x.low);
    load(row + (tiled ? 8 : lane.half), x.high);
  }
  if (rotated && rope.norm.q != nullptr) {
    const void* weight = head < rope.heads ? rope.norm.q : rope.norm.k;
    normalize(x, static_cast<const T*>(weight), rope.norm.eps, lane);
  }
  if (rotated && rope.rotary.cos != nullptr && lane.needed) {
    const int64_t angle = int64_t{position} * lane.half + lane.first;
    rotate<T>(x, rope.rotary.cos + angle, rope.rotary.sin + angle);
  }
  if (head < rope.heads) {
    store(static_cast<T*>(rope.q) + (int64_t{token} * rope.heads + head) * head_dim, lane, x);
  } else if (rotated) {
    const int kv_head = head - rope.heads;
    append(kv_rows<Kv>(cache, cache.k, cache.k_scale, kv_head), position, lane, x);
  } else {
    const int kv_head = head - rope.heads - kv_heads;
    append(kv_rows<Kv>(cache, cache.v, cache.v_scale, kv_head), position, lane, x);
  }
}

template <typename T, typename Kv>
void run(const RopeAppend& rope, void* stream) {
  const int64_t items = rope.tokens * (rope.heads + 2 * rope.cache.kv_heads);
  launch_dependent("rope_append", rope_append_kernel<T, Kv>,
                   static_cast<unsigned>(ceil_div(items, kThreads / kWarp)), kThreads, 0, stream,
                   rope);
}

}  // namespace

void rope_append(const void* qkv, bool permuted, void* q, const KvCache& cache,
                 const HeadNorm& norm, const Rotary& rotary, int64_t tokens, int64_t heads,
                 DType dtype, void* stream) {
  const RopeAppend rope = {qkv, permuted, q, cache, norm, rotary, static_cast<int>(tokens),
                           static_cast<int>(heads)};
  with_cache_types("rope_append", cache, dtype, [&](auto t, auto kv) {
    run<decltype(t), decltype(kv)>(rope, stream);
  });
}

}  // namespace tinychat
