// Four lanes: SSE4.2, NEON, or any processor through the compiler's vector types.
#pragma once
#include "../common/dtypes.h"

#if defined(__SSE4_1__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace sopt {
namespace {

struct Pack {
  static constexpr int kLanes = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint64_t W __attribute__((vector_size(16)));
  typedef uint8_t B __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(16)));  // twice as many
  typedef I M;
  typedef uint16_t H __attribute__((vector_size(8)));

  SOPT_INLINE F splat(float x) { return F{x, x, x, x}; }
  SOPT_INLINE W splat_wide(uint64_t x) { return W{} + x; }
  SOPT_INLINE U bits_of(F x) { return (U)x; }
  SOPT_INLINE F float_of(U x) { return (F)x; }
  SOPT_INLINE I signed_of(U x) { return (I)x; }
  SOPT_INLINE U unsigned_of(I x) { return (U)x; }
  SOPT_INLINE F to_float(I x) { return __builtin_convertvector(x, F); }
  SOPT_INLINE I to_int(F x) { return __builtin_convertvector(x, I); }  // towards zero
  // Which lanes have the bit set; the complement of these lanes; x in them, y in the others.
  SOPT_INLINE M test(U x, uint32_t bit) { return (x & bit) != 0u; }
  SOPT_INLINE U flip(M m, U x) { return x ^ (U)m; }
  SOPT_INLINE F select(M m, F x, F y) { return m ? x : y; }
  // x, negated in the lanes i for which bit kLanes * part + i is set.
  SOPT_INLINE F negate_where(F x, uint32_t bits, int part) {
    const U shift =
        U{31, 30, 29, 28} - uint32_t(kLanes * part);  // brings the bit of each lane to the sign
    return (F)((U)x ^ (((U{} + bits) << shift) & 0x80000000u));
  }
  // The exponent of x > 0 as a number, and x scaled by a power of two to [1, 2).
  SOPT_INLINE F exponent(F x) { return to_float((I)(((U)x >> 23) - 127u)); }
  SOPT_INLINE F mantissa(F x) { return (F)(((U)x & 0x7FFFFFu) | 0x3F800000u); }

#if defined(__ARM_NEON)
  SOPT_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  SOPT_INLINE F sqrt(F x) { return vsqrtq_f32(x); }
#else  // without an instruction, the correctly rounded function of the C library
  SOPT_INLINE F fma(F a, F b, F c) {
    for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
  }
  SOPT_INLINE F sqrt(F x) {
    for (int i = 0; i < 4; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
  }
#endif

  SOPT_INLINE F max(F x, F y) { return x > y ? x : y; }  // y if either is NaN
  SOPT_INLINE I max(I x, I y) { return x > y ? x : y; }
  SOPT_INLINE F floor(F x) {
#if defined(__SSE4_1__)
    return _mm_floor_ps(x);
#elif defined(__ARM_NEON)
    return vrndmq_f32(x);
#else
    for (int i = 0; i < 4; ++i) x[i] = __builtin_floorf(x[i]);
    return x;
#endif
  }
  SOPT_INLINE F fraction(F x) { return x - floor(x); }
  // y 2^floor(x), for y in [1, 2) and x < 127: 0 where that is below the normal numbers.
  SOPT_INLINE F times_exp2_of_floor(F y, F x) {
    const I small = x < -126.0f, power = to_int(floor(small ? F{} : x));
    return small ? F{} : (F)((U)y + ((U)power << 23));
  }

  // The product of the low half of each lane and m.
  SOPT_INLINE W multiply_wide(W a, uint32_t m) {
#if defined(__SSE4_1__)
    return (W)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#elif defined(__ARM_NEON)
    return (W)vmull_n_u32(vmovn_u64((uint64x2_t)a), m);
#else
    return (a & 0xFFFFFFFFu) * uint64_t{m};
#endif
  }
  SOPT_INLINE W xor3(W a, W b, uint64_t c) { return a ^ b ^ c; }
  // Which block each 64-bit lane holds, so that zip() puts elements in order.
  SOPT_INLINE W blocks() { return W{0, 1}; }
  // The low halves of both, interleaved.
  SOPT_INLINE U interleave(W even, W odd) {
    const U e = (U)even, o = (U)odd;
    return U{e[0], o[0], e[2], o[2]};
  }
  // Even and odd words of blocks to consecutive elements.
  SOPT_INLINE void zip(F& even, F& odd) {
    const F a = even, b = odd;
    even = F{a[0], b[0], a[1], b[1]};
    odd = F{a[2], b[2], a[3], b[3]};
  }

  // A byte for each lane: 255 where x <= y, else 0.
  SOPT_INLINE void store_at_most(uint8_t* to, U x, U y) {
    typedef uint8_t Lanes __attribute__((vector_size(4)));
    const Lanes bytes = __builtin_convertvector(x <= y, Lanes);
    memcpy(to, &bytes, sizeof bytes);
  }
  // Byte i is 255 where bit i of those from `from` on is set, else 0.
  SOPT_INLINE B bytes_of_bits(const uint8_t* from) {
    const W bytes = W{from[0], from[1]} * uint64_t{0x0101010101010101};
    return (B)(((B)bytes & (B)(W{} + 0x8040201008040201)) != 0);
  }
  // Lane i of pack j to lane j of pack i.
  SOPT_INLINE void transpose(F (&x)[4]) {
    float rows[4][4], columns[4][4];
    memcpy(rows, x, sizeof rows);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) columns[i][j] = rows[j][i];
    memcpy(x, columns, sizeof columns);
  }

  SOPT_INLINE F load(const float* from) {
    F x;
    memcpy(&x, from, sizeof x);
    return x;
  }
  SOPT_INLINE F load(const bfloat16* from) {
    H x;
    memcpy(&x, from, sizeof x);
    return (F)(__builtin_convertvector(x, U) << 16);
  }
  SOPT_INLINE F load(const float16* from) {
    F x;
    for (int i = 0; i < 4; ++i) x[i] = sopt::to_float(from[i]);
    return x;
  }
  SOPT_INLINE F load(const int8_t* from) { return to_float(I{from[0], from[1], from[2], from[3]}); }
  SOPT_INLINE void store(float* to, F x) { memcpy(to, &x, sizeof x); }
  SOPT_INLINE void store(bfloat16* to, F x) {
    const U bits = (U)x, rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    const H h = __builtin_convertvector(x == x ? rounded : (bits >> 16 | 0x40u), H);
    memcpy(to, &h, sizeof h);
  }
  SOPT_INLINE void store(float16* to, F x) {
    for (int i = 0; i < 4; ++i) to[i] = to_float16(x[i]);
  }
  SOPT_INLINE void store(int8_t* to, F x) {  // integers, modulo 256
    const I integers = to_int(x);
    for (int i = 0; i < 4; ++i) to[i] = int8_t(integers[i]);
  }
};

}  // namespace
}  // namespace sopt
