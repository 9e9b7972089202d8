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

// The best of many logits.

#pragma once

#include "cuda/launchers.h"
#include "cuda/runtime.cuh"

namespace tinychat {

// NaN is better than any number, so that the best of all tells of it; of equals the first is.
__device__ inline Candidate better(const Candidate& a, const Candidate& b) {
  const bool first = a.logit != a.logit || a.logit > b.logit ||
                     (a.logit == b.logit && a.token < b.token);
  return first ? a : b;
}

// The best of `lanes` lanes, a power of two, for each of them; the whole warp calls it.
__device__ inline Candidate best_of_lanes(Candidate candidate, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    candidate = better(candidate, {__shfl_xor_sync(~0u, candidate.logit, distance),
                                   __shfl_xor_sync(~0u, candidate.token, distance)});
  }
  return candidate;
}

}  // namespace tinychat
