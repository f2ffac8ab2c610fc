// add_noise on CUDA: kernel, launcher, C entry point.
#include "../common/checks.h"
#include "../common/rounding.h"
#include "noise.cuh"
#include "work.cuh"

namespace sopt {
namespace {

// Blocks on a multiprocessor at once: as many as spill no registers (nvcc 13.0). Sums that are
// rounded once, to nearest, have kernels of their own, as they need fewer.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kOnceBlocks = 4, kRoundsBlocks = 3;
#else
constexpr int kOnceBlocks = 5, kRoundsBlocks = 4;
#endif

struct OutAndBase {
  void* out;
  const void* base;
  int64_t numel;
  uint64_t stream;
  uint32_t first_tile;  // in this launch
  uint32_t dtype;
};

template <class Size>
struct AddNoise {
  List<OutAndBase, Size::kTensors> tensors;
  Array<uint64_t, Size::kTerms> seeds;
  Array<float, Size::kTerms> coefficients;
  Array<uint64_t, Size::kTerms> rounding_seeds;
  int64_t terms;
  int64_t ends[Size::kTerms];  // after so many terms, a rounding; the last one after all
  int32_t roundings;
  bool stochastic;
  float decay;
};
static_assert(sizeof(AddNoise<Much>) <= kArgumentBytes, "the arguments of a kernel are limited");

template <int V, class T>
SOPT_INLINE void round_share(const Words<V>& source, float (&acc)[kShare]) {
  SOPT_UNROLL
  for (int i = 0; i < kShare; i += 4) {
    uint32_t words[4];
    source.four(i, words);
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) acc[i + j] = round_stochastically<Lane>(T{}, acc[i + j], words[j]);
  }
}

// acc = decay * base; acc = fma(c_k, z_k, acc) for each seed; a rounding, once or after some seeds
// each. The sums of a thread's share stay in registers, whatever the number of seeds: 2 * sizeof(T)
// bytes of memory per element.
template <template <int> class Noise, bool kOnce, class T, class Work>
SOPT_INLINE void add_noise_to_tile(const OutAndBase& tensor, uint32_t tile, const Work& work) {
  constexpr int V = Storage<T>::kVector;
  const Share<V> share(tile, tensor.numel, tensor.base, tensor.out);
  if (share.first >= tensor.numel) return;
  float acc[kShare];
  load(share, static_cast<const T*>(tensor.base), tensor.numel, acc);
  int64_t k = 0;
  for (int r = 0;; ++r) {
    if (work.decay != 1.0f) {
      SOPT_UNROLL
      for (int i = 0; i < kShare; ++i) acc[i] *= work.decay;
    }
    for (const int64_t end = kOnce ? work.terms : work.ends[r]; k < end; ++k)
      add_scaled<V>(Noise<V>(share, tensor.stream, work.seeds[k]), work.coefficients[k], acc);
    if (kOnce) break;
    if constexpr (sizeof(T) < sizeof(float))
      if (work.stochastic)
        round_share<V, T>(Words<V>(share, tensor.stream, work.rounding_seeds[r]), acc);
    if (r + 1 == work.roundings) break;
    SOPT_UNROLL
    for (int i = 0; i < kShare; i += 2) Storage<T>::round_two(acc + i);
  }
  store(share, static_cast<T*>(tensor.out), tensor.numel, acc);
}

template <template <int> class Noise, bool kOnce, class Work>
__global__ void __launch_bounds__(kThreads, kOnce ? kOnceBlocks : kRoundsBlocks)
    add_noise_kernel(__grid_constant__ const Work work) {
  const OutAndBase& tensor = work.tensors.with(blockIdx.x);
  const uint32_t tile = blockIdx.x - tensor.first_tile;
  switch (tensor.dtype) {
    case SOPT_FLOAT32: return add_noise_to_tile<Noise, kOnce, float>(tensor, tile, work);
    case SOPT_BFLOAT16: return add_noise_to_tile<Noise, kOnce, bfloat16>(tensor, tile, work);
    case SOPT_FLOAT16: return add_noise_to_tile<Noise, kOnce, float16>(tensor, tile, work);
  }
}

// The terms and roundings as the caller has them.
struct Sum {
  Numbers<uint64_t> seeds;
  Numbers<float> coefficients;
  int64_t terms;
  sopt_noise kind;
  float decay;
  const int64_t* round_after;
  int64_t rounds;
  Numbers<uint64_t> rounding_seeds;
};

// One launch for as many roundings as it has room for: going on from a rounding is another sum.
template <class Size>
sopt_status add_noise(const char* function, const sopt_tensor* tensors, int64_t count,
                      const Sum& sum, void* stream) {
  using Work = AddNoise<Size>;
  Work work;
  work.stochastic = sum.rounding_seeds.from != nullptr;
  work.decay = sum.decay;
  const bool once = sum.rounds == 0 && !work.stochastic, signs = sum.kind == SOPT_RADEMACHER;
  const auto kernel = signs ? (once ? add_noise_kernel<Rademacher, true, Work>
                                    : add_noise_kernel<Rademacher, false, Work>)
                            : (once ? add_noise_kernel<Gaussian, true, Work>
                                    : add_noise_kernel<Gaussian, false, Work>);
  for (int64_t round = 0, first = 0; round <= sum.rounds; round += work.roundings) {
    const int64_t left = sum.rounds + 1 - round;
    work.roundings = int32_t(left < Size::kTerms ? left : Size::kTerms);
    int64_t end = first;
    for (int32_t r = 0; r < work.roundings; ++r) {
      end = round + r < sum.rounds ? sum.round_after[round + r] : sum.terms;
      work.ends[r] = end - first;
    }
    work.terms = end - first;
    work.seeds.set(sum.seeds + first, work.terms);
    work.coefficients.set(sum.coefficients + first, work.terms);
    if (work.stochastic) work.rounding_seeds.set(sum.rounding_seeds + round, work.roundings);
    const auto tensor = [&](int64_t i) -> OutAndBase {
      const sopt_tensor& x = tensors[i];
      return {x.out, round > 0 ? x.out : x.base, x.numel, x.stream, 0, uint32_t(x.dtype)};
    };
    const sopt_status status = launch_on_list(function, kernel, work, count, tensor, stream);
    if (status != SOPT_OK) return status;
    first = end;
  }
  return SOPT_OK;
}

}  // namespace
}  // namespace sopt

sopt_status sopt_add_noise_cuda(const sopt_tensor* tensors, int64_t count, const uint64_t* seeds,
                                sopt_memory seeds_memory, const float* coefficients,
                                sopt_memory coefficients_memory, int64_t terms, sopt_noise kind,
                                float decay, const int64_t* round_after, int64_t rounds,
                                const uint64_t* rounding_seeds, sopt_memory rounding_seeds_memory,
                                void* stream) {
  using namespace sopt;
  const Sum sum = {{seeds, seeds_memory},
                   {coefficients, coefficients_memory},
                   terms,
                   kind,
                   decay,
                   round_after,
                   rounds,
                   {rounding_seeds, rounding_seeds_memory}};
  const int64_t most = carried(terms, seeds_memory, coefficients_memory);
  sopt_status status = check_add_noise(__func__, tensors, count, terms, kind, round_after, rounds);
  if (status == SOPT_OK) status = check_carried(__func__, most);
  if (status != SOPT_OK) return status;
  const bool little = is_little(count, most) && rounds < Little::kTerms;
  return (little ? add_noise<Little> : add_noise<Much>)(__func__, tensors, count, sum, stream);
}
