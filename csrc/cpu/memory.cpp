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

#include <algorithm>
#include <vector>

#include "cpu/ops.h"
#include "cpu/ops_bodies.h"
#include "cpu/thread_pool.h"

namespace tinychat::cpu {
namespace {

// Part of what a checksum is, as the order of bytes is.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

// Returns what run gives for each piece.
template <typename Run>
std::vector<uint64_t> for_pieces(const uint8_t* data, int64_t bytes, int num_threads, Run run) {
  std::vector<uint64_t> results(ceil_div(bytes, kPieceBytes));
  const int64_t count = static_cast<int64_t>(results.size());
  ThreadPool::instance().parallel_for(
      count, threads_for(count, 1, num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t first = i * kPieceBytes;
          results[i] = run(data + first, std::min(kPieceBytes, bytes - first));
        }
      });
  return results;
}

}  // namespace

void read(const uint8_t* data, int64_t bytes, int num_threads, const std::string& isa) {
  for_pieces(data, bytes, num_threads, bodies_for(isa).read);
}

uint64_t checksum(const uint8_t* data, int64_t bytes, int num_threads, const std::string& isa) {
  uint64_t all = 0;
  for (const uint64_t piece : for_pieces(data, bytes, num_threads, bodies_for(isa).checksum)) {
    all = mix_words(all, piece);
  }
  return all;
}

}  // namespace tinychat::cpu
