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

// Of m16n8k16 the weight is the operand of 16 rows and the activations that of 8 columns, so that
// records (w4_record.cuh) are dequantized in registers, once for all tokens of a warp.

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "cuda/dispatch.cuh"
#include "cuda/launchers.h"
#include "cuda/prim.cuh"
#include "cuda/w4_epilogue.cuh"
#include "cuda/w4_record.cuh"
#include "cuda/warp.cuh"

namespace tinychat {
namespace {

constexpr int kWarps = 4;  // 2 x 2: each takes half of its block's tiles and half of the tokens.
constexpr int kThreads = kWarps * kWarp;

// A stage holds 64 columns: of each tile its half of a record's operands and all its scales and
// zeros, of each token 8 chunks of 16 bytes. Chunk c of an odd token stands at c ^ 4, because the
// 8 lanes that are served at a time want the same 4 chunks of 2 tokens, from different banks.
constexpr int kStageColumns = 64;
constexpr int kOperandBytes = kRecordWeightBytes / 2;
constexpr int kTileBytes = kOperandBytes + record_bytes(32) - kRecordWeightBytes;
constexpr int kTokenBytes = kStageColumns * 2;
constexpr int kTokenChunks = kTokenBytes / 16;

// Two blocks fit into a multiprocessor of an Orin.
constexpr int kRingBytes = 80 << 10;

template <int kTilesOfBlock, int kTokensOfBlock>
struct Shape {
  static constexpr int kTiles = kTilesOfBlock;
  static constexpr int kTokens = kTokensOfBlock;
  static constexpr int kWarpTiles = kTiles / 2;
  static constexpr int kWarpTokens = kTokens / 2;
  static constexpr int kOctets = kWarpTokens / 8;
  static constexpr int kTokensAt = kTiles * kTileBytes;  // In a stage.
  static constexpr int kStageBytes = kTokensAt + kTokens * kTokenBytes;
  static constexpr int kStages = kRingBytes / kStageBytes;
  // The sums of a warp, [kWarpTokens][kSumStride], which replace the stages in the end. The stride
  // puts what lanes of one g hold 8 banks apart.
  static constexpr int kSumStride = kWarpTiles * kRecordRows + 4;
  static constexpr int kWarpSums = kWarpTokens * kSumStride;
  static constexpr int kSharedBytes = std::max(kStages * kStageBytes, kWarps * kWarpSums * 4);
};

struct Product {
  const char* x;
  const char* records;
  int64_t m, n, k;
  int64_t tile_records;
  int record_bytes;
  int groups;  // Of a record.
  int stages;
};

template <typename S>
__device__ void load_tiles(const Product& product, int index, unsigned char* stage) {
  const int64_t first = int64_t{blockIdx.y} * S::kTiles + warp();
  const int64_t record = first * product.tile_records + index / 2;
  const char* from = product.records + record * product.record_bytes + lane() * 16;
  unsigned char* to = stage + warp() * kTileBytes + lane() * 16;
  for (int i = 0; i < S::kTiles; i += kWarps, to += kWarps * kTileBytes,
           from += kWarps * product.tile_records * product.record_bytes) {
    if ((first + i) * kRecordRows >= product.n) return;
    cp_async_16(to, from + index % 2 * kOperandBytes);
    if (kRecordWeightBytes + lane() * 16 < product.record_bytes) {
      cp_async_16(to + kOperandBytes, from + kRecordWeightBytes);
    }
  }
}

// Beyond k there are zeros: what pads the weights need not be 0 once a zero is subtracted.
template <typename S>
__device__ void load_tokens(const Product& product, int index, unsigned char* stage) {
  constexpr int kAtOnce = kThreads / kTokenChunks;
  const int first = threadIdx.x / kTokenChunks;
  const int chunk = threadIdx.x % kTokenChunks;
  const int64_t token = int64_t{blockIdx.x} * S::kTokens + first;
  const int64_t column = int64_t{index} * kStageColumns + chunk * 8;
  const int there =
      column < product.k ? static_cast<int>(min(product.m - token, int64_t{S::kTokens})) : 0;
  const char* from = product.x + (token * product.k + column) * 2;
  unsigned char* to = stage + S::kTokensAt + first * kTokenBytes + (chunk ^ first % 2 * 4) * 16;
  for (int i = 0; i < S::kTokens; i += kAtOnce, to += kAtOnce * kTokenBytes,
           from += kAtOnce * product.k * 2) {
    cp_async_16_or_zeros(to, from, i < there);
  }
}

// Rows g and g + 8 of a tile in one group. Rounds (q - zero) * scale to T: keeping the integers
// exact would take a second set of sums, and an instruction for each of them and each group.
template <typename T>
class Group {
 public:
  Group() = default;

  __device__ Group(const unsigned char* scales, const unsigned char* zeros, int g) {
    const uint32_t* nibbles = reinterpret_cast<const uint32_t*>(zeros);
    dequantizer_ = Dequantizer<T>(nibbles[0] >> 4 * g & 15, nibbles[1] >> 4 * g & 15);
    const half* scale = reinterpret_cast<const half*>(scales) + g;
    scales_ = Pair<T>(T(static_cast<float>(scale[0])), T(static_cast<float>(scale[8])));
  }

  __device__ __forceinline__ void operator()(uint32_t word, uint32_t (&a)[4]) const {
    dequantizer_(word, a);
    for (int i = 0; i < 4; ++i) {
      const T scale = i % 2 == 0 ? scales_.x : scales_.y;
      a[i] = bits_of(__hmul2(pair_of<T>(a[i]), Pair<T>(scale, scale)));
    }
  }

 private:
  Dequantizer<T> dequantizer_{0, 0};
  Pair<T> scales_;
};

// The sums of a warp as mma_m16n8k16 holds them, [its tiles][its octets of tokens].
template <typename T, typename S>
class Sums {
 public:
  __device__ void begin(const Bias<T>& bias, int64_t row) {
    TINYCHAT_UNROLL
    for (int i = 0; i < S::kWarpTiles * 2; ++i) {
      const float start = bias(row + lane() / 4 + 8 * i, 0.0f);
      TINYCHAT_UNROLL
      for (int j = 0; j < S::kOctets * 2; ++j) sums_[i / 2][j / 2][i % 2 * 2 + j % 2] = start;
    }
  }

  // In front of the product. An epilogue would wait for one value after another, because what it
  // stores may be the next one; here the first stages are on their way meanwhile.
  __device__ void add_residual(const T* residual, int64_t n, int rows, int tokens) {
    const int row = lane() / 4;
    const int token = lane() % 4 * 2;
    TINYCHAT_UNROLL
    for (int j = 0; j < S::kOctets * 2; ++j) {
      const int at = token + j / 2 * 8 + j % 2;
      const T* values = residual + at * n + row;
      TINYCHAT_UNROLL
      for (int i = 0; i < S::kWarpTiles * 2; ++i) {
        if (at < tokens && row + 8 * i < rows) {
          sums_[i / 2][j / 2][i % 2 * 2 + j % 2] += static_cast<float>(values[8 * i]);
        }
      }
    }
  }

  __device__ void add(const unsigned char* tiles, const unsigned char* tokens, int first_column,
                      int groups) {
    take_groups(tiles + kOperandBytes, first_column * groups, groups);
    add_half<0>(tiles, tokens);
    take_groups(tiles + kOperandBytes, (first_column + 32) * groups, groups);
    add_half<1>(tiles, tokens);
  }

  __device__ void store(float* staged) const {
    staged += lane() % 4 * 2 * S::kSumStride + lane() / 4;
    TINYCHAT_UNROLL
    for (int i = 0; i < S::kWarpTiles; ++i) {
      TINYCHAT_UNROLL
      for (int j = 0; j < S::kOctets; ++j) {
        TINYCHAT_UNROLL
        for (int r = 0; r < 4; ++r) {
          staged[(8 * j + r % 2) * S::kSumStride + kRecordRows * i + r / 2 * 8] = sums_[i][j][r];
        }
      }
    }
  }

 private:
  __device__ void take_groups(const unsigned char* scales, int group, int count) {
    if (group % kRecordColumns != 0) return;
    const int at = group / kRecordColumns;
    TINYCHAT_UNROLL
    for (int i = 0; i < S::kWarpTiles; ++i, scales += kTileBytes) {
      groups_[i] = Group<T>(scales + 32 * at, scales + 32 * count + 8 * at, lane() / 4);
    }
  }

  template <int kHalf>
  __device__ __forceinline__ void add_half(const unsigned char* tiles,
                                           const unsigned char* tokens) {
    const int chunk = (4 * kHalf + lane() % 4) ^ lane() / 4 % 2 * 4;
    uint4 b[S::kOctets];
    TINYCHAT_UNROLL
    for (int j = 0; j < S::kOctets; ++j) {
      const unsigned char* token = tokens + (8 * j + lane() / 4) * kTokenBytes;
      b[j] = *reinterpret_cast<const uint4*>(token + chunk * 16);
    }
    TINYCHAT_UNROLL
    for (int i = 0; i < S::kWarpTiles; ++i) {
      const unsigned char* operands = tiles + i * kTileBytes + lane() * 16 + kHalf * 8;
      const uint2 words = *reinterpret_cast<const uint2*>(operands);
      uint32_t a[4];
      groups_[i](words.x, a);
      TINYCHAT_UNROLL
      for (int j = 0; j < S::kOctets; ++j) mma_m16n8k16<T>(sums_[i][j], a, {b[j].x, b[j].y});
      groups_[i](words.y, a);
      TINYCHAT_UNROLL
      for (int j = 0; j < S::kOctets; ++j) mma_m16n8k16<T>(sums_[i][j], a, {b[j].z, b[j].w});
    }
  }

  float sums_[S::kWarpTiles][S::kOctets][4];
  Group<T> groups_[S::kWarpTiles];
};

// Gives an epilogue the sums of a warp, rows of one token to neighbours.
template <typename S, typename Epilogue>
__device__ void finish(const float* staged, int64_t tile, int64_t token, int tokens,
                       const Epilogue& epilogue) {
  const int g = lane() % 8;
  const int i = lane() / 8 % S::kWarpTiles;
  for (int j = lane() / 8 / S::kWarpTiles; j < tokens; j += 4 / S::kWarpTiles) {
    const float* sums = staged + j * S::kSumStride + kRecordRows * i + g;
    epilogue(token + j, tile + i, g, sums[0], sums[8]);
  }
}

// Reads the state once; an epilogue would for each token, because what it stores may change it.
template <typename T>
__device__ void keep_state(QkvEpilogue<T>& epilogue, StepState& state) {
  state = *epilogue.cache.state;
  epilogue.cache.state = &state;
}
template <typename Epilogue>
__device__ void keep_state(Epilogue&, StepState&) {}

template <typename T, typename S, typename Epilogue>
__global__ void __launch_bounds__(kThreads, 2)
    w4_gemm_kernel(Product product, Bias<T> bias, const T* residual, Epilogue epilogue) {
  TINYCHAT_DYNAMIC_SHARED(unsigned char, shared);
  const auto stage = [&](int index) { return shared + index % S::kStages * S::kStageBytes; };
  grid_dependency_launch();
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (i < product.stages) load_tiles<S>(product, i, stage(i));
  }
  grid_dependency_wait();
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (i < product.stages) load_tokens<S>(product, i, stage(i));
    cp_async_commit();
  }
  const int tiles_at = warp() % 2 * S::kWarpTiles;
  const int tokens_at = warp() / 2 * S::kWarpTokens;
  const int64_t tile = int64_t{blockIdx.y} * S::kTiles + tiles_at;
  const int64_t token = int64_t{blockIdx.x} * S::kTokens + tokens_at;
  const int tokens = static_cast<int>(min(product.m - token, int64_t{S::kWarpTokens}));
  constexpr int64_t kRows = S::kWarpTiles * kRecordRows;
  Sums<T, S> sums;
  sums.begin(bias, tile * kRecordRows);
  if (residual != nullptr) {
    sums.add_residual(residual + token * product.n + tile * kRecordRows, product.n,
                      static_cast<int>(min(product.n - tile * kRecordRows, kRows)), tokens);
  }
  for (int i = 0; i < product.stages; ++i) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();
    const int next = i + S::kStages - 1;
    if (next < product.stages) {
      load_tiles<S>(product, next, stage(next));
      load_tokens<S>(product, next, stage(next));
    }
    cp_async_commit();
    if (tokens <= 0) continue;
    sums.add(stage(i) + tiles_at * kTileBytes, stage(i) + S::kTokensAt + tokens_at * kTokenBytes,
             i % 2 * kStageColumns, product.groups);
  }
  __syncthreads();
  float* staged = reinterpret_cast<float*>(shared) + warp() * S::kWarpSums;
  sums.store(staged);
  __syncwarp();
  StepState state;
  keep_state(epilogue, state);
  finish<S>(staged, tile, token, tokens, epilogue);
}

template <typename T, typename S, typename Output>
void run(const W4Input& input, const void* residual, const Output& output) {
  const Product product = {static_cast<const char*>(input.x),
                           static_cast<const char*>(input.records),
                           input.m,
                           input.n,
                           input.k,
                           ceil_div(input.k, kRecordColumns),
                           record_bytes(input.group_size),
                           record_groups(input.group_size),
                           static_cast<int>(ceil_div(input.k, kStageColumns))};
  const auto epilogue = epilogue_of<T>(input, output);
  // The blocks that read the same weights start one after another.
  const dim3 grid(ceil_div(input.m, S::kTokens), ceil_div(input.n, S::kTiles * kRecordRows));
  launch_dependent("w4_gemm", w4_gemm_kernel<T, S, std::decay_t<decltype(epilogue)>>, grid,
                   kThreads, S::kSharedBytes, input.stream, product,
                   Bias<T>{static_cast<const T*>(input.bias), input.n},
                   static_cast<const T*>(residual), epilogue);
}

// The larger a block, the fewer times weights are dequantized and activations loaded, as long as
// there are blocks for all multiprocessors.
template <typename T, typename Output>
void choose(const W4Input& input, const void* residual, const Output& output) {
  const int64_t large_blocks = ceil_div(input.m, 128) * ceil_div(input.n, 128);
  if (input.m > 64 && large_blocks >= multiprocessors()) {
    run<T, Shape<8, 128>>(input, residual, output);
  } else if (input.m > 32) {
    run<T, Shape<4, 64>>(input, residual, output);
  } else {
    run<T, Shape<4, 32>>(input, residual, output);
  }
}

template <typename Output>
void gemm(const W4Input& input, const void* residual, const Output& output) {
  if (input.norm_weight != nullptr) {
    throw std::invalid_argument("w4_gemm: norm_weight: expected null, got an address");
  }
  with_half_type("w4_gemm", input.dtype,
                 [&](auto t) { choose<decltype(t)>(input, residual, output); });
}

}  // namespace

void w4_gemm(const W4Input& input, const LinearOutput& output) {
  gemm(input, output.residual, LinearOutput{nullptr, output.y});
}

void w4_gemm(const W4Input& input, const UpOutput& output) { gemm(input, nullptr, output); }

void w4_gemm(const W4Input& input, const GateUpOutput& output) { gemm(input, nullptr, output); }

void w4_gemm(const W4Input& input, const QkvOutput& output) { gemm(input, nullptr, output); }

}  // namespace tinychat
