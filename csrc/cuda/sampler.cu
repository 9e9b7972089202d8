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

#include <cstring>

#include "cuda/candidate.cuh"
#include "cuda/launchers.h"
#include "cuda/prim.cuh"
#include "cuda/warp.cuh"
#include "philox.h"

namespace tinychat {
namespace {

constexpr int kThreads = kMaxThreads;
constexpr int kWarps = kThreads / kWarp;
static_assert(kWarps == kWarp, "each lane takes what a warp has");
constexpr float kLowestTemperature = 1e-6f;  // As in engine/sampler.py.

// A token's key is the bits of how far its logit lies below the best one. They order as those
// numbers do, which are not negative: 31 bits, the most probable token's 0. All filters are the
// highest key that stays, so that equal logits stay or go together, in top-p too.
constexpr uint32_t kInfinity = 0x7f800000;
constexpr int kKeyBits = 31;

// Most of a vocabulary falls into few bins; with copies of them fewer lanes meet at an address.
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
static_assert(kBins == 2 * kThreads, "each thread adds two bins up");
constexpr int kCopies = 4;

// Weights are added in 64 bits, exact in whatever order. Shared memory adds only 32 bits at once,
// so that those who see them overflow carry.
struct Shared {
  alignas(16) uint32_t low[kBins][kCopies];
  alignas(16) uint32_t high[kBins];
  uint64_t parts[kWarps];
  Candidate best[kWarps];

  __device__ void clear() {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
      for (uint32_t& copy : low[bin]) copy = 0;
      high[bin] = 0;
    }
  }

  __device__ void add(int bin, uint32_t weight) {
    const uint32_t old = atomicAdd(&low[bin][threadIdx.x % kCopies], weight);
    if (old + weight < weight) atomicAdd(&high[bin], 1u);
  }

  __device__ uint64_t sum(int bin) const {
    uint64_t sum = uint64_t{high[bin]} << 32;
    for (uint32_t copy : low[bin]) sum += copy;
    return sum;
  }
};

// Which of the parts that follow one another `rest` falls into. It becomes how far.
template <typename Part>
__device__ int find(Part part, uint64_t& rest) {
  int i = 0;
  for (uint64_t width = part(i); width <= rest; width = part(++i)) rest -= width;
  return i;
}

// The values of a tile; `none` where the vocabulary has ended.
template <typename T>
__device__ void load_tile(const T* values, int tile, int vocab, T none,
                          T (&to)[kCandidateTile]) {
  const int first = tile * kCandidateTile;
  if (first + kCandidateTile <= vocab) {
    constexpr int kChunks = kCandidateTile * sizeof(T) / sizeof(uint4);
    uint4 chunks[kChunks];
    for (int i = 0; i < kChunks; ++i) {
      chunks[i] = reinterpret_cast<const uint4*>(values + first)[i];
    }
    memcpy(to, chunks, sizeof(to));
    return;
  }
  for (int i = 0; i < kCandidateTile; ++i) to[i] = first + i < vocab ? values[first + i] : none;
}

// The logits after the repetition penalty.
struct Logits {
  const float* logits;
  const uint8_t* seen;
  float penalty;
  int vocab;
  int tiles;

  __device__ void load(int tile, float (&to)[kCandidateTile]) const {
    load_tile(logits, tile, vocab, -INFINITY, to);
    if (penalty == 1.0f) return;
    uint8_t marks[kCandidateTile];
    load_tile(seen, tile, vocab, uint8_t{0}, marks);
    for (int i = 0; i < kCandidateTile; ++i) {
      if (marks[i] != 0) to[i] = to[i] > 0.0f ? to[i] / penalty : to[i] * penalty;
    }
  }
};

// The thread's part of the best of all.
__device__ Candidate best_of_tiles(const Candidate* best, int tiles) {
  Candidate found{-INFINITY, INT32_MAX};
  for (int tile = threadIdx.x; tile < tiles; tile += kThreads) found = better(found, best[tile]);
  return found;
}

__device__ Candidate best_of_logits(const Logits& logits) {
  Candidate found{-INFINITY, INT32_MAX};
  for (int tile = threadIdx.x; tile < logits.tiles; tile += kThreads) {
    float values[kCandidateTile];
    logits.load(tile, values);
    for (int i = 0; i < kCandidateTile; ++i) {
      found = better(found, {values[i], tile * kCandidateTile + i});
    }
  }
  return found;
}

// The best of all threads' candidates, for each of them.
__device__ Candidate block_best(Candidate candidate, Shared& shared) {
  candidate = best_of_lanes(candidate, kWarp);
  if (threadIdx.x % kWarp == 0) shared.best[threadIdx.x / kWarp] = candidate;
  __syncthreads();
  return best_of_lanes(shared.best[threadIdx.x % kWarp], kWarp);
}

// The tokens by their keys.
struct Keys {
  Logits logits;
  const Candidate* best;
  float top;
  float inverse_temperature;

  // The token's probability, of which the most probable one's is 2^31.
  __device__ uint32_t mass(uint32_t key) const {
    const float ratio = __expf(-__uint_as_float(key) * inverse_temperature);
    return static_cast<uint32_t>(ratio * 0x1p31f + 0.5f);
  }

  // Calls use(token, key) for keys up to `limit` in every `stride`th tile from `first` on. Those
  // behind the vocabulary have the highest key and no mass.
  template <typename Use>
  __device__ void visit(int first, int end, int stride, uint32_t limit, Use use) const {
    for (int tile = first; tile < end; tile += stride) {
      // No logit is above its tile's best one, unless the penalty raises it.
      const bool bounded = limit < kInfinity && logits.penalty >= 1.0f;
      if (bounded && top - best[tile].logit > __uint_as_float(limit)) continue;
      float values[kCandidateTile];
      logits.load(tile, values);
      for (int i = 0; i < kCandidateTile; ++i) {
        const uint32_t key = __float_as_uint(top - values[i]);
        if (key <= limit) use(tile * kCandidateTile + i, key);
      }
    }
  }
};

// Adds up over the block what each thread has; shared.parts then holds a sum for each warp.
__device__ void sum_by_warps(uint64_t value, Shared& shared) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) shared.parts[threadIdx.x / kWarp] = value;
  __syncthreads();
}

__device__ uint64_t total(const Shared& shared) {
  return warp_sum(shared.parts[threadIdx.x % kWarp]);
}

// The key at which the weights of the tokens up to `limit`, added in the order of their keys,
// reach target(the weight of all): a radix select of three digits.
template <typename WeightOf, typename Target>
__device__ uint32_t select(const Keys& keys, uint32_t limit, Shared& shared, WeightOf weight,
                           Target target) {
  constexpr int kGroup = kBins / kWarps;
  uint32_t prefix = 0;
  uint64_t rest = 0;
  for (int known = kKeyBits, shift; known > 0; known = shift) {
    shift = max(known - kDigitBits, 0);
    shared.clear();
    __syncthreads();
    const uint32_t last = min(limit, ((prefix + 1) << known) - 1);
    keys.visit(threadIdx.x, keys.logits.tiles, kThreads, last, [&](int, uint32_t key) {
      const uint32_t digit = key >> shift & ((1u << (known - shift)) - 1);
      if (key >> known == prefix) shared.add(digit, weight(key));
    });
    __syncthreads();
    sum_by_warps(shared.sum(2 * threadIdx.x) + shared.sum(2 * threadIdx.x + 1), shared);
    if (known == kKeyBits) rest = target(total(shared)) - 1;
    const int group = find([&](int i) { return shared.parts[i]; }, rest);
    const int bin = find([&](int i) { return shared.sum(group * kGroup + i); }, rest);
    prefix = prefix << (known - shift) | (group * kGroup + bin);
    __syncthreads();  // All have read the bins.
  }
  return prefix;
}

// The highest key that top-k, top-p and min-p leave.
__device__ uint32_t filter(const Keys& keys, const SamplingState& params, Shared& shared) {
  uint32_t limit = kInfinity;
  if (params.top_k > 0 && params.top_k < keys.logits.vocab) {
    limit = select(keys, limit, shared, [](uint32_t) { return 1u; },
                   [&](uint64_t) { return static_cast<uint64_t>(params.top_k); });
  }
  if (params.top_p < 1.0f) {
    limit = select(keys, limit, shared, [&](uint32_t key) { return keys.mass(key); },
                   [&](uint64_t mass) {
                     const double reached = ceil(static_cast<double>(params.top_p) * mass);
                     return max(static_cast<uint64_t>(reached), uint64_t{1});
                   });
  }
  // exp(-distance / temperature) >= min_p; with 0 it is infinity.
  const float farthest = -logf(params.min_p) / keys.inverse_temperature;
  return min(limit, __float_as_uint(fabsf(farthest)));
}

// Inverts the cumulated probabilities in the order of the tokens: 32 parts of the tiles, 32 parts
// of one of them, and so on. Thread 0 gets the token.
__device__ int draw(const Keys& keys, uint32_t limit, uint32_t random, Shared& shared) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  int first = 0, end = keys.logits.tiles;
  uint64_t rest = 0;
  do {
    const int width = (end - first + kWarps - 1) / kWarps;
    const int begin = first + warp * width;
    uint64_t mass = 0;
    keys.visit(begin + lane, min(begin + width, end), kWarp, limit,
               [&](int, uint32_t key) { mass += keys.mass(key); });
    sum_by_warps(mass, shared);
    if (end - first == keys.logits.tiles) {
      rest = __umul64hi(uint64_t{random} << 32, total(shared));
    }
    first += find([&](int i) { return shared.parts[i]; }, rest) * width;
    end = min(first + width, end);
    __syncthreads();  // All have read the parts.
  } while (end - first > 1);
  int drawn = -1;
  if (threadIdx.x != 0) return drawn;
  keys.visit(first, end, 1, limit, [&](int token, uint32_t key) {
    const uint32_t mass = keys.mass(key);
    if (drawn < 0 && rest < mass) drawn = token;
    rest -= mass;
  });
  return drawn;
}

// One block, which reads all logits once for the draw, once for the best one where there is a
// penalty, and once each for top-k and top-p, whose two further passes and whatever comes behind
// them look only at tiles that hold something of what is left.
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* logits, const Candidate* best, const SamplingState* sampling,
                  uint8_t* seen, StepState* state, uint64_t* ring, int ring_size, int vocab,
                  int tiles) {
  __shared__ Shared shared;
  grid_dependency_launch();
  grid_dependency_wait();
  const SamplingState params = *sampling;
  const int step = state->step;
  const Logits penalized{logits, seen, params.repetition_penalty, vocab, tiles};
  const Candidate top = block_best(params.repetition_penalty == 1.0f
                                       ? best_of_tiles(best, penalized.tiles)
                                       : best_of_logits(penalized),
                                   shared);
  int token = fabsf(top.logit) < INFINITY ? top.token : -1;
  if (token >= 0 && params.temperature != 0.0f) {
    const Keys keys{penalized, best, top.logit,
                    1.0f / max(params.temperature, kLowestTemperature)};
    const uint32_t random = philox(step, params.seed_low, params.seed_high);
    token = draw(keys, filter(keys, params, shared), random, shared);
  }
  if (threadIdx.x != 0) return;
  if (token >= 0) seen[token] = 1;
  state->token = token;
  state->position += 1;
  state->step = step + 1;
  // The host reads nothing but this, and what it starts then runs behind this kernel: no fence.
  const uint64_t entry = static_cast<uint64_t>(step + 1) << 32 | static_cast<uint32_t>(token);
  *static_cast<volatile uint64_t*>(&ring[step % ring_size]) = entry;
}

}  // namespace

void sample(const float* logits, const Candidate* best, const SamplingState* params, uint8_t* seen,
            StepState* state, uint64_t* ring, int ring_size, int64_t vocab, void* stream) {
  launch_dependent("sample", sample_kernel, 1, kThreads, 0, stream, logits, best, params, seen,
                   state, ring, ring_size, static_cast<int>(vocab),
                   static_cast<int>(ceil_div(vocab, kCandidateTile)));
}

}  // namespace tinychat
