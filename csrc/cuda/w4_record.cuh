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

// The run-time layout of a W4 weight. A record holds 16 rows by 128 columns, and a tile of 16 rows
// is its records along K, which a kernel streams:
//
//   1024 bytes   two tiles of 64 columns, each [32 lanes][16 bytes]: the A operands that a lane
//                gives to four m16n8k16, a word for each
//   32 bytes     fp16 scales [16 rows], times 128 / group_size
//   8 bytes      zeros, row r in nibble r, times 128 / group_size, padded to a multiple of 16
//
// With g = lane / 4 and t = lane % 4, nibble i of word s of a lane is
//   row     g + 8 (i % 2)
//   column  32 (s / 2) + 8 t + 4 (s % 2) + 2 (i % 4 / 2) + i / 4   of its 64
// so that the activations that go with words 2h and 2h + 1 are 8 in a row, 16 bytes, and pair j of
// the word, nibbles j and j + 4, is register j of the operand. Rows that pad a weight and groups
// behind its columns are zeros; columns that pad a group have the code 0, and its scale. A group
// larger than 128 repeats its scales in each record. tinychat_ros/kernels/packing.py holds a twin.

#pragma once

#include "cuda/pack.cuh"
#include "cuda/prim.cuh"

namespace tinychat {

constexpr int kRecordRows = 16;
constexpr int kRecordColumns = 128;
constexpr int kRecordHalves = kRecordColumns / 32;  // Of 32 columns, the smallest group.
constexpr int kRecordWeightBytes = kRecordRows * kRecordColumns / 2;

__host__ __device__ constexpr int record_groups(int group_size) {
  return kRecordColumns / group_size;
}

__host__ __device__ constexpr int record_bytes(int group_size) {
  const int groups = record_groups(group_size);
  return kRecordWeightBytes + 32 * groups + (groups == 1 ? 16 : 8 * groups);
}

__host__ __device__ constexpr int record_scales_at() { return kRecordWeightBytes; }

__host__ __device__ constexpr int record_zeros_at(int group_size) {
  return kRecordWeightBytes + 32 * record_groups(group_size);
}

// Turns words of a lane into operands of exact integers, q - zero. Built once per group, for the
// lane's rows g and g + 8.
template <typename T>
class Dequantizer;

template <>
class Dequantizer<half> {
 public:
  __device__ Dequantizer(unsigned zero_low, unsigned zero_high)
      : offset_low_(pair_of<half>((kExponent10 | zero_low) * 0x10001)),
        offset_high_(pair_of<half>((kMinus64 | zero_high << 4) * 0x10001)) {}

  // An fp16 of exponent 2^10 whose mantissa is q is 1024 + q; four bits higher it is 1024 + 16 q.
  __device__ __forceinline__ void operator()(uint32_t word, uint32_t (&a)[4]) const {
    const half2 sixteenth = __half2half2(__float2half(1.0f / 16));
    const uint32_t upper = word >> 8;
    a[0] = bits_of(__hsub2(number<0x000f000f>(word), offset_low_));
    a[1] = bits_of(__hfma2(number<0x00f000f0>(word), sixteenth, offset_high_));
    a[2] = bits_of(__hsub2(number<0x000f000f>(upper), offset_low_));
    a[3] = bits_of(__hfma2(number<0x00f000f0>(upper), sixteenth, offset_high_));
  }

 private:
  static constexpr uint32_t kExponent10 = 0x6400;
  static constexpr uint32_t kMinus64 = 0xd400;  // 16 times its last place is 1.

  template <uint32_t kMask>
  static __device__ __forceinline__ half2 number(uint32_t word) {
    return pair_of<half>(and_or<kMask>(word, kExponent10 * 0x10001));
  }

  half2 offset_low_;
  half2 offset_high_;
};

template <>
class Dequantizer<__nv_bfloat16> {
 public:
  __device__ Dequantizer(unsigned zero_low, unsigned zero_high)
      : offset_{pair_of<__nv_bfloat16>((kExponent7 | zero_low) * 0x10001),
                pair_of<__nv_bfloat16>((kExponent7 | zero_high) * 0x10001)} {}

  // A bf16 of exponent 2^7 whose mantissa is q is 128 + q.
  __device__ __forceinline__ void operator()(uint32_t word, uint32_t (&a)[4]) const {
    for (int j = 0; j < 4; ++j) {
      const uint32_t number = and_or<0x000f000f>(word >> 4 * j, kExponent7 * 0x10001);
      a[j] = bits_of(__hsub2(pair_of<__nv_bfloat16>(number), offset_[j % 2]));
    }
  }

 private:
  static constexpr uint32_t kExponent7 = 0x4300;

  __nv_bfloat162 offset_[2];
};

}  // namespace tinychat
