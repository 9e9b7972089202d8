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

#include <stdexcept>

namespace tinychat {
[[noreturn]] static void missing(const char* name) { throw std::runtime_error(name); }

void layer_norm(const void*, const void*, const void*, void*, int64_t, int64_t, float, DType, void*) { missing("layer_norm"); }
void embedding(const int32_t*, const void*, void*, int64_t, int64_t, int64_t, DType, void*) { missing("embedding"); }
void lm_head(const void*, const void*, float, const void*, const float*, const LogitsOutput&, int64_t, int64_t, DType, void*) { missing("lm_head"); }
void sample(const float*, const Candidate*, const SamplingState*, uint8_t*, StepState*, uint64_t*, int, int64_t, void*) { missing("sample"); }
}  // namespace tinychat
