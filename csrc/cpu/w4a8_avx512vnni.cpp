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

#include <utility>

#include "cpu/w4a8.h"

// On each function and not for the whole file; codes_avx2.h says why.
#define TINYCHAT_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define TINYCHAT_VNNI_INLINE TINYCHAT_VNNI __attribute__((always_inline)) inline

namespace tinychat {
namespace {

// sums[16] += 4 products each: the codes' unsigned bytes times the 4 signed bytes at x. Around the
// intrinsic g++ 12 copied and spilled sums: 12 tokens ran at half the speed.
TINYCHAT_VNNI_INLINE void add_fours(__m512i& sums, __m512i codes, const uint8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sums)
      : "v"(codes), "m"(*reinterpret_cast<const uint8_t(*)[4]>(x)));
}

// total[token] += the sums, less those of the zero points, times the scales: `scales` of the tile,
// `x_scales` of the record.
template <int kTokens>
TINYCHAT_VNNI_INLINE void add_to_total(const uint8_t* scales, const uint8_t* x_scales,
                                       const __m512i (&sums)[kTokens], float* total) {
  const __m512 row_scales =
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
  const __m512i zeros = _mm512_cvtepu8_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + kTileRows * 2)));
#pragma GCC unroll 24
  for (int t = 0; t < kTokens; ++t, total += kTileRows) {
    const __m512i negative_sum =
        _mm512_set1_epi32(load_scalar<int32_t>(x_scales + (kTokens + t) * 4));
    const __m512i difference = _mm512_dpwssd_epi32(sums[t], zeros, negative_sum);
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(difference), row_scales);
    const __m512 scale = _mm512_set1_ps(load_scalar<float>(x_scales + t * 4));
    _mm512_storeu_ps(total, _mm512_fmadd_ps(scaled, scale, _mm512_loadu_ps(total)));
  }
}

// What of a tile is read at once: 8 k of 4 bits, 32 k of 3 bits.
template <int kBits>
constexpr int kOctets = kBits == 3 ? 4 : 1;
template <int kBits>
constexpr int kSets = kBits == 3 ? 3 : 1;

// The codes of 16 rows, for the lower 4 of 8 k and for the higher 4, each in the bytes of a word.
struct Codes {
  __m512i low;
  __m512i high;
};

template <int kBits>
TINYCHAT_VNNI_INLINE Codes codes_of(const __m512i (&packed)[kSets<kBits>], int octet) {
  const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
  if constexpr (kBits == 3) {
    if (octet == 3) {
      // Bit 2 is that of the second, the others those of the third.
      constexpr int kSelect = 0xCA;
      const __m512i bit_2 = _mm512_set1_epi8(4);
      const __m512i low = _mm512_ternarylogic_epi32(
          bit_2, _mm512_srli_epi16(packed[2], 4), _mm512_srli_epi16(packed[0], 6), kSelect);
      const __m512i high = _mm512_ternarylogic_epi32(
          bit_2, _mm512_srli_epi16(packed[2], 5), _mm512_srli_epi16(packed[1], 6), kSelect);
      return {_mm512_and_si512(low, mask), _mm512_and_si512(high, mask)};
    }
  }
  return {_mm512_and_si512(packed[octet], mask),
          _mm512_and_si512(_mm512_srli_epi16(packed[octet], kBits), mask)};
}

template <int kBits, int kTokens>
TINYCHAT_VNNI void multiply(const uint8_t* tile, const uint8_t* record, int64_t block,
                            float* total) {
  // A sum waits for its last addition, so that few tokens take two each.
  constexpr int kChains = kTokens <= 12 ? 2 : 1;
  const uint8_t* x = record;
  __m512i sums[kChains][kTokens];
#pragma GCC unroll 24
  for (int t = 0; t < kTokens; ++t) {
    sums[0][t] = _mm512_setzero_si512();
    sums[kChains - 1][t] = _mm512_setzero_si512();
  }
  int64_t k = 0;
  do {
    __m512i packed[kSets<kBits>];
#pragma GCC unroll 3
    for (int set = 0; set < kSets<kBits>; ++set, tile += kSetBytes) {
      packed[set] = _mm512_loadu_si512(tile);
      // g++ would read it from memory twice, which took a quarter longer: most cross a cache line.
      asm("" : "+v"(packed[set]));
      _mm_prefetch(tile + kPrefetchBytes, _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int octet = 0; octet < kOctets<kBits>; ++octet, x += 8 * kTokens) {
      const Codes codes = codes_of<kBits>(packed, octet);
#pragma GCC unroll 24
      for (int t = 0; t < kTokens; ++t) add_fours(sums[0][t], codes.low, x + t * 4);
#pragma GCC unroll 24
      for (int t = 0; t < kTokens; ++t) {
        add_fours(sums[kChains - 1][t], codes.high, x + (kTokens + t) * 4);
      }
    }
    k += 8 * kOctets<kBits>;
  } while (k < block);
#pragma GCC unroll 24
  for (int t = 0; t < kTokens && kChains > 1; ++t) {
    sums[0][t] = _mm512_add_epi32(sums[0][t], sums[kChains - 1][t]);
  }
  add_to_total(tile, x, sums[0], total);
}

TINYCHAT_VNNI float quantize(const float* x, int64_t count, int8_t* q) {
  return quantize_int8(x, count, q);
}

template <int kBits, int... kIndices>
constexpr W4A8Body body(std::integer_sequence<int, kIndices...>) {
  return {quantize, sizeof...(kIndices), {multiply<kBits, kIndices + 1>...}};
}

}  // namespace

const W4A8Body kW3A8Avx512Vnni = body<3>(std::make_integer_sequence<int, 24>());
const W4A8Body kW4A8Avx512Vnni = body<4>(std::make_integer_sequence<int, 24>());

}  // namespace tinychat

#endif
