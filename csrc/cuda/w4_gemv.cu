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
#include <cmath>
#include <type_traits>

#include "cuda/candidate.cuh"
#include "cuda/dispatch.cuh"
#include "cuda/launchers.h"
#include "cuda/prim.cuh"
#include "cuda/rms_norm.cuh"
#include "cuda/w4_epilogue.cuh"
#include "cuda/w4_record.cuh"
#include "cuda/warp.cuh"

namespace tinychat {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr int kBlocksPerMultiprocessor = 2;  // At least.
constexpr int kMaxTokens = 8;                // The columns of an mma.

// Records in the ring of a warp. One is being read: two blocks have 51 KB in flight.
constexpr int kStages = 4;

// Some tokens of a W4Input, and how the shared memory of a block that works on them is divided:
// the rings of the warps, the sums of two tiles, the sums of x over the groups, x.
struct Work {
  W4Input input;
  int first;      // token
  int tokens;     //
  int finishers;  // threads that get the sums of rows g and g + 8 for the epilogue
  int records;    // of a tile
  int tiles;      //

  __host__ __device__ int ring_bytes() const { return kStages * record_bytes(input.group_size); }
  __host__ __device__ int tile_sums() const { return tokens * kRecordRows / 2; }  // of a warp
  __host__ __device__ int groups() const { return records * record_groups(input.group_size); }
  __host__ __device__ int padded_tokens() const { return (tokens + 1) / 2 * 2; }
  // Two rows that a load reads at a time lie in different banks.
  __host__ __device__ int row_bytes() const { return records * kRecordColumns * 2 + 64; }

  __host__ __device__ int tile_sums_at() const { return kWarps * ring_bytes(); }
  __host__ __device__ int x_sums_at() const {
    return tile_sums_at() + 2 * kWarps * tile_sums() * static_cast<int>(sizeof(float2));
  }
  __host__ __device__ int x_at() const {
    const int bytes = groups() * padded_tokens() * static_cast<int>(sizeof(float));
    return x_sums_at() + (bytes + 15) / 16 * 16;
  }
  __host__ __device__ int shared_bytes() const { return x_at() + tokens * row_bytes(); }
};

// The blocks share out what the next kernel reads first. On Hopper and later that kernel starts
// early and fetches it itself.
__device__ void prefetch_next(const W4Input& input) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
  constexpr int64_t kMaxBytes = 1 << 20;
  constexpr int64_t kCacheLine = 128;
  if (input.next == nullptr) return;
  const int64_t first = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * kCacheLine;
  const int64_t step = gridDim.x * kThreads * kCacheLine;
  for (int64_t at = first; at < min(input.next_bytes, kMaxBytes); at += step) {
    prefetch_l2(static_cast<const unsigned char*>(input.next) + at);
  }
#endif
}

// Every kWarps-th record of a block's tiles, through a ring in shared memory that a warp has to
// itself. Tiles follow on one another: at the end of one the next is on its way, and where the
// warps do not divide a tile's records, none gets more than another in the long run.
class RecordRing {
 public:
  __device__ RecordRing(const Work& work, int warp, unsigned char* rings)
      : work_(work),
        bytes_(record_bytes(work.input.group_size)),
        tile_(blockIdx.x),
        record_(warp),
        from_(static_cast<const unsigned char*>(work.input.records) +
              (int64_t{tile_} * work.records + warp) * bytes_ + threadIdx.x % kWarp * 16),
        ring_(rings + warp * work.ring_bytes()) {
    skip_finished_tiles();
    for (stage_ = 0; stage_ < kStages - 1; ++stage_) begin_copy();
  }

  // The warp's next record, there until the next call.
  __device__ const unsigned char* next() {
    cp_async_wait<kStages - 2>();
    __syncwarp();
    begin_copy();
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    return ring_ + stage_ * bytes_;
  }

 private:
  // Into the stage that was read last.
  __device__ void begin_copy() {
    if (tile_ < work_.tiles) {
      const int chunk = threadIdx.x % kWarp * 16;
      unsigned char* to = ring_ + stage_ * bytes_ + chunk;
      cp_async_16(to, from_);
      cp_async_16(to + kWarp * 16, from_ + kWarp * 16);
      if (chunk < bytes_ - kRecordWeightBytes) {
        cp_async_16(to + kRecordWeightBytes, from_ + kRecordWeightBytes);
      }
      from_ += kWarps * bytes_;
      record_ += kWarps;
      skip_finished_tiles();
    }
    cp_async_commit();
  }

  __device__ void skip_finished_tiles() {
    while (record_ >= work_.records) {
      record_ -= work_.records;
      tile_ += gridDim.x;
      from_ += (gridDim.x - int64_t{1}) * work_.records * bytes_;
    }
  }

  const Work& work_;
  const int bytes_;
  int tile_;
  int record_;
  const unsigned char* from_;
  unsigned char* ring_;
  int stage_;
};

// Begins to bring the weight of the norm to where its product with x will stand. Each thread waits
// for its own copies only.
template <typename T>
__device__ void begin_norm(const Work& work, unsigned char* rows) {
  const int packs = static_cast<int>(work.input.k / Pack<T>::kSize);
  const auto* weight = static_cast<const Pack<T>*>(work.input.norm_weight);
  for (int token = 0; token < work.tokens; ++token) {
    auto* row = reinterpret_cast<Pack<T>*>(rows + token * work.row_bytes());
    for (int i = threadIdx.x; i < packs; i += kThreads) cp_async_16(&row[i], &weight[i]);
  }
  cp_async_commit();
}

// The sums of the squares of each token's activations, by warps.
template <typename T>
__device__ void sum_squares(const Work& work, const Pack<T>* x, float* sums) {
  const int packs = static_cast<int>(work.input.k / Pack<T>::kSize);
  for (int token = 0; token < work.tokens; ++token) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < packs; i += kThreads) {
      sum += sum_of_squares(load(&x[token * packs + i]));
    }
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) sums[token * kWarps + threadIdx.x / kWarp] = sum;
  }
  __syncthreads();
}

__device__ float norm_scale(const W4Input& input, const float* sums) {
  float sum = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp];
  return rsqrtf(sum / input.k + input.norm_eps);
}

// Brings a token's activations into shared memory, with zeros behind their end, and what they sum
// up to in each group. `squares` are null where there is no norm.
template <typename T>
__device__ void stage_token(const Work& work, const Pack<T>* x, const float* squares,
                            Pack<T>* row, float* sums) {
  const int packs = static_cast<int>(work.input.k / Pack<T>::kSize);
  const int padded = work.records * kRecordColumns / Pack<T>::kSize;
  const int group = work.input.group_size / Pack<T>::kSize;
  const int lane = threadIdx.x % kWarp;
  const float scale = squares == nullptr ? 1.0f : norm_scale(work.input, squares);
  for (int i = threadIdx.x; i - lane < padded; i += kThreads) {
    Pack<T> pack = {};
    if (i < packs) pack = load(&x[i]);
    if (i < packs && squares != nullptr) pack = scaled(pack, scale, load(&row[i]));
    if (i < padded) row[i] = pack;
    float sum = sum_of(pack);
    for (int distance = group / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
    if (i < padded && i % group == 0) sums[i / group * work.padded_tokens()] = sum;
  }
}

// `squares` has room for a number of each warp and token.
template <typename T>
__device__ void stage_activations(const Work& work, float* squares, float* sums,
                                  unsigned char* rows) {
  const int packs = static_cast<int>(work.input.k / Pack<T>::kSize);
  const auto* x = static_cast<const Pack<T>*>(work.input.x) + int64_t{work.first} * packs;
  const bool normalize = work.input.norm_weight != nullptr;
  if (normalize) {
    sum_squares(work, x, squares);
    cp_async_wait<kStages - 1>();  // For begin_norm's, which are older than the ring's.
  }
  for (int token = 0; token < work.tokens; ++token) {
    stage_token(work, x + token * packs, normalize ? squares + token * kWarps : nullptr,
                reinterpret_cast<Pack<T>*>(rows + token * work.row_bytes()), sums + token);
  }
  __syncthreads();
}

// Turns words of a lane into operands at less cost than a Dequantizer: a code q of rows 0 to 7 is
// low(q), one of rows 8 to 15 high(q). Both grow by a unit from one code to the next, so that the
// product of q - zero is the difference of two of these, divided by the unit.
template <typename T>
struct Codes;

// The bits of q are those of the subnormal q 2^-24, and four places higher of q 2^-20.
template <>
struct Codes<half> {
  static constexpr float kUnitsPerLow = 0x1p24f;
  static constexpr float kUnitsPerHigh = 0x1p20f;
  static __device__ float low(unsigned code) { return __half2float(pair_of<half>(code).x); }
  static __device__ float high(unsigned code) { return low(code << 4); }
  static __device__ __forceinline__ void operands(uint32_t word, uint32_t (&a)[4]) {
    const uint32_t upper = word >> 8;
    a[0] = word & 0x000f000f;
    a[1] = word & 0x00f000f0;
    a[2] = upper & 0x000f000f;
    a[3] = upper & 0x00f000f0;
  }
};

// A bf16 of exponent 2^7 whose mantissa is q is 128 + q. (An fp32 sum of its subnormals would have
// too few bits.)
template <>
struct Codes<__nv_bfloat16> {
  static constexpr float kUnitsPerLow = 1.0f;
  static constexpr float kUnitsPerHigh = 1.0f;
  static __device__ float low(unsigned code) { return 128.0f + code; }
  static __device__ float high(unsigned code) { return 128.0f + code; }
  static __device__ __forceinline__ void operands(uint32_t word, uint32_t (&a)[4]) {
    for (int j = 0; j < 4; ++j) a[j] = and_or<0x000f000f>(word >> 4 * j, 0x43004300);
  }
};

// What a lane adds up: as in an mma, rows g, g, g + 8, g + 8 and columns 2t, 2t + 1. The rows are
// in their units.
struct Sums {
  float values[4] = {};

  // Adds the products of a group of codes and forgets them.
  template <typename T>
  __device__ __forceinline__ void add_group(float (&products)[4], const half* scales, uint2 zeros,
                                            float2 x_sums) {
    const int g = threadIdx.x % kWarp / 4;
    const float zero[2] = {Codes<T>::low(zeros.x >> 4 * g & 15),
                           Codes<T>::high(zeros.y >> 4 * g & 15)};
    const float scale[2] = {__half2float(scales[g]), __half2float(scales[g + 8])};
    for (int i = 0; i < 4; ++i) {
      const float of_zero = zero[i / 2] * (i % 2 ? x_sums.y : x_sums.x);
      values[i] += scale[i / 2] * (products[i] - of_zero);
      products[i] = 0.0f;
    }
  }
};

// Adds the product of a record and the activations of its columns. `x` and `x_sums` have the
// lane's first, the latter with `slots` for each group.
template <typename T>
__device__ __forceinline__ void multiply(const unsigned char* record, int group_size,
                                         const uint4* x, const float* x_sums, int slots,
                                         Sums& sums) {
  const auto* operands = reinterpret_cast<const uint4*>(record) + threadIdx.x % kWarp;
  const auto* scales = reinterpret_cast<const half*>(record + record_scales_at());
  const auto* zeros = reinterpret_cast<const uint2*>(record + record_zeros_at(group_size));
  const uint4 tiles[2] = {operands[0], operands[kWarp]};
  float products[4] = {};
  for (int part = 0; part < kRecordHalves; ++part) {
    const uint4& tile = tiles[part / 2];
    const uint4 b = x[part * 4];
    uint32_t a[4];
    Codes<T>::operands(part % 2 ? tile.z : tile.x, a);
    mma_m16n8k16<T>(products, a, {b.x, b.y});
    Codes<T>::operands(part % 2 ? tile.w : tile.y, a);
    mma_m16n8k16<T>(products, a, {b.z, b.w});
    if (part + 1 < kRecordHalves && ((part + 1) * 32 & (group_size - 1)) != 0) continue;
    sums.add_group<T>(products, scales, *zeros, *reinterpret_cast<const float2*>(x_sums));
    scales += kRecordRows;
    ++zeros;
    x_sums += slots;
  }
}

// Adds up what the warps have of a tile, always in the same order, and hands it on. `sums` is one
// of two buffers by turns: whoever writes to it again has met its readers in between.
template <typename T, typename Epilogue>
__device__ void finish(const Work& work, const Epilogue& epilogue, int tile, const Sums& mine,
                       float2* sums) {
  const int lane = threadIdx.x % kWarp;
  float2* to = sums + threadIdx.x / kWarp * work.tile_sums() + lane / 4;
  for (int column = 0; column < 2; ++column) {
    const int token = lane % 4 * 2 + column;
    if (token >= work.tokens) break;
    to[token * 8] = make_float2(mine.values[column] * Codes<T>::kUnitsPerLow,
                                mine.values[column + 2] * Codes<T>::kUnitsPerHigh);
  }
  __syncthreads();
  const int finisher = threadIdx.x;
  if (finisher >= work.finishers) return;
  const int pair = finisher % work.tile_sums();
  float2 sum = make_float2(0.0f, 0.0f);
  for (int warp = 0; warp < kWarps; ++warp) {
    const float2 part = sums[warp * work.tile_sums() + pair];
    sum = make_float2(sum.x + part.x, sum.y + part.y);
  }
  const Bias<T> bias = {static_cast<const T*>(work.input.bias), work.input.n};
  const int64_t row = int64_t{tile} * kRecordRows + pair % 8;
  epilogue(work.first + finisher / 8, tile, pair % 8, bias(row, sum.x), bias(row + 8, sum.y));
}

template <typename T, typename Epilogue>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    w4_gemv_kernel(Work work, Epilogue epilogue) {
  TINYCHAT_DYNAMIC_SHARED(unsigned char, shared);
  auto* tile_sums = reinterpret_cast<float2*>(shared + work.tile_sums_at());
  auto* x_sums = reinterpret_cast<float*>(shared + work.x_sums_at());
  unsigned char* rows = shared + work.x_at();
  grid_dependency_launch();
  const int warp = __shfl_sync(~0u, threadIdx.x / kWarp, 0);  // So the compiler sees: uniform.
  if (work.input.norm_weight != nullptr) begin_norm<T>(work, rows);
  RecordRing ring(work, warp, shared);
  grid_dependency_wait();
  stage_activations<T>(work, reinterpret_cast<float*>(tile_sums), x_sums, rows);

  // Columns that are no token's repeat one.
  const int lane = threadIdx.x % kWarp;
  const int slots = work.padded_tokens();
  rows += min(lane / 4, work.tokens - 1) * work.row_bytes() + lane % 4 * 16;
  x_sums += min(lane % 4 * 2, slots - 2);
  const int groups = record_groups(work.input.group_size);
  int record = warp;
  int turn = 0;
  for (int tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
    if (tile + static_cast<int>(gridDim.x) >= work.tiles) prefetch_next(work.input);
    Sums sums;
    for (; record < work.records; record += kWarps) {
      multiply<T>(ring.next(), work.input.group_size,
                  reinterpret_cast<const uint4*>(rows + record * kRecordColumns * 2),
                  x_sums + record * groups * slots, slots, sums);
    }
    record -= work.records;
    finish<T>(work, epilogue, tile, sums, tile_sums + turn * kWarps * work.tile_sums());
    turn ^= 1;
  }
}

// Called by a whole warp with the sums of its one token four times over.
struct LogitsEpilogue {
  float* logits;
  Candidate* best;
  float softcap;
  int64_t n;

  __device__ void operator()(int64_t copy, int64_t tile, int g, float low, float high) const {
    const int64_t row = tile * kRecordRows + g;
    if (softcap != 0.0f) {
      low = softcapped(low, softcap);
      high = softcapped(high, softcap);
    }
    const Candidate of_tile =
        best_of_lanes(better(candidate(row, low), candidate(row + 8, high)), 8);
    if (copy > 0) return;
    if (row < n) logits[row] = low;
    if (row + 8 < n) logits[row + 8] = high;
    if (g == 0) best[tile] = of_tile;
  }

  __device__ Candidate candidate(int64_t row, float logit) const {
    return {row < n ? logit : -INFINITY, static_cast<int32_t>(row)};
  }
};

template <typename T>
LogitsEpilogue epilogue_of(const W4Input& input, const LogitsOutput& output) {
  return {output.logits, output.best, output.softcap, input.n};
}

template <typename T, typename Output>
void run(const W4Input& input, const Output& output) {
  const auto epilogue = epilogue_of<T>(input, output);
  const auto kernel = w4_gemv_kernel<T, std::remove_const_t<decltype(epilogue)>>;
  Work work = {};
  work.input = input;
  work.records = static_cast<int>(ceil_div(input.k, kRecordColumns));
  work.tiles = static_cast<int>(ceil_div(input.n, kRecordRows));
  // As many at a time as there is shared memory for, and about as many each time.
  work.tokens = static_cast<int>(input.m);
  while (work.tokens > 1 && work.shared_bytes() > max_shared_bytes()) --work.tokens;
  const int tokens = static_cast<int>(ceil_div(input.m, ceil_div(input.m, work.tokens)));
  for (; work.first < input.m; work.first += tokens) {
    work.tokens = std::min(tokens, static_cast<int>(input.m) - work.first);
    work.finishers = std::is_same_v<Output, LogitsOutput> ? kWarp : work.tokens * 8;
    const int bytes = work.shared_bytes();
    const int blocks = std::min(work.tiles, resident_blocks("w4_gemv", kernel, kThreads, bytes));
    launch_dependent("w4_gemv", kernel, blocks, kThreads, bytes, input.stream, work, epilogue);
  }
}

template <typename Output>
void check_and_run(const W4Input& input, const Output& output) {
  constexpr bool kOneToken = std::is_same_v<Output, LogitsOutput>;
  const int group = input.group_size;
  require(group == 32 || group == 64 || group == 128, "w4_gemv", "a group_size of 32, 64 or 128",
          group);
  require(input.m >= 1 && input.m <= (kOneToken ? 1 : kMaxTokens), "w4_gemv",
          kOneToken ? "an m of 1" : "an m of 1 to 8", input.m);
  with_half_type("w4_gemv", input.dtype, [&](auto t) { run<decltype(t)>(input, output); });
}

}  // namespace

void w4_gemv(const W4Input& input, const LinearOutput& output) { check_and_run(input, output); }

void w4_gemv(const W4Input& input, const UpOutput& output) { check_and_run(input, output); }

void w4_gemv(const W4Input& input, const GateUpOutput& output) { check_and_run(input, output); }

void w4_gemv(const W4Input& input, const QkvOutput& output) { check_and_run(input, output); }

void w4_gemv(const W4Input& input, const LogitsOutput& output) { check_and_run(input, output); }

}  // namespace tinychat
