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

#if !defined(__clang__)
// g++ 12 says of its own header's intrinsics that they read what they leave undefined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "cpu/w8a8.h"

// On each function and not for the whole file; codes_avx2.h says why.
#define TINYCHAT_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define TINYCHAT_VNNI_INLINE TINYCHAT_VNNI __attribute__((always_inline)) inline

namespace tinychat {
namespace {

constexpr int64_t kLanes = 64;
static_assert(kW8A8Padding % kLanes == 0, "x is read in whole registers");

// 4 rows of 6 tokens are 24 sums; of the 32 registers 4 more hold weights, one x and one the bias.
constexpr int kRows = 4;
constexpr int kMaxTokens = 6;

// In assembly for the reason that w4a8_avx512vnni.cpp gives.
TINYCHAT_VNNI_INLINE void add_products(__m512i& sums, __m512i biased, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(biased), "v"(x));
}

template <int kTokens>
TINYCHAT_VNNI_INLINE void add_step(const int8_t* const* w, int64_t i, __mmask64 inside,
                                   const int8_t* x, int64_t x_stride,
                                   __m512i (&sums)[kTokens][kRows]) {
  __m512i biased[kRows];
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
    biased[row] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, w[row] + i),
                                   _mm512_set1_epi8(-kW8A8Bias));
  }
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    const __m512i token = _mm512_loadu_si512(x + t * x_stride + i);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) add_products(sums[t][row], biased[row], token);
  }
}

// The four sums of the lanes.
TINYCHAT_VNNI_INLINE __m128i totals(const __m512i (&sums)[kRows]) {
  const __m512i first = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]),
                                         _mm512_unpackhi_epi32(sums[0], sums[1]));
  const __m512i second = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], sums[3]),
                                          _mm512_unpackhi_epi32(sums[2], sums[3]));
  const __m512i four = _mm512_add_epi32(_mm512_unpacklo_epi64(first, second),
                                        _mm512_unpackhi_epi64(first, second));
  const __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(four),
                                       _mm512_extracti64x4_epi64(four, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
}

template <int kTokens>
TINYCHAT_VNNI void multiply_tokens(const int8_t* const* w, const int8_t* x, const int32_t* x_sums,
                                   int64_t x_stride, int64_t k, int32_t* out) {
  __m512i sums[kTokens][kRows];
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    for (int row = 0; row < kRows; ++row) sums[t][row] = _mm512_setzero_si512();
  }
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    // Of the next rows, for the reason that w8a8_avx2.cpp gives.
    for (int row = 0; row < kRows; ++row) {
      _mm_prefetch(w[0] + kRows * (k + i) + row * kLanes, _MM_HINT_T0);
    }
    add_step<kTokens>(w, i, ~__mmask64{0}, x, x_stride, sums);
  }
  // The weight may end where its last row ends.
  if (i < k) add_step<kTokens>(w, i, (__mmask64{1} << (k - i)) - 1, x, x_stride, sums);
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    const __m128i excess = _mm_set1_epi32(kW8A8Bias * x_sums[t]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + t * kRows),
                     _mm_sub_epi32(totals(sums[t]), excess));
  }
}

TINYCHAT_VNNI void multiply(const int8_t* const* w, const int8_t* x, const int32_t* x_sums,
                            int64_t x_stride, int64_t k, int64_t tokens, int32_t* sums) {
  constexpr decltype(&multiply_tokens<1>) kByTokens[kMaxTokens] = {
      multiply_tokens<1>, multiply_tokens<2>, multiply_tokens<3>,
      multiply_tokens<4>, multiply_tokens<5>, multiply_tokens<6>};
  kByTokens[tokens - 1](w, x, x_sums, x_stride, k, sums);
}

TINYCHAT_VNNI float quantize(const float* x, int64_t count, int8_t* q) {
  return quantize_int8(x, count, q);
}

}  // namespace

const W8A8Body kW8A8Avx512Vnni = {quantize, kRows, kMaxTokens, multiply};

}  // namespace tinychat

#endif
