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

#include "cpu/codes_avx2.h"

namespace tinychat {
namespace {

// The codes less the zero points. Subtracting here, in integers, is exact; taking the zero points
// off afterwards through the sum of x would leave rounding errors as large as x where the weights
// themselves are zero.
template <int kBits>
TINYCHAT_AVX2_INLINE Codes load_words(const uint8_t* rows, int64_t octet, __m256i zeros) {
  const Codes codes = load_codes<kBits>(rows, octet);
  return {_mm256_sub_epi8(codes.low, zeros), _mm256_sub_epi8(codes.high, zeros)};
}

// Byte i of each word as a float times 2^24: a byte put at the top of its word needs no sign
// extension, and load_scales() takes the factor back.
TINYCHAT_AVX2_INLINE __m256 byte_to_float(__m256i words, int i) {
  // An index of 0x80 writes a zero.
  const __m256i byte_0_to_top =
      _mm256_setr_epi32(0x00808080, 0x04808080, 0x08808080, 0x0C808080,  //
                        0x00808080, 0x04808080, 0x08808080, 0x0C808080);
  const __m256i byte_i_to_top = _mm256_add_epi32(byte_0_to_top, _mm256_set1_epi32(i << 24));
  return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(words, byte_i_to_top));
}

// The zero points of one half, each repeated in the 4 bytes of its row's word.
TINYCHAT_AVX2_INLINE __m256i load_zeros(const uint8_t* zeros, int half) {
  const __m256i words = _mm256_cvtepu8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + half * kLanes)));
  return _mm256_mullo_epi32(words, _mm256_set1_epi32(0x01010101));
}

TINYCHAT_AVX2_INLINE __m256 load_scales(const uint8_t* scales, int half) {
  const __m256 floats = _mm256_cvtph_ps(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + half * kLanes * 2)));
  return _mm256_mul_ps(floats, _mm256_set1_ps(0x1p-24f));
}

// Adds two partial sums to a total, one over the lower 4 of every 8 k and one over the higher. Two
// sums instead of one keep dot() from waiting for the latency of its additions.
TINYCHAT_AVX2_INLINE void add_to_total(__m256 low, __m256 high, __m256 scales, float* total) {
  const __m256 sum = _mm256_add_ps(low, high);
  _mm256_storeu_ps(total, _mm256_fmadd_ps(sum, scales, _mm256_loadu_ps(total)));
}

// sum[half] += the 4 bytes of that half's words times x[4]. In one loop over low and high words,
// dot() ran an eighth slower: g++ 12 then kept a sum in memory.
TINYCHAT_AVX2_INLINE void add_fours(__m256i first, __m256i second, const float* x,
                                    __m256 (&sum)[kHalves]) {
  for (int i = 0; i < 4; ++i) {
    const __m256 value = _mm256_broadcast_ss(x + i);
    sum[0] = _mm256_fmadd_ps(value, byte_to_float(first, i), sum[0]);
    sum[1] = _mm256_fmadd_ps(value, byte_to_float(second, i), sum[1]);
  }
}

template <int kBits>
TINYCHAT_AVX2 void dot(const uint8_t* tile, int64_t block, const float* x, float* total) {
  const uint8_t* all_zeros = tile + wna16_zeros_offset(kBits, block);
  const __m256i zeros[kHalves] = {load_zeros(all_zeros, 0), load_zeros(all_zeros, 1)};
  __m256 low[kHalves] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  __m256 high[kHalves] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t octet = 0; octet < block / 8; ++octet, x += 8) {
    _mm_prefetch(tile + octet * kSetBytes + kPrefetchBytes, _MM_HINT_T0);
    const Codes words[kHalves] = {load_words<kBits>(tile, octet, zeros[0]),
                                  load_words<kBits>(tile + kLanes * 4, octet, zeros[1])};
    add_fours(words[0].low, words[1].low, x, low);
    add_fours(words[0].high, words[1].high, x + 4, high);
  }
  const uint8_t* scales = tile + wna16_scales_offset(kBits, block);
  for (int half = 0; half < kHalves; ++half) {
    add_to_total(low[half], high[half], load_scales(scales, half), total + half * kLanes);
  }
}

// Writes (q - zero) * 2^24 as [k][row].
template <int kBits>
TINYCHAT_AVX2 void unpack(const uint8_t* tile, int64_t block, float* unpacked) {
  const uint8_t* all_zeros = tile + wna16_zeros_offset(kBits, block);
  const __m256i zeros[kHalves] = {load_zeros(all_zeros, 0), load_zeros(all_zeros, 1)};
  for (int64_t octet = 0; octet < block / 8; ++octet) {
    _mm_prefetch(tile + octet * kSetBytes + kPrefetchBytes, _MM_HINT_T0);
    for (int half = 0; half < kHalves; ++half) {
      const Codes words = load_words<kBits>(tile + half * kLanes * 4, octet, zeros[half]);
      float* low = unpacked + octet * 8 * kTileRows + half * kLanes;
      float* high = low + 4 * kTileRows;
      for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(low + i * kTileRows, byte_to_float(words.low, i));
        _mm256_storeu_ps(high + i * kTileRows, byte_to_float(words.high, i));
      }
    }
  }
}

// sum[row][half] = the dot products over 4 of every 8 k, in the order in which dot() adds them.
// `unpacked` and `x` point at the first of these k.
template <int kRows>
TINYCHAT_AVX2_INLINE void multiply_fours(const float* unpacked, int64_t block, const float* x,
                                         int64_t x_stride, __m256 (&sum)[kRows][kHalves]) {
  for (int row = 0; row < kRows; ++row) sum[row][0] = sum[row][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < block; k += 8) {
    for (int i = 0; i < 4; ++i) {
      const float* weights = unpacked + (k + i) * kTileRows;
      const __m256 first = _mm256_loadu_ps(weights);
      const __m256 second = _mm256_loadu_ps(weights + kLanes);
      for (int row = 0; row < kRows; ++row) {
        const __m256 value = _mm256_broadcast_ss(x + row * x_stride + k + i);
        sum[row][0] = _mm256_fmadd_ps(value, first, sum[row][0]);
        sum[row][1] = _mm256_fmadd_ps(value, second, sum[row][1]);
      }
    }
  }
}

template <int kRows>
TINYCHAT_AVX2 void multiply_rows(const uint8_t* scales, int64_t block, const float* unpacked,
                                 const float* x, int64_t x_stride, float* total) {
  __m256 low[kRows][kHalves];
  __m256 high[kRows][kHalves];
  multiply_fours<kRows>(unpacked, block, x, x_stride, low);
  multiply_fours<kRows>(unpacked + 4 * kTileRows, block, x + 4, x_stride, high);
  for (int half = 0; half < kHalves; ++half) {
    const __m256 scale = load_scales(scales, half);
    for (int row = 0; row < kRows; ++row) {
      add_to_total(low[row][half], high[row][half], scale,
                   total + row * kTileRows + half * kLanes);
    }
  }
}

TINYCHAT_AVX2 void multiply(const uint8_t* scales, int64_t block, const float* unpacked,
                            const float* x, int64_t x_stride, int64_t rows, float* total) {
  // 6 rows by 2 halves is 12 accumulators, and of the 16 registers two more hold weights and one
  // holds x.
  constexpr WNA16MultiplyRows kByRows[] = {
      multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
      multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
  wna16_multiply(kByRows, scales, block, unpacked, x, x_stride, rows, total);
}

}  // namespace

const WNA16Body kWNA16Avx2[2] = {{dot<3>, unpack<3>, multiply}, {dot<4>, unpack<4>, multiply}};

}  // namespace tinychat

#endif
