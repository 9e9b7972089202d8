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

#include "cuda/dispatch.cuh"
#include "cuda/launchers.h"
#include "cuda/prim.cuh"
#include "cuda/rms_norm.cuh"
#include "cuda/warp.cuh"

namespace tinychat {
namespace {

// One for each warp of a block.
using Partials = float[kMaxThreads / kWarp];

template <typename T>
__device__ Pack<T> add(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> sum;
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    sum.values[i] = T(static_cast<float>(a.values[i]) + static_cast<float>(b.values[i]));
  }
  return sum;
}

// One block per row, which is read a second time from L1, each pack by the thread that wrote it.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_kernel(Pack<T>* x, const Pack<T>* residual, const Pack<T>* weight, Pack<T>* y,
                    int packs, float eps) {
  __shared__ Partials partial;
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t row = int64_t{blockIdx.x} * packs;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    Pack<T> pack = load(&x[row + i]);
    if (residual != nullptr) x[row + i] = pack = add(pack, load(&residual[row + i]));
    sum += sum_of_squares(pack);
  }
  const float scale = rsqrtf(block_sum(sum, partial) / (packs * Pack<T>::kSize) + eps);
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    y[row + i] = scaled(load(&x[row + i]), scale, load(&weight[i]));
  }
}

template <typename T>
__device__ Pack<T> standardized(const Pack<T>& x, float mean, float scale, const Pack<T>& weight,
                                const Pack<T>& bias) {
  Pack<T> y;
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    const float value = (static_cast<float>(x.values[i]) - mean) * scale;
    y.values[i] = T(value * static_cast<float>(weight.values[i]) +
                    static_cast<float>(bias.values[i]));
  }
  return y;
}

// As rms_norm_kernel. The deviations are taken from the mean itself: the mean of the squares less
// the square of the mean would lose the variance of values that lie far from zero.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    layer_norm_kernel(const Pack<T>* x, const Pack<T>* weight, const Pack<T>* bias, Pack<T>* y,
                      int packs, float eps) {
  __shared__ Partials partial_sum, partial_squares;
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t row = int64_t{blockIdx.x} * packs;
  const int hidden = packs * Pack<T>::kSize;
  float total = 0.0f;
  for (int i = threadIdx.x; i < packs; i += blockDim.x) total += sum_of(load(&x[row + i]));
  const float mean = block_sum(total, partial_sum) / hidden;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    squares += sum_of_squares(load(&x[row + i]), mean);
  }
  const float scale = rsqrtf(block_sum(squares, partial_squares) / hidden + eps);
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    y[row + i] = standardized(load(&x[row + i]), mean, scale, load(&weight[i]),
                              bias == nullptr ? Pack<T>{} : load(&bias[i]));
  }
}

}  // namespace

void rms_norm(void* x, const void* residual, const void* weight, void* y, int64_t tokens,
              int64_t hidden, float eps, DType dtype, void* stream) {
  with_float_type(dtype, [&](auto t) {
    using Row = Pack<decltype(t)>;
    const int packs = static_cast<int>(hidden / Row::kSize);
    launch_dependent("rms_norm", rms_norm_kernel<decltype(t)>, static_cast<unsigned>(tokens),
                     threads_for(packs), 0, stream, static_cast<Row*>(x),
                     static_cast<const Row*>(residual), static_cast<const Row*>(weight),
                     static_cast<Row*>(y), packs, eps);
  });
}

void layer_norm(const void* x, const void* weight, const void* bias, void* y, int64_t tokens,
                int64_t hidden, float eps, DType dtype, void* stream) {
  with_float_type(dtype, [&](auto t) {
    using Row = Pack<decltype(t)>;
    const int packs = static_cast<int>(hidden / Row::kSize);
    launch_dependent("layer_norm", layer_norm_kernel<decltype(t)>, static_cast<unsigned>(tokens),
                     threads_for(packs), 0, stream, static_cast<const Row*>(x),
                     static_cast<const Row*>(weight), static_cast<const Row*>(bias),
                     static_cast<Row*>(y), packs, eps);
  });
}

}  // namespace tinychat
