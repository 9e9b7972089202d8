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
#include <cstring>

#include "cuda/launchers.h"
#include "cuda/prim.cuh"

namespace tinychat {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;

// What one load moves.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// Copied as it is, the compiler would load its values one by one.
template <typename T>
__device__ Pack<T> load(const Pack<T>* address) {
  const uint4 bits = *reinterpret_cast<const uint4*>(address);
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof(pack));
  return pack;
}

__device__ float warp_sum(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(~0u, value, distance);
  }
  return value;
}

// One for each warp of a block.
using Partials = float[kMaxThreads / kWarp];

// The sum over the block, for every thread of it. `partial` is shared memory for one call.
__device__ float block_sum(float value, Partials& partial) {
  const int lane = threadIdx.x % kWarp;
  value = warp_sum(value);
  if (lane == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  // Every warp adds the partial sums up, which spares a second barrier.
  const int warps = blockDim.x / kWarp;
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

template <typename T>
__device__ Pack<T> add(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> sum;
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    sum.values[i] = T(static_cast<float>(a.values[i]) + static_cast<float>(b.values[i]));
  }
  return sum;
}

template <typename T>
__device__ float sum_of_squares(const Pack<T>& pack) {
  float sum = 0.0f;
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    const float value = static_cast<float>(pack.values[i]);
    sum += value * value;
  }
  return sum;
}

template <typename T>
__device__ Pack<T> scaled(const Pack<T>& x, float scale, const Pack<T>& weight) {
  Pack<T> y;
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    const T normalized = T(static_cast<float>(x.values[i]) * scale);
    y.values[i] = T(static_cast<float>(normalized) * static_cast<float>(weight.values[i]));
  }
  return y;
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
__device__ float sum(const Pack<T>& pack) {
  float sum = 0.0f;
  for (int i = 0; i < Pack<T>::kSize; ++i) sum += static_cast<float>(pack.values[i]);
  return sum;
}

template <typename T>
__device__ float sum_of_squares(const Pack<T>& pack, float mean) {
  float sum = 0.0f;
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    const float deviation = static_cast<float>(pack.values[i]) - mean;
    sum += deviation * deviation;
  }
  return sum;
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
  for (int i = threadIdx.x; i < packs; i += blockDim.x) total += sum(load(&x[row + i]));
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

int threads_of(int packs) { return std::min<int>(kMaxThreads, ceil_div(packs, kWarp) * kWarp); }

template <typename T>
void run_rms_norm(void* x, const void* residual, const void* weight, void* y, int64_t tokens,
                  int64_t hidden, float eps, void* stream) {
  const int packs = static_cast<int>(hidden / Pack<T>::kSize);
  launch_dependent("rms_norm", rms_norm_kernel<T>, static_cast<unsigned>(tokens),
                   threads_of(packs), 0, stream, static_cast<Pack<T>*>(x),
                   static_cast<const Pack<T>*>(residual), static_cast<const Pack<T>*>(weight),
                   static_cast<Pack<T>*>(y), packs, eps);
}

template <typename T>
void run_layer_norm(const void* x, const void* weight, const void* bias, void* y, int64_t tokens,
                    int64_t hidden, float eps, void* stream) {
  const int packs = static_cast<int>(hidden / Pack<T>::kSize);
  launch_dependent("layer_norm", layer_norm_kernel<T>, static_cast<unsigned>(tokens),
                   threads_of(packs), 0, stream, static_cast<const Pack<T>*>(x),
                   static_cast<const Pack<T>*>(weight), static_cast<const Pack<T>*>(bias),
                   static_cast<Pack<T>*>(y), packs, eps);
}

}  // namespace

void rms_norm(void* x, const void* residual, const void* weight, void* y, int64_t tokens,
              int64_t hidden, float eps, DType dtype, void* stream) {
  const auto run = dtype == DType::kFloat16    ? run_rms_norm<half>
                   : dtype == DType::kBFloat16 ? run_rms_norm<__nv_bfloat16>
                                               : run_rms_norm<float>;
  run(x, residual, weight, y, tokens, hidden, eps, stream);
}

void layer_norm(const void* x, const void* weight, const void* bias, void* y, int64_t tokens,
                int64_t hidden, float eps, DType dtype, void* stream) {
  const auto run = dtype == DType::kFloat16    ? run_layer_norm<half>
                   : dtype == DType::kBFloat16 ? run_layer_norm<__nv_bfloat16>
                                               : run_layer_norm<float>;
  run(x, weight, bias, y, tokens, hidden, eps, stream);
}

}  // namespace tinychat
