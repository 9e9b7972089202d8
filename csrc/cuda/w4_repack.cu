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

#include "cuda/launchers.h"
#include "cuda/runtime.cuh"
#include "cuda/w4_record.cuh"

namespace tinychat {
namespace {

constexpr int kThreads = 256;
constexpr int kChunkBytes = 16;
constexpr int kOperandChunks = kRecordWeightBytes / kChunkBytes;

// A weight in its canonical form.
struct Source {
  const uint8_t* qweight;
  const uint16_t* scales;  // The bits of an fp16 are copied.
  const uint8_t* zeros;
  const int32_t* rows;
  int64_t k;
  int64_t group;
  int record_group;

  // The codes of 8 columns in a row.
  __device__ uint32_t octet(int32_t row, int64_t column) const {
    if (row < 0 || column >= k) return 0;
    return *reinterpret_cast<const uint32_t*>(qweight + (row * k + column) / 2);
  }

  template <typename T>
  __device__ T of_group(const T* values, int32_t row, int64_t column) const {
    return row < 0 || column >= k ? T(0) : values[row * (k / group) + column / group];
  }
};

// What a lane finds in its 16 bytes of 64 columns.
__device__ uint4 operands(const Source& source, const int32_t* rows, int64_t column, int lane) {
  uint32_t words[4] = {};
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const int64_t first = column + 32 * half_tile + lane % 4 * 8;
    const uint32_t codes[2] = {source.octet(rows[lane / 4], first),
                               source.octet(rows[lane / 4 + 8], first)};
    for (int quad = 0; quad < 2; ++quad) {
      for (int i = 0; i < 8; ++i) {
        const int code = 4 * quad + i % 4 / 2 * 2 + i / 4;
        words[2 * half_tile + quad] |= (codes[i % 2] >> 4 * code & 15) << 4 * i;
      }
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The scales of 8 rows.
__device__ uint4 scales(const Source& source, const int32_t* rows, int64_t column) {
  uint32_t pairs[4];
  for (int i = 0; i < 4; ++i) {
    pairs[i] = source.of_group(source.scales, rows[2 * i], column) |
               source.of_group(source.scales, rows[2 * i + 1], column) << 16;
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// The zeros of 16 rows.
__device__ uint2 zeros(const Source& source, const int32_t* rows, int64_t column) {
  uint32_t words[2] = {};
  for (int row = 0; row < kRecordRows; ++row) {
    words[row / 8] |= source.of_group(source.zeros, rows[row], column) << row % 8 * 4;
  }
  return make_uint2(words[0], words[1]);
}

// One thread makes one chunk of 16 bytes.
__global__ void w4_repack_kernel(Source source, uint4* chunks, int64_t count) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count) return;
  const int per_record = record_bytes(source.record_group) / kChunkBytes;
  const int groups = record_groups(source.record_group);
  const int64_t record = index / per_record;
  const int64_t records = (source.k + kRecordColumns - 1) / kRecordColumns;
  const int32_t* rows = source.rows + record / records * kRecordRows;
  const int64_t column = record % records * kRecordColumns;
  const int chunk = static_cast<int>(index % per_record);
  const int scale = chunk - kOperandChunks;
  const int zero = (scale - 2 * groups) * 2;
  if (scale < 0) {
    chunks[index] = operands(source, rows, column + chunk / 32 * 64, chunk % 32);
  } else if (zero < 0) {
    chunks[index] = scales(source, rows + scale % 2 * 8, column + scale / 2 * source.record_group);
  } else {
    const uint2 first = zeros(source, rows, column + zero * source.record_group);
    const int64_t next = column + (zero + 1) * source.record_group;
    const uint2 second = groups == 1 ? make_uint2(0, 0) : zeros(source, rows, next);
    chunks[index] = make_uint4(first.x, first.y, second.x, second.y);
  }
}

}  // namespace

void w4_repack(const uint8_t* qweight, const void* scales, const uint8_t* zeros,
               const int32_t* rows, void* records, int64_t tiles, int64_t k,
               int64_t source_group, void* stream) {
  const int group = source_group == 32 || source_group == 64 ? static_cast<int>(source_group)
                                                              : kRecordColumns;
  const int64_t chunks =
      tiles * ceil_div(k, kRecordColumns) * (record_bytes(group) / kChunkBytes);
  const Source source = {qweight, static_cast<const uint16_t*>(scales), zeros, rows, k,
                         source_group, group};
  launch("w4_repack", w4_repack_kernel, static_cast<unsigned>(ceil_div(chunks, kThreads)),
         kThreads, 0, stream, source, static_cast<uint4*>(records), chunks);
}

}  // namespace tinychat
