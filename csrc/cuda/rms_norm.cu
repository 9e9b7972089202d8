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
#include "cuda/runtime.cuh"

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

// The sum over the block, for every thread of it. To be called once.
__device__ float block_sum(float value) {
  __shared__ float partial[kMaxThreads / kWarp];
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
  const int64_t row = int64_t{blockIdx.x} * packs;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    Pack<T> pack = load(&x[row + i]);
    if (residual != nullptr) x[row + i] = pack = add(pack, load(&residual[row + i]));
    sum += sum_of_squares(pack);
  }
  const float scale = rsqrtf(block_sum(sum) / (packs * Pack<T>::kSize) + eps);
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    y[row + i] = scaled(load(&x[row + i]), scale, load(&weight[i]));
  }
}

template <typename T>
void run(void* x, const void* residual, const void* weight, void* y, int64_t tokens,
         int64_t hidden, float eps, void* stream) {
  const int packs = static_cast<int>(hidden / Pack<T>::kSize);
  const int threads = std::min<int>(kMaxThreads, ceil_div(packs, kWarp) * kWarp);
  launch("rms_norm", rms_norm_kernel<T>, static_cast<unsigned>(tokens), threads, 0, stream,
         static_cast<Pack<T>*>(x), static_cast<const Pack<T>*>(residual),
         static_cast<const Pack<T>*>(weight), static_cast<Pack<T>*>(y), packs, eps);
}

}  // namespace

void rms_norm(void* x, const void* residual, const void* weight, void* y, int64_t tokens,
              int64_t hidden, float eps, DType dtype, void* stream) {
  const auto run_as = dtype == DType::kFloat16    ? run<half>
                      : dtype == DType::kBFloat16 ? run<__nv_bfloat16>
                                                  : run<float>;
  run_as(x, residual, weight, y, tokens, hidden, eps, stream);
}

}  // namespace tinychat
