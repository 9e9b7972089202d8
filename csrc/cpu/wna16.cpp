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

#include "cpu/wna16.h"

#include <algorithm>

#include "common.h"
#include "cpu/thread_pool.h"

namespace tinychat {
namespace {

// Rows of x taken through all of a thread's tiles before the next: at K = 4096 they fill 768 KiB,
// which stays in a second-level cache of 1 MiB, and unpacking costs a few percent of the products.
constexpr int64_t kRowBlock = 48;

// Up to here, unpacking a tile again for each row beats writing it out and reading it back.
constexpr int64_t kMaxDotRows = 2;

// Between the calls of a decode step the pool's workers are awake: of the 10 microseconds that one
// thread took for these with AVX-512, two left 0.6.
constexpr int64_t kMinProductsPerThread = int64_t{1} << 19;

struct Problem {
  const WNA16Body& body;
  const float* x;
  const uint8_t* tiles;
  float* out;
  int64_t m;
  int64_t n;
  int64_t k;
  int bits;
  int64_t block;
};

// total[rows][16] = rows of x times one row of tiles.
void multiply_tile_row(const Problem& p, const uint8_t* tile, const float* x, int64_t rows,
                       float* total) {
  alignas(64) float unpacked[kMaxBlock * kTileRows];
  std::fill_n(total, rows * kTileRows, 0.0f);
  for (int64_t k = 0; k < p.k; k += p.block, tile += wna16_tile_bytes(p.bits, p.block)) {
    if (rows > kMaxDotRows) {
      p.body.unpack(tile, p.block, unpacked);
      p.body.multiply(tile + wna16_scales_offset(p.bits, p.block), p.block, unpacked, x + k, p.k,
                      rows, total);
      continue;
    }
    for (int64_t row = 0; row < rows; ++row) {
      p.body.dot(tile, p.block, x + row * p.k + k, total + row * kTileRows);
    }
  }
}

void multiply_tile_rows(const Problem& p, int64_t begin, int64_t end) {
  const int64_t tile_row_bytes = p.k / p.block * wna16_tile_bytes(p.bits, p.block);
  alignas(64) float total[kRowBlock * kTileRows];
  for (int64_t row = 0; row < p.m; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, p.m - row);
    for (int64_t t = begin; t < end; ++t) {
      multiply_tile_row(p, p.tiles + t * tile_row_bytes, p.x + row * p.k, rows, total);
      const int64_t valid = std::min(kTileRows, p.n - t * kTileRows);
      for (int64_t r = 0; r < rows; ++r) {
        std::copy_n(total + r * kTileRows, valid, p.out + (row + r) * p.n + t * kTileRows);
      }
    }
  }
}

struct NamedBodies {
  const char* isa;
  const WNA16Body* bodies;
};

const NamedBodies kBodies[] = {
#if defined(__x86_64__)
    {"avx512vnni", kWNA16Avx512},
    {"avxvnni", kWNA16Avx2},
    {"avx2", kWNA16Avx2},
#endif
#if defined(__aarch64__)
    {"i8mm", kWNA16Neon},
    {"dotprod", kWNA16Neon},
#endif
    {"generic", kWNA16Generic},
};

const WNA16Body& body_for(const std::string& isa, int bits) {
  for (const NamedBodies& named : kBodies) {
    if (isa == named.isa) return named.bodies[bits - 3];
  }
  return kWNA16Generic[bits - 3];
}

}  // namespace

void wna16_gemm(const float* x, const uint8_t* tiles, float* out, int64_t m, int64_t n, int64_t k,
                int bits, int64_t block, int num_threads, const std::string& isa) {
  const Problem problem{body_for(isa, bits), x, tiles, out, m, n, k, bits, block};
  ThreadPool::instance().parallel_for(
      ceil_div(n, kTileRows), threads_for(m * n * k, kMinProductsPerThread, num_threads),
      [&problem](int64_t begin, int64_t end) { multiply_tile_rows(problem, begin, end); });
}

}  // namespace tinychat
