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

#include "cpu/ops.h"
#include "cpu/ops_bodies.h"
#include "cpu/thread_pool.h"

namespace tinychat::cpu {
namespace {

// Between the calls of a decode step the pool's workers are awake: of the 15 microseconds that one
// thread took for these, two left 0.7.
constexpr int64_t kMinProductsPerThread = int64_t{1} << 19;

}  // namespace

void dense_gemm(const float* x, const void* weight, const float* scales, float* out, int64_t m,
                int64_t n, int64_t k, DType dtype, int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  const DenseProblem problem = {x, weight, scales, out, m, n, k, dtype};
  ThreadPool::instance().parallel_for(
      n, threads_for(m * n * k, kMinProductsPerThread, num_threads),
      [&](int64_t begin, int64_t end) { bodies.dense(problem, begin, end); });
}

}  // namespace tinychat::cpu
