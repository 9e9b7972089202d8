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

#include "cpu/wna16.h"

// Set on each function and not for the whole file: a standard library template compiled for AVX2
// here could be the copy that the linker keeps for every file.
#define TINYCHAT_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TINYCHAT_AVX2_INLINE TINYCHAT_AVX2 __attribute__((always_inline)) inline

namespace tinychat {
namespace {

// A tile's rows are two halves of 8 fp32 lanes.
constexpr int kLanes = 8;
constexpr int kHalves = 2;

// Rows of x multiplied at once: 6 rows by 2 halves is 12 accumulators, and of the 16 registers
// two more hold weights and one holds x.
constexpr int64_t kRowsAtOnce = 6;

// q - zero of 8 rows, for the lower 4 of 8 k and for the higher 4, each in the bytes of a word.
// Subtracting the zero point here, in integers, is exact; taking it off afterwards through the sum
// of x would leave rounding errors as large as x where the weights themselves are zero.
struct Words {
  __m256i low;
  __m256i high;
};

TINYCHAT_AVX2_INLINE __m256i load_packed(const uint8_t* words) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
}

// The bits of `mask` of each byte, after bit `shift` has become bit 0.
TINYCHAT_AVX2_INLINE __m256i bits_of(__m256i packed, int shift, char mask) {
  return _mm256_and_si256(_mm256_srli_epi16(packed, shift), _mm256_set1_epi8(mask));
}

// `rows` points at the tile's first word of these rows; `octet` counts the tile's k in eights.
template <int kBits>
TINYCHAT_AVX2_INLINE Words load_words(const uint8_t* rows, int64_t octet, __m256i zeros) {
  constexpr char kMask = (1 << kBits) - 1;
  __m256i low, high;
  if (kBits == 3 && octet % 4 == 3) {
    const uint8_t* chunk = rows + octet / 4 * 3 * kSetBytes;
    const __m256i top = load_packed(chunk + 2 * kSetBytes);
    low = _mm256_or_si256(bits_of(load_packed(chunk), 6, 3), bits_of(top, 4, 4));
    high = _mm256_or_si256(bits_of(load_packed(chunk + kSetBytes), 6, 3), bits_of(top, 5, 4));
  } else {
    const int64_t set = kBits == 3 ? octet - octet / 4 : octet;
    const __m256i packed = load_packed(rows + set * kSetBytes);
    low = bits_of(packed, 0, kMask);
    high = bits_of(packed, kBits, kMask);
  }
  return {_mm256_sub_epi8(low, zeros), _mm256_sub_epi8(high, zeros)};
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
    const Words words[kHalves] = {load_words<kBits>(tile, octet, zeros[0]),
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
    for (int half = 0; half < kHalves; ++half) {
      const Words words = load_words<kBits>(tile + half * kLanes * 4, octet, zeros[half]);
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
  constexpr decltype(&multiply_rows<1>) kByRows[kRowsAtOnce] = {
      multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
      multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
  while (rows > 0) {
    const int64_t now = rows < kRowsAtOnce ? rows : kRowsAtOnce;
    kByRows[now - 1](scales, block, unpacked, x, x_stride, total);
    x += now * x_stride;
    total += now * kTileRows;
    rows -= now;
  }
}

}  // namespace

const WNA16Body kWNA16Avx2[2] = {{dot<3>, unpack<3>, multiply}, {dot<4>, unpack<4>, multiply}};

}  // namespace tinychat

#endif
