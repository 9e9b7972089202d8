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

#include <cstring>

#include "cpu/w8a8.h"

// On each function and not for the whole file; codes_avx2.h says why.
#define TINYCHAT_AVX2 __attribute__((target("avx2")))
#define TINYCHAT_AVX2_INLINE TINYCHAT_AVX2 __attribute__((always_inline)) inline

namespace tinychat {
namespace {

constexpr int64_t kLanes = 32;
constexpr int64_t kRows = 2;
static_assert(kW8A8Padding % kLanes == 0, "x is read in whole registers");

TINYCHAT_AVX2_INLINE __m256i load(const int8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// One factor of a product has to be unsigned: for AVX-VNNI it is the weight plus kW8A8Bias, else
// |w|, where x takes the sign of w.
template <bool kVnni>
TINYCHAT_AVX2_INLINE __m256i unsigned_of(__m256i w) {
  return kVnni ? _mm256_xor_si256(w, _mm256_set1_epi8(-kW8A8Bias)) : _mm256_abs_epi8(w);
}

// Adds 32 products to 8 sums.
template <bool kVnni>
TINYCHAT_AVX2_INLINE void add_products(__m256i& sums, __m256i w, __m256i w_unsigned, __m256i x) {
  if constexpr (kVnni) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(w_unsigned), "x"(x));
  } else {
    // Two products are at most 2 * 127 * 128 and do not saturate int16.
    const __m256i pairs = _mm256_maddubs_epi16(w_unsigned, _mm256_sign_epi8(x, w));
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}

template <bool kVnni, int kTokens>
TINYCHAT_AVX2_INLINE void add_step(const int8_t* first, const int8_t* second, const int8_t* x,
                                   int64_t x_stride, __m256i (&sums)[kTokens][kRows]) {
  const __m256i w[] = {load(first), load(second)};
  const __m256i w_unsigned[] = {unsigned_of<kVnni>(w[0]), unsigned_of<kVnni>(w[1])};
  // Where a loop over tokens stays a loop, here or below, g++ 12 keeps the sums in memory.
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const __m256i token = load(x + t * x_stride);
    add_products<kVnni>(sums[t][0], w[0], w_unsigned[0], token);
    add_products<kVnni>(sums[t][1], w[1], w_unsigned[1], token);
  }
}

TINYCHAT_AVX2_INLINE int32_t total(__m256i sums) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  four = _mm_hadd_epi32(four, four);
  return _mm_cvtsi128_si32(_mm_hadd_epi32(four, four));
}

template <bool kVnni, int kTokens>
TINYCHAT_AVX2 void multiply_tokens(const int8_t* const* w, const int8_t* x, const int32_t* x_sums,
                                   int64_t x_stride, int64_t k, int32_t* out) {
  __m256i sums[kTokens][kRows];
#pragma GCC unroll 4
  for (auto& token : sums) token[0] = token[1] = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    // A row of 4 KiB is a page, where a processor's own prefetching stops. One cache line of the
    // next two rows with each step made the product of one token 3 times as fast.
    _mm_prefetch(w[0] + kRows * (k + i), _MM_HINT_T0);
    add_step<kVnni>(w[0] + i, w[1] + i, x + i, x_stride, sums);
  }
  if (i < k) {
    // The weight may end where its last row ends.
    int8_t tail[kRows][kLanes] = {};
    for (int row = 0; row < kRows; ++row) std::memcpy(tail[row], w[row] + i, k - i);
    add_step<kVnni>(tail[0], tail[1], x + i, x_stride, sums);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const uint32_t excess = kVnni ? kW8A8Bias * x_sums[t] : 0;
#pragma GCC unroll 2
    for (int row = 0; row < kRows; ++row) *out++ = total(sums[t][row]) - excess;
  }
}

template <bool kVnni>
TINYCHAT_AVX2 void multiply(const int8_t* const* w, const int8_t* x, const int32_t* x_sums,
                            int64_t x_stride, int64_t k, int64_t tokens, int32_t* sums) {
  constexpr decltype(&multiply_tokens<kVnni, 1>) kByTokens[] = {
      multiply_tokens<kVnni, 1>, multiply_tokens<kVnni, 2>, multiply_tokens<kVnni, 3>,
      multiply_tokens<kVnni, 4>};
  kByTokens[tokens - 1](w, x, x_sums, x_stride, k, sums);
}

TINYCHAT_AVX2 float quantize(const float* x, int64_t count, int8_t* q) {
  return quantize_int8(x, count, q);
}

}  // namespace

const W8A8Body kW8A8Avx2 = {quantize, kRows, 4, multiply<false>};
#if defined(TINYCHAT_AVXVNNI)
const W8A8Body kW8A8AvxVnni = {quantize, kRows, 4, multiply<true>};
#endif

}  // namespace tinychat

#endif
