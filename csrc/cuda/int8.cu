// perturb_int8 and update_int8 on CUDA: kernels, launchers, C entry points.
#include "../common/checks.h"
#include "../common/rounding.h"
#include "noise.cuh"
#include "work.cuh"

namespace sopt {
namespace {

// Blocks on a multiprocessor at once: as many as spill no registers (nvcc 13.0).
constexpr int kPerturbBlocks = 4, kUpdateBlocks = 2;

struct Codes {
  int8_t* codes;
  const float* scales;
  int64_t numel;
  uint64_t length;  // of a row
  uint64_t stream;
  uint32_t first_tile;  // in this launch
};

Codes codes_of(const sopt_codes& x) {
  return {x.codes, x.scales, x.numel, x.numel > 0 ? uint64_t(x.numel / x.rows) : 1, x.stream, 0};
}

template <class Size>
struct PerturbInt8 {
  List<Codes, Size::kTensors> tensors;
  Array<uint64_t, Size::kTerms> seeds;
  Array<float, Size::kTerms> coefficients;
  Array<uint64_t, 1> rounding_seed;
  int64_t terms;
  float headroom;
};

template <class Size>
struct UpdateInt8 {
  List<Codes, Size::kTensors> tensors;
  Array<uint64_t, Size::kTerms> seeds;
  Array<uint64_t, Size::kTerms> delta_rounding_seeds;
  Array<float, Size::kTerms> coefficients;
  Array<float, 1> eps;
  Array<uint64_t, 1> rounding_seed;
  int64_t terms;
  float headroom;
  unsigned long long* clamped;
};
static_assert(sizeof(UpdateInt8<Much>) <= kArgumentBytes, "the arguments of a kernel are limited");

// Four consecutive elements of the sum of noise, in code units, rounded to whole numbers.
SOPT_INLINE void delta_of_four(const Codes& x, int64_t index, const float* sum, float headroom,
                               const uint32_t (&words)[4], float (&delta)[4]) {
  uint64_t row = uint64_t(index) / x.length;  // one division for four elements
  uint64_t left = x.length - (uint64_t(index) - row * x.length);
  SOPT_UNROLL
  for (int j = 0; j < 4; ++j) {
    const float scale = index + j < x.numel ? x.scales[row] : 1.0f;
    delta[j] = stochastic_integer<Lane>(Lane::divide(sum[j], scale), headroom, words[j]);
    if (--left == 0) ++row, left = x.length;
  }
}

// 2 bytes of memory per code, whatever the number of seeds.
template <template <int> class Noise, class Work>
__global__ void __launch_bounds__(kThreads, kPerturbBlocks)
    perturb_int8_kernel(__grid_constant__ const Work work) {
  const Codes& x = work.tensors.with(blockIdx.x);
  const Share<8> share(blockIdx.x - x.first_tile, x.numel, x.codes);
  if (share.first >= x.numel) return;
  float sum[kShare] = {}, codes[kShare];
  for (int64_t k = 0; k < work.terms; ++k)
    add_scaled<8>(Noise<8>(share, x.stream, work.seeds[k]), work.coefficients[k], sum);
  load(share, x.codes, x.numel, codes);
  const Words<8> source(share, x.stream, work.rounding_seed[0]);
  SOPT_UNROLL
  for (int i = 0; i < kShare; i += 4) {
    uint32_t words[4];
    float delta[4];
    source.four(i, words);
    delta_of_four(x, share.index(i), sum + i, work.headroom, words, delta);
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) codes[i + j] += delta[j];
  }
  store(share, x.codes, x.numel, codes);
}

// The same bytes of memory: perturbations are computed again.
template <template <int> class Noise, class Work>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks)
    update_int8_kernel(__grid_constant__ const Work work) {
  const Codes& x = work.tensors.with(blockIdx.x);
  const Share<8> share(blockIdx.x - x.first_tile, x.numel, x.codes);
  if (share.first >= x.numel) return;
  float sum[kShare] = {}, codes[kShare];
  const float eps = work.eps[0], limit = 127.0f - work.headroom;
  for (int64_t n = 0; n < work.terms; ++n) {
    const Noise<8> noise(share, x.stream, work.seeds[n]);
    const Words<8> source(share, x.stream, work.delta_rounding_seeds[n]);
    const float coefficient = work.coefficients[n];
    SOPT_UNROLL
    for (int i = 0; i < kShare; i += 4) {
      uint32_t words[4];
      float z[4], delta[4];
      noise.four(i, z);
      source.four(i, words);
      SOPT_UNROLL
      for (int j = 0; j < 4; ++j) z[j] = Lane::fma(eps, z[j], 0.0f);
      delta_of_four(x, share.index(i), z, work.headroom, words, delta);
      SOPT_UNROLL
      for (int j = 0; j < 4; ++j) sum[i + j] = Lane::fma(coefficient, delta[j], sum[i + j]);
    }
  }
  load(share, x.codes, x.numel, codes);
  const Words<8> source(share, x.stream, work.rounding_seed[0]);
  unsigned clamped = 0;
  SOPT_UNROLL
  for (int i = 0; i < kShare; i += 4) {
    uint32_t words[4];
    source.four(i, words);
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float moved = codes[i + j] + stochastic_integer<Lane>(sum[i + j], 255.0f, words[j]);
      const bool above = moved > limit, below = moved < -limit;
      codes[i + j] = above ? limit : below ? -limit : moved;
      clamped += (above || below) && share.index(i + j) < x.numel;
    }
  }
  store(share, x.codes, x.numel, codes);
  if (clamped > 0) atomicAdd(work.clamped, clamped);  // rare, once codes are within the limit
}

template <class Size>
sopt_status perturb_int8(const char* function, const sopt_codes* tensors, int64_t count,
                         Numbers<uint64_t> seeds, Numbers<float> coefficients, int64_t terms,
                         sopt_noise kind, int64_t headroom, Numbers<uint64_t> rounding_seed,
                         void* stream) {
  using Work = PerturbInt8<Size>;
  Work work;
  work.seeds.set(seeds, terms);
  work.coefficients.set(coefficients, terms);
  work.rounding_seed.set(rounding_seed, 1);
  work.terms = terms;
  work.headroom = float(headroom);
  const auto kernel = kind == SOPT_GAUSSIAN ? perturb_int8_kernel<Gaussian, Work>
                                            : perturb_int8_kernel<Rademacher, Work>;
  const auto codes = [&](int64_t i) { return codes_of(tensors[i]); };
  return launch_on_list(function, kernel, work, count, codes, stream);
}

template <class Size>
sopt_status update_int8(const char* function, const sopt_codes* tensors, int64_t count,
                        Numbers<uint64_t> seeds, Numbers<uint64_t> delta_rounding_seeds,
                        Numbers<float> coefficients, int64_t terms, Numbers<float> eps,
                        sopt_noise kind, int64_t headroom, Numbers<uint64_t> rounding_seed,
                        int64_t* clamped, void* stream) {
  using Work = UpdateInt8<Size>;
  Work work;
  work.seeds.set(seeds, terms);
  work.delta_rounding_seeds.set(delta_rounding_seeds, terms);
  work.coefficients.set(coefficients, terms);
  work.eps.set(eps, 1);
  work.rounding_seed.set(rounding_seed, 1);
  work.terms = terms;
  work.headroom = float(headroom);
  work.clamped = reinterpret_cast<unsigned long long*>(clamped);
  const auto kernel = kind == SOPT_GAUSSIAN ? update_int8_kernel<Gaussian, Work>
                                            : update_int8_kernel<Rademacher, Work>;
  const auto codes = [&](int64_t i) { return codes_of(tensors[i]); };
  return launch_on_list(function, kernel, work, count, codes, stream);
}

}  // namespace
}  // namespace sopt

sopt_status sopt_perturb_int8_cuda(const sopt_codes* tensors, int64_t count, const uint64_t* seeds,
                                   sopt_memory seeds_memory, const float* coefficients,
                                   sopt_memory coefficients_memory, int64_t terms, sopt_noise kind,
                                   int64_t headroom, const uint64_t* rounding_seed,
                                   sopt_memory rounding_seed_memory, void* stream) {
  using namespace sopt;
  const Numbers<uint64_t> keys = {seeds, seeds_memory};
  const Numbers<float> factors = {coefficients, coefficients_memory};
  const int64_t most = carried(terms, seeds_memory, coefficients_memory);
  sopt_status status = check_codes(__func__, tensors, count, terms, kind, headroom);
  if (status == SOPT_OK) status = check_carried(__func__, most);
  if (status != SOPT_OK) return status;
  const auto body = is_little(count, most) ? perturb_int8<Little> : perturb_int8<Much>;
  return body(__func__, tensors, count, keys, factors, terms, kind, headroom,
              {rounding_seed, rounding_seed_memory}, stream);
}

sopt_status sopt_update_int8_cuda(const sopt_codes* tensors, int64_t count, const uint64_t* seeds,
                                  sopt_memory seeds_memory, const uint64_t* delta_rounding_seeds,
                                  sopt_memory delta_rounding_seeds_memory,
                                  const float* coefficients, sopt_memory coefficients_memory,
                                  int64_t terms, const float* eps, sopt_memory eps_memory,
                                  sopt_noise kind, int64_t headroom, const uint64_t* rounding_seed,
                                  sopt_memory rounding_seed_memory, int64_t* clamped,
                                  void* stream) {
  using namespace sopt;
  const Numbers<uint64_t> keys = {seeds, seeds_memory};
  const Numbers<uint64_t> delta_keys = {delta_rounding_seeds, delta_rounding_seeds_memory};
  const Numbers<float> factors = {coefficients, coefficients_memory};
  const int64_t most =
      carried(terms, seeds_memory, delta_rounding_seeds_memory, coefficients_memory);
  sopt_status status = check_codes(__func__, tensors, count, terms, kind, headroom);
  if (status == SOPT_OK) status = check_carried(__func__, most);
  if (status != SOPT_OK) return status;
  const auto body = is_little(count, most) ? update_int8<Little> : update_int8<Much>;
  return body(__func__, tensors, count, keys, delta_keys, factors, terms, {eps, eps_memory}, kind,
              headroom, {rounding_seed, rounding_seed_memory}, clamped, stream);
}
