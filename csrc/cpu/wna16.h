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

#pragma once

#include <cstdint>
#include <string>

namespace tinychat {

// WNA16, weights of a few bits and activations of 16: out = x * w^T for a weight
// w[n, k] = (q[n, k] - zero) * scale of 3-bit or 4-bit codes q, accumulated in fp32.
//
// The weight lies in tiles of 16 rows by `block` columns, which lie one after another along K and
// then down the rows, so that a matrix-vector product reads one sequential stream:
//
//           k = 0      block    2*block        K
//   n =  0  | tile 0  | tile 1  | ... | tile T-1 |      T = K / block
//   n = 16  | tile T  | tile T+1| ...            |
//
//   one tile: chunk 0 | chunk 1 | ... | fp16 scale[16] | uint8 zero[16]
//
//   4 bits: chunk c, 64 bytes, holds k = 8c .. 8c+7 of the tile as a set of 16 words, one of 4
//   bytes for each row, low and high nibble of each byte:
//             byte 0          byte 1          byte 2          byte 3
//   word r    q[k+0], q[k+4]  q[k+1], q[k+5]  q[k+2], q[k+6]  q[k+3], q[k+7]
//
//   3 bits: chunk c, 192 bytes, holds k = 32c .. 32c+31 of the tile as three such sets, which have
//   room for 8 k more in the upper two bits of their bytes. Byte i of word r:
//             bits 0-2   bits 3-5   bits 6-7
//   set 0     q[k+i]     q[k+4+i]   bits 0-1 of q[k+24+i]
//   set 1     q[k+8+i]   q[k+12+i]  bits 0-1 of q[k+28+i]
//   set 2     q[k+16+i]  q[k+20+i]  bit 2 of q[k+24+i], bit 2 of q[k+28+i]
//
// When N is 8 modulo 16, rows 8..15 of the last row of tiles are padding, computed and dropped.
// A row of `out` depends on its row of `x` alone: neither m nor num_threads changes a bit of it.
void wna16_gemm(const float* x,           // [m, k]; beyond 1e28 sums may overflow
                const uint8_t* tiles,     // [ceil(n / 16), k / block, bytes of a tile]
                float* out,               // [m, n], apart from x and tiles
                int64_t m,                // >= 1
                int64_t n,                // a multiple of 8
                int64_t k,                // a multiple of block
                int bits,                 // 3 or 4
                int64_t block,            // 32, 64 or 128
                int num_threads,          // 0: one for each processor that this process may use
                const std::string& isa);  // one of supported_isas()

constexpr int64_t kTileRows = 16;
constexpr int64_t kSetBytes = kTileRows * 4;
constexpr int64_t kMaxBlock = 128;

constexpr int64_t wna16_scales_offset(int bits, int64_t block) { return block * bits * 2; }
constexpr int64_t wna16_zeros_offset(int bits, int64_t block) { return block * bits * 2 + 32; }
constexpr int64_t wna16_tile_bytes(int bits, int64_t block) { return block * bits * 2 + 48; }

// How far ahead bodies ask for the weight. Without, a W4A8 product of one token ran at 0.8 (AVX2)
// to 0.95 (AVX-512) of the speed, and at less if they asked 1 or 2 KiB ahead; a WNA16 product of
// four tokens ran at 0.8 (AVX2) to 0.6 (AVX-512).
constexpr int64_t kPrefetchBytes = 8192;

// What an instruction set has to provide for each width; wna16.cpp has the loops over tiles, rows
// and threads. dot(tile) and unpack(tile) followed by multiply() give the same bits, so that a
// token's activations are the same whether it was processed alone or among others.
struct WNA16Body {
  // total[16] += the tile's 16 rows times x[block].
  void (*dot)(const uint8_t* tile, int64_t block, const float* x, float* total);
  // Writes the tile's q - zero as floats, in the order and with the factor that multiply() wants.
  void (*unpack)(const uint8_t* tile, int64_t block, float* unpacked /* [block * 16] */);
  // total[row][16] += the tile's 16 rows times x[row][block], for each of `rows` rows of x that
  // lie `x_stride` floats apart. `scales` are the tile's.
  void (*multiply)(const uint8_t* scales, int64_t block, const float* unpacked, const float* x,
                   int64_t x_stride, int64_t rows, float* total);
};

// multiply() for a constant number of rows.
using WNA16MultiplyRows = void (*)(const uint8_t* scales, int64_t block, const float* unpacked,
                                   const float* x, int64_t x_stride, float* total);

// multiply() of bodies that take 1 to kAtOnce rows at once.
template <int64_t kAtOnce>
void wna16_multiply(const WNA16MultiplyRows (&by_rows)[kAtOnce], const uint8_t* scales,
                    int64_t block, const float* unpacked, const float* x, int64_t x_stride,
                    int64_t rows, float* total) {
  while (rows > 0) {
    const int64_t now = rows < kAtOnce ? rows : kAtOnce;
    by_rows[now - 1](scales, block, unpacked, x, x_stride, total);
    x += now * x_stride;
    total += now * kTileRows;
    rows -= now;
  }
}

// For 3 and for 4 bits.
extern const WNA16Body kWNA16Generic[2];
#if defined(__x86_64__)
extern const WNA16Body kWNA16Avx2[2];
extern const WNA16Body kWNA16Avx512[2];
#endif
#if defined(__aarch64__)
extern const WNA16Body kWNA16Neon[2];
#endif

}  // namespace tinychat
