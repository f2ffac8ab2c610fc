// The policy of common/ for one CUDA thread: one lane, so that warps are the compiler's matter.
#pragma once
#include <cuda_runtime.h>

#include "../common/portable.h"

namespace sopt {

struct Lane {
  using F = float;
  using U = uint32_t;
  using I = int32_t;
  using W = uint64_t;
  using M = bool;

  SOPT_INLINE F splat(float x) { return x; }
  SOPT_INLINE W splat_wide(uint64_t x) { return x; }
  SOPT_INLINE U bits_of(F x) { return sopt::bits_of(x); }
  SOPT_INLINE F float_of(U x) { return sopt::float_of(x); }
  SOPT_INLINE I signed_of(U x) { return I(x); }
  SOPT_INLINE U unsigned_of(I x) { return U(x); }
  SOPT_INLINE F to_float(I x) { return __int2float_rn(x); }
  SOPT_INLINE I to_int(F x) { return __float2int_rz(x); }  // towards zero
  SOPT_INLINE M test(U x, uint32_t bit) { return (x & bit) != 0; }
  SOPT_INLINE U flip(M m, U x) { return m ? ~x : x; }
  SOPT_INLINE F select(M m, F x, F y) { return m ? x : y; }
  SOPT_INLINE F exponent(F x) { return to_float(I((bits_of(x) >> 23) - 127u)); }
  SOPT_INLINE F mantissa(F x) { return float_of((bits_of(x) & 0x7FFFFFu) | 0x3F800000u); }
  // By name, so that no compiler flag (-fmad, -prec-sqrt, -ftz) decides about bits.
  SOPT_INLINE F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
  SOPT_INLINE F sqrt(F x) { return __fsqrt_rn(x); }
  SOPT_INLINE F divide(F a, F b) { return __fdiv_rn(a, b); }
  // One wide multiplication, and an exclusive or of three registers: the high halves are unused.
  SOPT_INLINE W multiply_wide(W a, uint32_t m) { return uint64_t{uint32_t(a)} * m; }
  SOPT_INLINE W xor3(W a, W b, uint64_t c) { return uint32_t(a) ^ uint32_t(b) ^ uint32_t(c); }
};

}  // namespace sopt
