// Launches a kernel and turns the runtime's error into a status.
#pragma once
#include <cuda_runtime.h>

#include <cinttypes>
#include <cstdint>

#include "sopt.h"

namespace sopt {

// Plain C++ rather than <<<>>>, so that a C++ compiler can run the same source (tests/emulated).
template <class... P>
sopt_status launch(const char* function, void (*kernel)(P...), int64_t blocks, int threads,
                   void* stream, const P&... arguments) {
  if (blocks > INT32_MAX)
    return sopt_fail(SOPT_UNSUPPORTED, "%s: %" PRId64 " blocks are more than a GPU takes", function,
                     blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error == cudaSuccess) return SOPT_OK;
  return sopt_fail(SOPT_DEVICE_ERROR, "%s: %s", function, cudaGetErrorString(error));
}

}  // namespace sopt
