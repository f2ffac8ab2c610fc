// add_noise on CUDA: kernel, launcher, C entry point.
#include <cstring>

#include "launch.cuh"
#include "noise.cuh"
#include "work.cuh"

namespace sopt {
namespace {

// Blocks on a multiprocessor at once: as many as spill no registers (nvcc 13.0).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocks = 4;
#else
constexpr int kBlocks = 5;
#endif

// acc = decay * base; acc = fma(c_k, z_k, acc) for each seed; one rounding. The sums of a thread's
// share stay in registers, whatever the number of seeds: 2 * sizeof(T) bytes of memory per element.
template <class Noise, class T, class W>
SOPT_INLINE void add_noise_to_tile(const Entry& tensor, uint32_t tile, const W& work) {
  constexpr int V = Storage<T>::kVector;
  const Share<V> share(tile, tensor.numel, tensor.base, tensor.out);
  if (share.first >= tensor.numel) return;
  float acc[kShare];
  load(share, static_cast<const T*>(tensor.base), tensor.numel, acc);
  if (work.decay != 1.0f) {
    SOPT_UNROLL
    for (int i = 0; i < kShare; ++i) acc[i] *= work.decay;
  }
  for (int64_t k = 0; k < work.terms; ++k) {
    const RoundKeys keys = round_keys(work.seed(k));
    const float coefficient = work.coefficient(k);
    Noise::samples(share, tensor.stream, keys,
                   [&](int i, float z) { acc[i] = Lane::fma(coefficient, z, acc[i]); });
  }
  store(share, static_cast<T*>(tensor.out), tensor.numel, acc);
}

template <class Noise, class W>
__global__ void __launch_bounds__(kThreads, kBlocks)
    add_noise_kernel(__grid_constant__ const W work) {
  const Entry& tensor = work.tensor_of(blockIdx.x);
  const uint32_t tile = blockIdx.x - tensor.first_tile;
  switch (tensor.dtype) {
    case SOPT_FLOAT32: return add_noise_to_tile<Noise, float>(tensor, tile, work);
    case SOPT_BFLOAT16: return add_noise_to_tile<Noise, bfloat16>(tensor, tile, work);
    case SOPT_FLOAT16: return add_noise_to_tile<Noise, float16>(tensor, tile, work);
  }
}

// The terms as the caller has them.
struct Terms {
  const uint64_t* seeds;
  sopt_memory seeds_memory;
  const float* coefficients;
  sopt_memory coefficients_memory;
  int64_t count;
};

bool on_host(const Terms& terms) {
  return terms.seeds_memory == SOPT_HOST || terms.coefficients_memory == SOPT_HOST;
}

// One launch for each kMaxTensors tensors that are not empty.
template <class W>
sopt_status add_noise(const char* function, const sopt_tensor* tensors, int64_t count,
                      const Terms& terms, sopt_noise kind, float decay, void* stream) {
  W work;
  work.device_seeds = terms.seeds_memory == SOPT_DEVICE ? terms.seeds : nullptr;
  work.device_coefficients =
      terms.coefficients_memory == SOPT_DEVICE ? terms.coefficients : nullptr;
  const size_t n = size_t(terms.count);
  if (!work.device_seeds && n) memcpy(work.seeds, terms.seeds, n * sizeof *terms.seeds);
  if (!work.device_coefficients && n)
    memcpy(work.coefficients, terms.coefficients, n * sizeof *terms.coefficients);
  work.terms = terms.count;
  work.decay = decay;
  const auto kernel =
      kind == SOPT_GAUSSIAN ? add_noise_kernel<Gaussian, W> : add_noise_kernel<Rademacher, W>;
  for (int64_t i = 0; i < count;) {
    int64_t tiles = 0;
    for (work.count = 0; i < count && work.count < W::kMaxTensors; ++i) {
      const sopt_tensor& tensor = tensors[i];
      const int64_t more = (tensor.numel + kTile - 1) / kTile;
      if (more == 0) continue;
      if (work.count > 0 && tiles + more > INT32_MAX) break;
      work.tensors[work.count++] = {tensor.out,    tensor.base,     tensor.numel,
                                    tensor.stream, uint32_t(tiles), uint32_t(tensor.dtype)};
      tiles += more;
    }
    if (work.count == 0) break;
    const sopt_status status = launch(function, kernel, tiles, kThreads, stream, work);
    if (status != SOPT_OK) return status;
  }
  return SOPT_OK;
}

}  // namespace
}  // namespace sopt

sopt_status sopt_add_noise_cuda(const sopt_tensor* tensors, int64_t count, const uint64_t* seeds,
                                sopt_memory seeds_memory, const float* coefficients,
                                sopt_memory coefficients_memory, int64_t terms, sopt_noise kind,
                                float decay, void* stream) {
  using namespace sopt;
  if (count < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: count must be >= 0, got %" PRId64, __func__,
                     count);
  if (terms < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: terms must be >= 0, got %" PRId64, __func__,
                     terms);
  const Terms all = {seeds, seeds_memory, coefficients, coefficients_memory, terms};
  if (on_host(all) && terms > SOPT_MAX_HOST_TERMS)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: terms in host memory must be <= %d, got %" PRId64,
                     __func__, SOPT_MAX_HOST_TERMS, terms);
  if (kind != SOPT_GAUSSIAN && kind != SOPT_RADEMACHER)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: unknown kind %d", __func__, int(kind));
  for (int64_t i = 0; i < count; ++i) {
    if (tensors[i].numel < 0)
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: numel of tensor %" PRId64 " must be >= 0, got %" PRId64, __func__, i,
                       tensors[i].numel);
    if (tensors[i].dtype < SOPT_FLOAT32 || tensors[i].dtype > SOPT_FLOAT16)
      return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: unknown dtype %" PRId64 " of tensor %" PRId64,
                       __func__, tensors[i].dtype, i);
  }
  const bool little =
      count <= LittleWork::kMaxTensors && (!on_host(all) || terms <= LittleWork::kMaxTerms);
  return (little ? add_noise<LittleWork> : add_noise<MuchWork>)(__func__, tensors, count, all, kind,
                                                                decay, stream);
}
