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

#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/w4a8.h"

// On each function and not for the whole file; wna16_avx2.cpp says why.
#define TINYCHAT_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TINYCHAT_AVX2_INLINE TINYCHAT_AVX2 __attribute__((always_inline)) inline

namespace tinychat {
namespace {

// A tile's rows are two halves of 8 lanes.
constexpr int kLanes = 8;
constexpr int kHalves = 2;

// A product of two bytes is at most 15 * 127 and an int16 lane takes 2 of them at a time: 8 times
// that, 32 k, stay below 2^15.
constexpr int64_t kColumns = 32;

template <typename T>
T load_scalar(const uint8_t* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

TINYCHAT_AVX2_INLINE __m256i load(const void* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// The addition is hidden from g++ 12, which added products to each other first and kept sums in
// memory meanwhile: 4 tokens ran at 0.7 of the speed.
TINYCHAT_AVX2_INLINE void add_products(__m256i& pairs, __m256i codes, __m256i four) {
  asm("vpaddw %1, %0, %0" : "+x"(pairs) : "x"(_mm256_maddubs_epi16(codes, four)));
}

// pairs[token][half] += the products of 4 k.
template <int kTokens>
TINYCHAT_AVX2_INLINE void add_fours(__m256i first, __m256i second, const uint8_t* x,
                                    __m256i (&pairs)[kTokens][kHalves]) {
  for (int t = 0; t < kTokens; ++t) {
    const __m256i four = _mm256_set1_epi32(load_scalar<int32_t>(x + t * 4));
    add_products(pairs[t][0], first, four);
    add_products(pairs[t][1], second, four);
  }
}

// sums[token][half] += the products of kColumns k.
template <int kTokens>
TINYCHAT_AVX2_INLINE void add_columns(const uint8_t* tile, const uint8_t* x,
                                      __m256i (&sums)[kTokens][kHalves]) {
  const __m256i low_nibbles = _mm256_set1_epi8(15);
  __m256i pairs[kTokens][kHalves];
  for (int t = 0; t < kTokens; ++t) pairs[t][0] = pairs[t][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < kColumns; k += 8, tile += kSetBytes, x += 8 * kTokens) {
    __m256i first = load(tile);
    __m256i second = load(tile + kSetBytes / 2);
    // One load for both nibbles; w4a8_avx512vnni.cpp says why.
    asm("" : "+x"(first), "+x"(second));
    _mm_prefetch(tile + kPrefetchBytes, _MM_HINT_T0);
    add_fours<kTokens>(_mm256_and_si256(first, low_nibbles),
                       _mm256_and_si256(second, low_nibbles), x, pairs);
    add_fours<kTokens>(_mm256_and_si256(_mm256_srli_epi16(first, 4), low_nibbles),
                       _mm256_and_si256(_mm256_srli_epi16(second, 4), low_nibbles),
                       x + 4 * kTokens, pairs);
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int t = 0; t < kTokens; ++t) {
    for (int half = 0; half < kHalves; ++half) {
      sums[t][half] = _mm256_add_epi32(sums[t][half], _mm256_madd_epi16(pairs[t][half], ones));
    }
  }
}

// total[token] += the sums, less those of the zero points, times the scales: `scales` of the tile,
// `x_scales` of the record.
template <int kTokens>
TINYCHAT_AVX2_INLINE void add_to_total(const uint8_t* scales, const uint8_t* x_scales,
                                       const __m256i (&sums)[kTokens][kHalves], float* total) {
  for (int half = 0; half < kHalves; ++half) {
    const __m256 row_scales = _mm256_cvtph_ps(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + half * kLanes * 2)));
    const __m256i zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(
        reinterpret_cast<const __m128i*>(scales + kTileRows * 2 + half * kLanes)));
    for (int t = 0; t < kTokens; ++t) {
      const __m256i negative_sum =
          _mm256_set1_epi32(load_scalar<int32_t>(x_scales + (kTokens + t) * 4));
      const __m256i difference =
          _mm256_add_epi32(sums[t][half], _mm256_madd_epi16(zeros, negative_sum));
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(difference), row_scales);
      const __m256 scale = _mm256_set1_ps(load_scalar<float>(x_scales + t * 4));
      float* lanes = total + t * kTileRows + half * kLanes;
      _mm256_storeu_ps(lanes, _mm256_fmadd_ps(scaled, scale, _mm256_loadu_ps(lanes)));
    }
  }
}

template <int kTokens>
TINYCHAT_AVX2 void multiply(const uint8_t* tile, const uint8_t* record, int64_t block,
                            float* total) {
  __m256i sums[kTokens][kHalves];
  for (int t = 0; t < kTokens; ++t) sums[t][0] = sums[t][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < block; k += kColumns) {
    add_columns<kTokens>(tile + k * 8, record + k * kTokens, sums);
  }
  add_to_total(tile + wna16_scales_offset(4, block), record + block * kTokens, sums, total);
}

TINYCHAT_AVX2 float quantize(const float* x, int64_t count, int8_t* q) {
  return quantize_int8(x, count, q);
}

}  // namespace

const W4A8Body kW4A8Avx2 = {quantize, 4, {multiply<1>, multiply<2>, multiply<3>, multiply<4>}};

}  // namespace tinychat

#endif
