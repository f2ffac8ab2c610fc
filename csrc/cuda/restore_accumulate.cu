// restore_accumulate on CUDA: kernel, launcher, C entry point.
#include "../common/checks.h"
#include "noise.cuh"
#include "work.cuh"

namespace sopt {
namespace {

constexpr int kRestoreBlocks = 4;  // on a multiprocessor at once: spills no registers (nvcc 13.0)

struct ParamAndGrad {
  void* param_out;
  const void* param_base;
  void* grad_out;
  const void* grad_base;
  int64_t numel;
  uint64_t stream;
  uint32_t first_tile;  // in this launch
  uint16_t param_dtype, grad_dtype;
};

template <class Size>
struct RestoreAccumulate {
  List<ParamAndGrad, Size::kTensors> tensors;
  Array<uint64_t, 1> seed;
  Array<float, 1> restore_coefficient, grad_coefficient;
};
static_assert(sizeof(RestoreAccumulate<Much>) <= kArgumentBytes,
              "the arguments of a kernel are limited");

// Eight elements at a time of either dtype, so that both have the same noise in the same threads.
using Eight = Share<8>;

SOPT_INLINE void load_any(const Eight& share, int dtype, const void* from, int64_t numel,
                          float (&x)[kShare]) {
  switch (dtype) {
    case SOPT_FLOAT32: return load(share, static_cast<const float*>(from), numel, x);
    case SOPT_BFLOAT16: return load(share, static_cast<const bfloat16*>(from), numel, x);
    case SOPT_FLOAT16: return load(share, static_cast<const float16*>(from), numel, x);
  }
}

SOPT_INLINE void store_any(const Eight& share, int dtype, void* to, int64_t numel,
                           const float (&x)[kShare]) {
  switch (dtype) {
    case SOPT_FLOAT32: return store(share, static_cast<float*>(to), numel, x);
    case SOPT_BFLOAT16: return store(share, static_cast<bfloat16*>(to), numel, x);
    case SOPT_FLOAT16: return store(share, static_cast<float16*>(to), numel, x);
  }
}

// One sample for each parameter and its gradient, each rounded once: 2 * (sizeof(param) +
// sizeof(grad)) bytes of memory per element.
template <template <int> class Noise, class Work>
__global__ void __launch_bounds__(kThreads, kRestoreBlocks)
    restore_accumulate_kernel(__grid_constant__ const Work work) {
  const ParamAndGrad& x = work.tensors.with(blockIdx.x);
  const Eight share(blockIdx.x - x.first_tile, x.numel, x.param_base, x.param_out, x.grad_base,
                    x.grad_out);
  if (share.first >= x.numel) return;
  float param[kShare], grad[kShare];
  load_any(share, x.param_dtype, x.param_base, x.numel, param);
  load_any(share, x.grad_dtype, x.grad_base, x.numel, grad);
  const Noise<8> noise(share, x.stream, work.seed[0]);
  const float restore = work.restore_coefficient[0], accumulate = work.grad_coefficient[0];
  SOPT_UNROLL
  for (int i = 0; i < kShare; i += 4) {
    float z[4];
    noise.four(i, z);
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) {
      param[i + j] = Lane::fma(restore, z[j], param[i + j]);
      grad[i + j] = Lane::fma(accumulate, z[j], grad[i + j]);
    }
  }
  store_any(share, x.param_dtype, x.param_out, x.numel, param);
  store_any(share, x.grad_dtype, x.grad_out, x.numel, grad);
}

template <class Size>
sopt_status restore_accumulate(const char* function, const sopt_tensor* params,
                               const sopt_tensor* grads, int64_t count, Numbers<uint64_t> seed,
                               Numbers<float> restore_coefficient, Numbers<float> grad_coefficient,
                               sopt_noise kind, void* stream) {
  using Work = RestoreAccumulate<Size>;
  Work work;
  work.seed.set(seed, 1);
  work.restore_coefficient.set(restore_coefficient, 1);
  work.grad_coefficient.set(grad_coefficient, 1);
  const auto kernel = kind == SOPT_GAUSSIAN ? restore_accumulate_kernel<Gaussian, Work>
                                            : restore_accumulate_kernel<Rademacher, Work>;
  const auto both = [&](int64_t i) -> ParamAndGrad {
    const sopt_tensor &p = params[i], &g = grads[i];
    return {p.out,
            p.base,
            g.out,
            g.base,
            p.numel,
            p.stream,
            uint32_t(0),
            uint16_t(p.dtype),
            uint16_t(g.dtype)};
  };
  return launch_on_list(function, kernel, work, count, both, stream);
}

}  // namespace
}  // namespace sopt

sopt_status sopt_restore_accumulate_cuda(const sopt_tensor* params, const sopt_tensor* grads,
                                         int64_t count, const uint64_t* seed,
                                         sopt_memory seed_memory, const float* restore_coefficient,
                                         sopt_memory restore_coefficient_memory,
                                         const float* grad_coefficient,
                                         sopt_memory grad_coefficient_memory, sopt_noise kind,
                                         void* stream) {
  using namespace sopt;
  const sopt_status status = check_restore_accumulate(__func__, params, grads, count, kind);
  if (status != SOPT_OK) return status;
  const auto body = is_little(count, 1) ? restore_accumulate<Little> : restore_accumulate<Much>;
  return body(__func__, params, grads, count, {seed, seed_memory},
              {restore_coefficient, restore_coefficient_memory},
              {grad_coefficient, grad_coefficient_memory}, kind, stream);
}
