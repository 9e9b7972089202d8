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

#if defined(__aarch64__)

#include <arm_neon.h>

#include "cpu/wna16.h"

namespace tinychat {
namespace {

// A tile's rows are four quarters of 4 lanes.
constexpr int kLanes = 4;
constexpr int kQuarters = kTileRows / kLanes;

// q - zero of 4 rows, for the lower 4 of 8 k and for the higher 4, each in the bytes of a word.
// Written to memory as they are unpacked by the generic body, weights took twice the instructions.
struct Words {
  int8x16_t low;
  int8x16_t high;
};

template <int kShift>
inline uint8x16_t bits_of(uint8x16_t packed, uint8_t mask) {
  return vandq_u8(vshrq_n_u8(packed, kShift), vdupq_n_u8(mask));
}

// `rows` points at the tile's first word of these rows; `octet` counts the tile's k in eights.
template <int kBits>
inline Words load_words(const uint8_t* rows, int64_t octet, uint8x16_t zeros) {
  constexpr uint8_t kMask = (1 << kBits) - 1;
  uint8x16_t low, high;
  if (kBits == 3 && octet % 4 == 3) {
    const uint8_t* chunk = rows + octet / 4 * 3 * kSetBytes;
    const uint8x16_t top = vld1q_u8(chunk + 2 * kSetBytes);
    low = vorrq_u8(vshrq_n_u8(vld1q_u8(chunk), 6), bits_of<4>(top, 4));
    high = vorrq_u8(vshrq_n_u8(vld1q_u8(chunk + kSetBytes), 6), bits_of<5>(top, 4));
  } else {
    const int64_t set = kBits == 3 ? octet - octet / 4 : octet;
    const uint8x16_t packed = vld1q_u8(rows + set * kSetBytes);
    low = vandq_u8(packed, vdupq_n_u8(kMask));
    high = bits_of<kBits>(packed, kMask);
  }
  return {vreinterpretq_s8_u8(vsubq_u8(low, zeros)), vreinterpretq_s8_u8(vsubq_u8(high, zeros))};
}

// Byte i of each word as a float. At the top of its word, with zeros below, it needs no sign
// extension, and the conversion divides by 2^24.
inline float32x4_t byte_to_float(int8x16_t words, int i) {
  // An index of 255 writes a zero.
  const uint32x4_t byte_0_to_top = {0x00ffffff, 0x04ffffff, 0x08ffffff, 0x0cffffff};
  const uint32x4_t byte_i_to_top = vaddq_u32(byte_0_to_top, vdupq_n_u32(i << 24));
  const int8x16_t top = vqtbl1q_s8(words, vreinterpretq_u8_u32(byte_i_to_top));
  return vcvtq_n_f32_s32(vreinterpretq_s32_s8(top), 24);
}

// The zero points of a quarter, each repeated in the 4 bytes of its row's word.
inline uint8x16_t load_zeros(const uint8_t* zeros, int quarter) {
  const uint8x16_t row_of_byte = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  return vqtbl1q_u8(vld1q_u8(zeros), vaddq_u8(row_of_byte, vdupq_n_u8(quarter * kLanes)));
}

inline void add_to_total(const float32x4_t (&sums)[kQuarters], const uint8_t* scales,
                         float* total) {
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const float32x4_t row_scales = vcvt_f32_f16(
        vreinterpret_f16_u8(vld1_u8(scales + quarter * kLanes * 2)));
    float* lanes = total + quarter * kLanes;
    vst1q_f32(lanes, vfmaq_f32(vld1q_f32(lanes), sums[quarter], row_scales));
  }
}

template <int kBits>
void dot(const uint8_t* tile, int64_t block, const float* x, float* total) {
  uint8x16_t zeros[kQuarters];
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    zeros[quarter] = load_zeros(tile + wna16_zeros_offset(kBits, block), quarter);
  }
  float32x4_t sums[kQuarters] = {};
  for (int64_t octet = 0; octet < block / 8; ++octet, x += 8) {
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const Words words = load_words<kBits>(tile + quarter * 16, octet, zeros[quarter]);
      for (int i = 0; i < 4; ++i) {
        sums[quarter] = vfmaq_n_f32(sums[quarter], byte_to_float(words.low, i), x[i]);
      }
      for (int i = 0; i < 4; ++i) {
        sums[quarter] = vfmaq_n_f32(sums[quarter], byte_to_float(words.high, i), x[4 + i]);
      }
    }
  }
  add_to_total(sums, tile + wna16_scales_offset(kBits, block), total);
}

// Writes q - zero as [k][row].
template <int kBits>
void unpack(const uint8_t* tile, int64_t block, float* unpacked) {
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const uint8x16_t zeros = load_zeros(tile + wna16_zeros_offset(kBits, block), quarter);
    for (int64_t octet = 0; octet < block / 8; ++octet) {
      const Words words = load_words<kBits>(tile + quarter * 16, octet, zeros);
      float* low = unpacked + octet * 8 * kTileRows + quarter * kLanes;
      float* high = low + 4 * kTileRows;
      for (int i = 0; i < 4; ++i) {
        vst1q_f32(low + i * kTileRows, byte_to_float(words.low, i));
        vst1q_f32(high + i * kTileRows, byte_to_float(words.high, i));
      }
    }
  }
}

// Adds in the order in which dot() does.
template <int kRows>
void multiply_rows(const uint8_t* scales, int64_t block, const float* unpacked, const float* x,
                   int64_t x_stride, float* total) {
  float32x4_t sums[kRows][kQuarters] = {};
  for (int64_t k = 0; k < block; ++k, unpacked += kTileRows) {
#pragma GCC unroll 4
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const float32x4_t weights = vld1q_f32(unpacked + quarter * kLanes);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        sums[row][quarter] = vfmaq_n_f32(sums[row][quarter], weights, x[row * x_stride + k]);
      }
    }
  }
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) add_to_total(sums[row], scales, total + row * kTileRows);
}

void multiply(const uint8_t* scales, int64_t block, const float* unpacked, const float* x,
              int64_t x_stride, int64_t rows, float* total) {
  // 4 rows by 4 quarters are 16 sums, in half of the registers.
  constexpr WNA16MultiplyRows kByRows[] = {
      multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>};
  wna16_multiply(kByRows, scales, block, unpacked, x, x_stride, rows, total);
}

}  // namespace

const WNA16Body kWNA16Neon[2] = {{dot<3>, unpack<3>, multiply}, {dot<4>, unpack<4>, multiply}};

}  // namespace tinychat

#endif
