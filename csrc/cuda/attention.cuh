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

// What the attention of one token and of many have in common: tiles of a KV cache in shared
// memory, and what a warp makes of them for 16 queries (the algorithm is FlashAttention-2's).

#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/activation.cuh"
#include "cuda/kv_rows.cuh"
#include "cuda/launchers.h"
#include "cuda/pack.cuh"
#include "cuda/prim.cuh"
#include "cuda/warp.cuh"

namespace tinychat {

constexpr int kQueryRows = 16;
constexpr float kLog2E = 1.44269504f;

// Scores as the kernels take them: scaled and capped in units of log2, and never without a window.
inline Scores in_log2(const Scores& scores) {
  return {scores.scale * kLog2E, scores.window == 0 ? INT_MAX : scores.window,
          scores.softcap * kLog2E, scores.slopes};
}

// kPositions of a KvRows that follow one another. A row takes an odd number of chunks of 16 bytes,
// so that the eight rows of an ldmatrix lie in different banks. What a head_dim below kHeadDim
// leaves of it has to be cleared. Scales come in whole chunks of the cache, which are multiples of
// 16 bytes there: the one of the first position is at [skew].
template <typename Kv, int kHeadDim, int kPositions>
struct Tile {
  static constexpr int kChunkValues = 16 / sizeof(Kv);
  static constexpr int kChunks = kHeadDim / kChunkValues;
  static constexpr int kScales = kPositions + 8;

  alignas(16) unsigned char rows[kPositions][(kChunks | 1) * 16];
  half scales[kScales];

  __device__ const unsigned char* chunk(int position, int chunk) const {
    return &rows[position][chunk * 16];
  }
};

template <typename Tiles>
__device__ void clear(Tiles* tiles, int count, int thread, int threads) {
  auto* chunks = reinterpret_cast<uint4*>(tiles);
  const int size = count * static_cast<int>(sizeof(Tiles) / 16);
  for (int i = thread; i < size; i += threads) chunks[i] = make_uint4(0, 0, 0, 0);
}

// Begins to copy a chunk of a row that has `left` more values. Rows of 8, 24, 40... int8 values do
// not begin at multiples of 16 bytes.
template <typename Kv>
__device__ void copy_chunk(unsigned char* to, const Kv* from, int head_dim, int left) {
  if constexpr (sizeof(Kv) == 1) {
    if (head_dim % 16 != 0) {
      for (int i = 0; i < min(left, 16); i += 8) {
        *reinterpret_cast<uint2*>(to + i) = *reinterpret_cast<const uint2*>(from + i);
      }
      return;
    }
  }
  cp_async_16(to, from);
}

// The scales of `count` positions from the first on, and zeros behind them.
template <typename To>
__device__ void load_scales(To& tile, const half* scales, int skew, int count, int thread,
                            int threads) {
  for (int chunk = thread; chunk < To::kScales / 8; chunk += threads) {
    const int first = chunk * 8 - skew;
    if (first + 8 <= count) {
      cp_async_16(&tile.scales[chunk * 8], scales + first);
      continue;
    }
    for (int i = first; i < first + 8; ++i) {
      tile.scales[skew + i] = i >= 0 && i < count ? scales[i] : half(0.0f);
    }
  }
}

// Begins to copy the positions from `first` on into a tile, with zeros from `end` on, whatever the
// cache holds there: it may be NaN.
template <int kThreads, typename Kv, int kHeadDim, int kPositions>
__device__ void load_tile(Tile<Kv, kHeadDim, kPositions>& tile, const KvRows<Kv>& source,
                          int first, int end, int thread) {
  using To = Tile<Kv, kHeadDim, kPositions>;
#pragma unroll 4
  for (int i = thread; i < kPositions * To::kChunks; i += kThreads) {
    const int row = i / To::kChunks;
    const int column = i % To::kChunks * To::kChunkValues;
    unsigned char* to = &tile.rows[row][i % To::kChunks * 16];
    if (first + row >= end) {
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    } else if (column < source.head_dim) {
      const Kv* from = source.values + int64_t{first + row} * source.head_dim + column;
      copy_chunk(to, from, source.head_dim, source.head_dim - column);
    }
  }
  if constexpr (sizeof(Kv) == 1) {
    load_scales(tile, source.scales + first, source.skew, end - first, thread, kThreads);
  }
}

// Bytes kLow and kHigh of four int8 values as a pair of T. The upper byte of 1024 in fp16, of 128
// in bf16, in front of the lower 7 bits of a value adds them to it; in front of the sign bit it
// makes what has to be taken off again, 128 more for a negative value.
template <typename T, int kLow, int kHigh>
__device__ uint32_t widen(uint32_t codes) {
  constexpr uint32_t kMagic = std::is_same_v<T, half> ? 0x64646464 : 0x43434343;
  const uint32_t pair = __byte_perm(codes, kMagic, 0x4040 | kHigh << 8 | kLow);
  return bits_of(__hsub2(pair_of<T>(pair & 0xff7fff7f), pair_of<T>(pair & 0xff80ff80)));
}

// The attention of kQueryRows queries of one KV head over the tiles that it is given, by one warp.
// A lane holds rows g = lane / 4 and g + 8. Products go along an mma's k in the order in which the
// cache's values come out of shared memory, queries and results in the same: see column(). Only if
// it is kBent are there a softcap and slopes: to others the room for them would cost registers.
template <typename T, typename Kv, int kHeadDim, int kPositions, bool kBent>
class WarpAttention {
 public:
  using Source = Tile<Kv, kHeadDim, kPositions>;

  // Beside a long head's results there are no registers for its queries. Their operands lie in
  // shared memory, where the lane that reads one has written it.
  static constexpr bool kKeeps = kHeadDim > 128;
  using Kept = uint4[kKeeps ? kHeadDim / 16 * kWarp : 1];

  // `rows` queries, `stride` values apart; the others are zeros. `kept` is the warp's own.
  __device__ WarpAttention(const T* q, int64_t stride, int rows, int head_dim, Kept& kept)
      : kept_(kept) {
#pragma unroll
    for (int j = 0; j < kHeadDim / 16; ++j) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane() / 4 + i % 2 * 8;
        const int dim = 16 * j + column(i / 2);
        const bool there = row < rows && dim < head_dim;
        a[i] = there ? *reinterpret_cast<const uint32_t*>(q + row * stride + dim) : 0;
      }
      memcpy(query(j), a, sizeof(a));
    }
  }

  // The scores of a tile. `own` are the positions, as counted from the tile's first, of the tokens
  // of the lane's rows, `head` is which query heads they are.
  __device__ void add_keys(const Source& keys, int skew, const Scores& rules, const int (&own)[2],
                           const int (&head)[2]) {
    TileScores scores = {};
    multiply_keys(keys, scores);
    apply_scales(keys, skew, rules.scale, scores);
    if (kBent) bend(rules, own, head, scores);
    // Rows g + 8 are those of later tokens, if not of the same.
    if (own[0] < kPositions - 1 || own[1] >= rules.window) mask(own, rules.window, scores);
    rescale(scores);
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights_[n][i] = exp2f(scores[n][i] - max_[i / 2]);
        sum_[i / 2] += weights_[n][i];
      }
    }
  }

  // The values of the tile whose keys were added last.
  __device__ void add_values(const Source& values, int skew) {
#pragma unroll
    for (int p = 0; p < kPositions / 16; ++p) {
      uint32_t weights[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &weights_[2 * p + i / 2][i % 2 * 2];
        const int first = skew + position(2 * p + i / 2, 0);
        weights[i] = pack<T>(pair[0] * scale_of(values, first),
                             pair[1] * scale_of(values, first + 1));
      }
      multiply_values(values, p, weights);
    }
  }

  // Adds up the sums of a row that its four lanes have. To be called once, after the last tile.
  __device__ void finish() {
    for (int i = 0; i < 2; ++i) {
      sum_[i] += __shfl_xor_sync(~0u, sum_[i], 1);
      sum_[i] += __shfl_xor_sync(~0u, sum_[i], 2);
    }
  }

  // Calls store(0 for row g or 1 for g + 8, dim, values dim and dim + 1 before the division by the
  // sum).
  template <typename Store>
  __device__ void each_pair(int head_dim, Store store) const {
#pragma unroll
    for (int j = 0; j < kHeadDim / 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int dim = 16 * j + column(i / 2);
        if (dim < head_dim) store(i % 2, dim, result(j, i % 2, i / 2));
      }
    }
  }

  // Of the rows g and g + 8, in units of log2.
  __device__ float max(int i) const { return max_[i]; }
  __device__ float sum(int i) const { return sum_[i]; }

 private:
  // As an mma leaves them: 8 positions each, of rows g, g, g + 8 and g + 8.
  using TileScores = float[kPositions / 8][4];

  static constexpr bool kInt8 = sizeof(Kv) == 1;

  // The first of the two columns of 16 that a lane holds on side 0 or 1 of an operand. In int8 the
  // four of a lane come in one word.
  __device__ static int column(int side) {
    return kInt8 ? lane() % 4 * 4 + side * 2 : lane() % 4 * 2 + side * 8;
  }

  __device__ static int position(int n, int i) { return 8 * n + lane() % 4 * 2 + i % 2; }

  __device__ static float scale_of(const Source& tile, int position) {
    return kInt8 ? static_cast<float>(tile.scales[position]) : 1.0f;
  }

  __device__ uint4* query(int j) { return kKeeps ? &kept_[j * kWarp + lane()] : &q_[j]; }

  __device__ void multiply_keys(const Source& keys, TileScores& scores) {
#pragma unroll
    for (int j = 0; j < kHeadDim / 16; ++j) {
      uint32_t a[4];
      memcpy(a, query(j), sizeof(a));
#pragma unroll
      for (int p = 0; p < kPositions / 16; ++p) {
        uint32_t b[4];
        load_keys(keys, p, j, b);
        mma_m16n8k16<T>(scores[2 * p], a, {b[0], b[1]});
        mma_m16n8k16<T>(scores[2 * p + 1], a, {b[2], b[3]});
      }
    }
  }

  // Operand b of 16 positions by 16 dimensions.
  __device__ static void load_keys(const Source& keys, int p, int j, uint32_t (&b)[4]) {
    if constexpr (kInt8) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto* row = keys.chunk(16 * p + 8 * i + lane() / 4, j);
        const uint32_t codes = reinterpret_cast<const uint32_t*>(row)[lane() % 4];
        b[2 * i] = widen<T, 0, 1>(codes);
        b[2 * i + 1] = widen<T, 2, 3>(codes);
      }
    } else {
      const int row = 16 * p + lane() / 16 * 8 + lane() % 8;
      ldmatrix_x4(b, keys.chunk(row, 2 * j + lane() / 8 % 2));
    }
  }

  __device__ void multiply_values(const Source& values, int p, const uint32_t (&weights)[4]) {
    const int row = 16 * p + lane() % 16;
    const int second = lane() / 16;
#pragma unroll
    for (int chunk = 0; chunk < Source::kChunks; chunk += 2) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, values.chunk(row, min(chunk + second, Source::kChunks - 1)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (chunk + i < Source::kChunks) add_chunk(chunk + i, weights, b[2 * i], b[2 * i + 1]);
      }
    }
  }

  // Positions 0-7 and 8-15 of one chunk. Of int8 values each register holds two dimensions: the
  // even ones make one operand, the odd ones another.
  __device__ void add_chunk(int chunk, const uint32_t (&weights)[4], uint32_t low, uint32_t high) {
    if constexpr (kInt8) {
      mma_m16n8k16<T>(out_[2 * chunk], weights, {widen<T, 0, 2>(low), widen<T, 0, 2>(high)});
      mma_m16n8k16<T>(out_[2 * chunk + 1], weights, {widen<T, 1, 3>(low), widen<T, 1, 3>(high)});
    } else {
      mma_m16n8k16<T>(out_[chunk], weights, {low, high});
    }
  }

  __device__ static void apply_scales(const Source& keys, int skew, float scale,
                                      TileScores& scores) {
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] *= scale_of(keys, skew + position(n, i)) * scale;
      }
    }
  }

  __device__ static void bend(const Scores& rules, const int (&own)[2], const int (&head)[2],
                              TileScores& scores) {
    float slope[2] = {};
    for (int i = 0; i < 2; ++i) {
      if (rules.slopes != nullptr) slope[i] = __ldg(&rules.slopes[head[i]]) * kLog2E;
    }
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (rules.softcap != 0.0f) scores[n][i] = softcapped(scores[n][i], rules.softcap);
        scores[n][i] -= slope[i / 2] * static_cast<float>(own[i / 2] - position(n, i));
      }
    }
  }

  // Hides what comes behind a row's token, or before its window.
  __device__ static void mask(const int (&own)[2], int window, TileScores& scores) {
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int behind = own[i / 2] - position(n, i);
        if (behind < 0 || behind >= window) scores[n][i] = -INFINITY;
      }
    }
  }

  // Takes the rows' new maxima, on which the four lanes of a row have to agree.
  __device__ void rescale(const TileScores& scores) {
    float correction[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float top = max_[row];
#pragma unroll
      for (int n = 0; n < kPositions / 8; ++n) {
        top = fmaxf(top, fmaxf(scores[n][2 * row], scores[n][2 * row + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      correction[row] = exp2f(max_[row] - top);
      max_[row] = top;
      sum_[row] *= correction[row];
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] *= correction[i / 2];
    }
  }

  // The pair of dimensions at column(side) of row g or g + 8.
  __device__ float2 result(int j, int row, int side) const {
    if (kInt8) return make_float2(out_[2 * j][2 * row + side], out_[2 * j + 1][2 * row + side]);
    return make_float2(out_[2 * j + side][2 * row], out_[2 * j + side][2 * row + 1]);
  }

  Kept& kept_;
  uint4 q_[kHeadDim / 16];
  TileScores weights_;
  float out_[kHeadDim / 8][4] = {};
  // Finite, so that a tile of which a row sees nothing leaves it as it is.
  float max_[2] = {-FLT_MAX, -FLT_MAX};
  float sum_[2] = {};
};

// As with_cache_types, and gives run the kHeadDim and kBent to compile for. Few models have bent
// scores, and long heads.
template <typename Run>
void with_attention_types(const char* launcher, const KvCache& cache, const Scores& scores,
                          DType dtype, Run run) {
  with_cache_types(launcher, cache, dtype, [&](auto t, auto kv) {
    const int64_t head_dim = cache.head_dim;
    const std::integral_constant<int, 128> k128;
    const std::integral_constant<int, 256> k256;
    if (scores.softcap != 0.0f || scores.slopes != nullptr) {
      return head_dim <= 128 ? run(t, kv, k128, std::true_type())
                             : run(t, kv, k256, std::true_type());
    }
    const std::false_type bent;
    if (head_dim <= 16) return run(t, kv, std::integral_constant<int, 16>(), bent);
    if (head_dim <= 64) return run(t, kv, std::integral_constant<int, 64>(), bent);
    if (head_dim <= 80) return run(t, kv, std::integral_constant<int, 80>(), bent);
    if (head_dim <= 96) return run(t, kv, std::integral_constant<int, 96>(), bent);
    if (head_dim <= 128) return run(t, kv, k128, bent);
    run(t, kv, k256, bent);
  });
}

}  // namespace tinychat
