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

// What both a recorded step for CUDA and one for the CPU read from memory.

#pragma once

#include <cstdint>

namespace tinychat {

// What a recorded decode step reads instead of arguments, so that one graph serves every step.
struct StepState {
  int32_t slot;      // of the KV cache
  int32_t position;  // of the first token, counted from 0
  int32_t token;     // the one to run next
  int32_t step;      // how many tokens were sampled; the sampler counts on
};

// How tokens are drawn, as engine/sampler.py's SamplingParams.
struct SamplingState {
  float temperature;         // 0 takes the best
  float top_p;               //
  float min_p;               //
  float repetition_penalty;  //
  int32_t top_k;             // 0 keeps all
  uint32_t seed_low;         // of the key of Philox 4x32-10, whose counter is the step
  uint32_t seed_high;        //
};

}  // namespace tinychat
