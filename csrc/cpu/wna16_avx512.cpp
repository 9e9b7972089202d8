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

#include "cpu/wna16.h"

// On each function and not for the whole file; codes_avx2.h says why.
#define TINYCHAT_AVX512 __attribute__((target("avx512f,avx512bw")))
#define TINYCHAT_AVX512_INLINE TINYCHAT_AVX512 __attribute__((always_inline)) inline

namespace tinychat {
namespace {

// A code becomes a float without a conversion. Where it stands in its word, at bit 8i, it is put
// into the mantissa of 2^23, and 2^23 with the zero point in the same place is taken off, which is
// exact: that leaves (q - zero) * 2^8i. What stands too high for a mantissa, at bit 24, moves to
// bit 16 first. add_to_total() takes the powers back.
constexpr int32_t kMagic = 0x4B000000;

// The codes of 16 rows, each at the bottom of its byte, below bits of others: for the lower 4 of 8
// k and for the higher 4.
struct Words {
  __m512i low;
  __m512i high;
};

// `octet` counts the tile's k in eights.
template <int kBits>
TINYCHAT_AVX512_INLINE Words load_words(const uint8_t* tile, int64_t octet) {
  _mm_prefetch(tile + octet * kSetBytes + kPrefetchBytes, _MM_HINT_T0);
  if (kBits == 3 && octet % 4 == 3) {
    // Bit 2 is that of the second, the others those of the third.
    constexpr int kSelect = 0xCA;
    const __m512i bit_2 = _mm512_set1_epi8(4);
    const uint8_t* chunk = tile + octet / 4 * 3 * kSetBytes;
    const __m512i top = _mm512_loadu_si512(chunk + 2 * kSetBytes);
    const __m512i low = _mm512_srli_epi32(_mm512_loadu_si512(chunk), 6);
    const __m512i high = _mm512_srli_epi32(_mm512_loadu_si512(chunk + kSetBytes), 6);
    return {_mm512_ternarylogic_epi32(bit_2, _mm512_srli_epi32(top, 4), low, kSelect),
            _mm512_ternarylogic_epi32(bit_2, _mm512_srli_epi32(top, 5), high, kSelect)};
  }
  const int64_t set = kBits == 3 ? octet - octet / 4 : octet;
  const __m512i packed = _mm512_loadu_si512(tile + set * kSetBytes);
  return {packed, _mm512_srli_epi32(packed, kBits)};
}

// 2^23 with the zero points at bit 0, 8 and 16.
struct Zeros {
  __m512 at[3];
};

TINYCHAT_AVX512_INLINE Zeros load_zeros(const uint8_t* zeros) {
  const __m512i words =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  const __m512i magic = _mm512_set1_epi32(kMagic);
  return {{_mm512_castsi512_ps(_mm512_or_si512(words, magic)),
           _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(words, 8), magic)),
           _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(words, 16), magic))}};
}

// Byte i of each word: (q - zero) * 2^8i, or * 2^16 for the last.
template <int kBits>
TINYCHAT_AVX512_INLINE __m512 weights_of(__m512i words, int i, const Zeros& zeros) {
  constexpr int kAndOr = 0xEA;
  const int place = i < 3 ? i : 2;
  if (i == 3) words = _mm512_srli_epi32(words, 8);
  const __m512i mask = _mm512_set1_epi32(((1 << kBits) - 1) << 8 * place);
  const __m512i code =
      _mm512_ternarylogic_epi32(words, mask, _mm512_set1_epi32(kMagic), kAndOr);
  return _mm512_sub_ps(_mm512_castsi512_ps(code), zeros.at[place]);
}

// Adds the sums over each byte of the words.
TINYCHAT_AVX512_INLINE void add_to_total(const __m512 (&sums)[4], __m512 scales, float* total) {
  __m512 sum = _mm512_fmadd_ps(sums[1], _mm512_set1_ps(0x1p-8f), sums[0]);
  sum = _mm512_fmadd_ps(_mm512_add_ps(sums[2], sums[3]), _mm512_set1_ps(0x1p-16f), sum);
  _mm512_storeu_ps(total, _mm512_fmadd_ps(sum, scales, _mm512_loadu_ps(total)));
}

TINYCHAT_AVX512_INLINE __m512 load_scales(const uint8_t* scales) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
}

template <int kBits>
TINYCHAT_AVX512 void dot(const uint8_t* tile, int64_t block, const float* x, float* total) {
  const Zeros zeros = load_zeros(tile + wna16_zeros_offset(kBits, block));
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                    _mm512_setzero_ps()};
  for (int64_t octet = 0; octet < block / 8; ++octet, x += 8) {
    const Words words = load_words<kBits>(tile, octet);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[i]), weights_of<kBits>(words.low, i, zeros),
                                sums[i]);
      sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[4 + i]),
                                weights_of<kBits>(words.high, i, zeros), sums[i]);
    }
  }
  add_to_total(sums, load_scales(tile + wna16_scales_offset(kBits, block)), total);
}

// Writes what dot() multiplies by as [k][row].
template <int kBits>
TINYCHAT_AVX512 void unpack(const uint8_t* tile, int64_t block, float* unpacked) {
  const Zeros zeros = load_zeros(tile + wna16_zeros_offset(kBits, block));
  for (int64_t octet = 0; octet < block / 8; ++octet, unpacked += 8 * kTileRows) {
    const Words words = load_words<kBits>(tile, octet);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm512_storeu_ps(unpacked + i * kTileRows, weights_of<kBits>(words.low, i, zeros));
      _mm512_storeu_ps(unpacked + (4 + i) * kTileRows, weights_of<kBits>(words.high, i, zeros));
    }
  }
}

template <int kRows>
TINYCHAT_AVX512 void multiply_rows(const uint8_t* scales, int64_t block, const float* unpacked,
                                   const float* x, int64_t x_stride, float* total) {
  __m512 sums[kRows][4];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[row][i] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < block; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512 weights = _mm512_loadu_ps(unpacked + (k + i) * kTileRows);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row) {
        const __m512 value = _mm512_set1_ps(x[row * x_stride + k + i]);
        sums[row][i] = _mm512_fmadd_ps(value, weights, sums[row][i]);
      }
    }
  }
  const __m512 scale = load_scales(scales);
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) add_to_total(sums[row], scale, total + row * kTileRows);
}

TINYCHAT_AVX512 void multiply(const uint8_t* scales, int64_t block, const float* unpacked,
                              const float* x, int64_t x_stride, int64_t rows, float* total) {
  // Each row has a sum for each byte of a word: 24 of the 32 registers.
  constexpr WNA16MultiplyRows kByRows[] = {
      multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
      multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
  wna16_multiply(kByRows, scales, block, unpacked, x, x_stride, rows, total);
}

}  // namespace

const WNA16Body kWNA16Avx512[2] = {{dot<3>, unpack<3>, multiply}, {dot<4>, unpack<4>, multiply}};

}  // namespace tinychat

#endif
