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

// The launchers of the CUDA kernels. All addresses are of device memory and multiples of 16, all
// arrays contiguous; a kernel is started on the stream (a cudaStream_t), nobody waits for it.

#pragma once

#include <cstdint>

#include "common.h"

namespace tinychat {

// y = x / sqrt(mean(x^2) + eps) * weight by rows, after x += residual where there is one. Rounds
// where the reference does: x + residual, the normalized x, the product with the weight.
void rms_norm(void* x,               // [tokens, hidden] dtype, written only with a residual
              const void* residual,  // [tokens, hidden] dtype, or null
              const void* weight,    // [hidden] dtype
              void* y,               // [tokens, hidden] dtype, may be x
              int64_t tokens,        // 1 or more
              int64_t hidden,        // a multiple of 8
              float eps,             //
              DType dtype,           //
              void* stream);

}  // namespace tinychat
