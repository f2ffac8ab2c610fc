/* <cuda_runtime.h> for a C++ compiler: the kernels of csrc/cuda run on the CPU, one thread after
 * the other, so that their indices and their arithmetic are tested where there is no GPU. Enough
 * for kernels whose threads need nothing from each other, and nothing more.
 */
#pragma once
#include <cmath>
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define CUDART_VERSION 13000

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __int2float_rn(int x) { return float(x); }
inline int __float2int_rz(float x) { return int(x); }

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += int8_t(unsigned(a) >> i) * int8_t(unsigned(b) >> i);
  return sum;
}

inline void atomicAdd(unsigned long long* to, unsigned long long x) { *to += x; }

typedef void* cudaStream_t;
typedef enum {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
} cudaError_t;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

/* What a test sets: the driver's version, 0 for none; the error that launches return; the first
 * block that is run, so that the end of a tensor of any size can be reached. And what it reads. */
extern "C" {
inline int emulated_driver = CUDART_VERSION;
inline int emulated_error = cudaSuccess;
inline unsigned emulated_first_block = 0;
inline int emulated_launches = 0;
}

inline dim3 blockIdx, threadIdx;

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "unspecified launch failure" : "another error";
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = emulated_driver;
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               const A&... arguments) {
  ++emulated_launches;
  if (emulated_error != cudaSuccess) return cudaError_t(emulated_error);
  if (config->gridDim.x == 0) return cudaErrorInvalidConfiguration;
  for (blockIdx.x = emulated_first_block; blockIdx.x < config->gridDim.x; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < config->blockDim.x; ++threadIdx.x) kernel(arguments...);
  return cudaSuccess;
}
