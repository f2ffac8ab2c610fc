// Sixteen lanes: AVX-512 F, BW, DQ and VL.
#pragma once
#include <immintrin.h>

#include "../common/dtypes.h"

namespace sopt {
namespace {

struct Pack {
  static constexpr int kLanes = 16;
  typedef float F __attribute__((vector_size(64)));
  typedef uint32_t U __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
  typedef uint64_t W __attribute__((vector_size(64)));
  typedef uint8_t B __attribute__((vector_size(64)));
  typedef uint16_t Halves __attribute__((vector_size(64)));  // twice as many
  typedef __mmask16 M;

  SOPT_INLINE F splat(float x) { return _mm512_set1_ps(x); }
  SOPT_INLINE W splat_wide(uint64_t x) { return W{} + x; }
  SOPT_INLINE U bits_of(F x) { return (U)x; }
  SOPT_INLINE F float_of(U x) { return (F)x; }
  SOPT_INLINE I signed_of(U x) { return (I)x; }
  SOPT_INLINE U unsigned_of(I x) { return (U)x; }
  SOPT_INLINE F to_float(I x) { return _mm512_cvtepi32_ps((__m512i)x); }
  SOPT_INLINE I to_int(F x) { return (I)_mm512_cvttps_epi32(x); }  // towards zero
  // The exponent of x > 0 as a number, and x scaled by a power of two to [1, 2).
  SOPT_INLINE F exponent(F x) { return _mm512_getexp_ps(x); }
  SOPT_INLINE F mantissa(F x) {
    return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
  }
  // x, negated in the lanes i for which bit kLanes * part + i is set.
  SOPT_INLINE F negate_where(F x, uint32_t bits, int part) {
    return _mm512_mask_xor_ps(x, __mmask16(bits >> (kLanes * part)), x, splat(-0.0f));
  }
  // Which lanes have the bit set; the complement of these lanes; x in them, y in the others.
  SOPT_INLINE M test(U x, uint32_t bit) {
    return _mm512_test_epi32_mask((__m512i)x, _mm512_set1_epi32(int(bit)));
  }
  SOPT_INLINE U flip(M m, U x) {
    return (U)_mm512_mask_xor_epi32((__m512i)x, m, (__m512i)x, _mm512_set1_epi32(-1));
  }
  SOPT_INLINE F select(M m, F x, F y) { return _mm512_mask_blend_ps(m, y, x); }
  SOPT_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  SOPT_INLINE F sqrt(F x) { return _mm512_sqrt_ps(x); }
  SOPT_INLINE F max(F x, F y) { return _mm512_max_ps(x, y); }  // y if either is NaN
  SOPT_INLINE I max(I x, I y) { return (I)_mm512_max_epi32((__m512i)x, (__m512i)y); }
  SOPT_INLINE F fraction(F x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); }
  // y 2^floor(x), for y in [1, 2) and x < 127: 0 where that is below the normal numbers.
  SOPT_INLINE F times_exp2_of_floor(F y, F x) { return _mm512_scalef_ps(y, x); }

  // The product of the low half of each lane and m.
  SOPT_INLINE W multiply_wide(W a, uint32_t m) {
    return (W)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
  }
  SOPT_INLINE W xor3(W a, W b, uint64_t c) {
    return (W)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, _mm512_set1_epi64(int64_t(c)),
                                        0x96);
  }
  // Which block each 64-bit lane holds, so that zip() puts elements in order.
  SOPT_INLINE W blocks() { return W{0, 4, 1, 5, 2, 6, 3, 7}; }
  // The low halves of both, interleaved.
  SOPT_INLINE U interleave(W even, W odd) {
    return (U)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CCAA);
  }
  // Even and odd words of blocks to consecutive elements.
  SOPT_INLINE void zip(F& even, F& odd) {
    const F low = _mm512_unpacklo_ps(even, odd);
    odd = _mm512_unpackhi_ps(even, odd);
    even = low;
  }

  // A byte for each lane: 255 where x <= y, else 0.
  SOPT_INLINE void store_at_most(uint8_t* to, U x, U y) {
    _mm_storeu_si128((__m128i*)to, _mm_movm_epi8(_mm512_cmple_epu32_mask((__m512i)x, (__m512i)y)));
  }
  // Byte i is 255 where bit i of those from `from` on is set, else 0.
  SOPT_INLINE B bytes_of_bits(const uint8_t* from) {
    uint64_t bits;
    memcpy(&bits, from, sizeof bits);
    return (B)_mm512_movm_epi8(bits);
  }
  // Lane i of pack j to lane j of pack i.
  SOPT_INLINE void transpose(F (&x)[16]) {
    F y[16];
    SOPT_UNROLL
    for (int i = 0; i < 16; i += 2) {
      y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    SOPT_UNROLL
    for (int i = 0; i < 16; i += 4)
      for (int j = 0; j < 2; ++j) {
        const __m512d a = (__m512d)y[i + j], b = (__m512d)y[i + j + 2];
        x[i + 2 * j] = (F)_mm512_unpacklo_pd(a, b);
        x[i + 2 * j + 1] = (F)_mm512_unpackhi_pd(a, b);
      }
    SOPT_UNROLL
    for (int i = 0; i < 4; ++i) {  // quarters q of x[i + 4 j] to quarters j of x[i + 4 q]
      const F a = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x44);
      const F b = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xEE);
      const F c = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x44);
      const F d = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xEE);
      x[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      x[i + 4] = _mm512_shuffle_f32x4(a, c, 0xDD);
      x[i + 8] = _mm512_shuffle_f32x4(b, d, 0x88);
      x[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
    }
  }

  SOPT_INLINE F load(const float* from) { return _mm512_loadu_ps(from); }
  SOPT_INLINE F load(const bfloat16* from) {
    const __m512i words = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from));
    // Word i to the upper half of lane i.
    const __m512i halves = (__m512i)(U{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} << 16);
    return (F)_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, halves, words);
  }
  SOPT_INLINE F load(const float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
  }
  SOPT_INLINE F load(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
  }
  SOPT_INLINE void store(float* to, F x) { _mm512_storeu_ps(to, x); }
  SOPT_INLINE void store(bfloat16* to, F x) {
    const __m512i bits = (__m512i)x, one = _mm512_set1_epi32(1);
    const M odd = test((U)x, 0x10000u), nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
    rounded = _mm512_mask_add_epi32(rounded, odd, rounded, one);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));  // stays NaN
    // The upper halves of lanes 2 i and 2 i + 1 to lane i.
    const __m512i halves = (__m512i)(U{0, 1, 2, 3, 4, 5, 6, 7} * 0x40004u + 0x30001u);
    _mm256_storeu_si256((__m256i*)to,
                        _mm512_castsi512_si256(_mm512_permutexvar_epi16(halves, rounded)));
  }
  SOPT_INLINE void store(float16* to, F x) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  SOPT_INLINE void store(int8_t* to, F x) {  // integers, modulo 256
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x)));
  }
};

}  // namespace
}  // namespace sopt
