// Eight lanes: AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include "../common/dtypes.h"

namespace sopt {
namespace {

struct Pack {
  static constexpr int kLanes = 8;
  typedef float F __attribute__((vector_size(32)));
  typedef uint32_t U __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
  typedef uint64_t W __attribute__((vector_size(32)));
  typedef uint8_t B __attribute__((vector_size(32)));
  typedef uint16_t Halves __attribute__((vector_size(32)));  // twice as many
  typedef U M;                                               // the highest bit of each lane

  SOPT_INLINE F splat(float x) { return _mm256_set1_ps(x); }
  SOPT_INLINE W splat_wide(uint64_t x) { return W{} + x; }
  SOPT_INLINE U bits_of(F x) { return (U)x; }
  SOPT_INLINE F float_of(U x) { return (F)x; }
  SOPT_INLINE I signed_of(U x) { return (I)x; }
  SOPT_INLINE U unsigned_of(I x) { return (U)x; }
  SOPT_INLINE F to_float(I x) { return _mm256_cvtepi32_ps((__m256i)x); }
  SOPT_INLINE I to_int(F x) { return (I)_mm256_cvttps_epi32(x); }  // towards zero
  // Which lanes have the bit set; the complement of these lanes; x in them, y in the others.
  SOPT_INLINE M test(U x, uint32_t bit) { return x << __builtin_clz(bit); }
  SOPT_INLINE U flip(M m, U x) { return x ^ (U)((I)m >> 31); }
  SOPT_INLINE F select(M m, F x, F y) { return _mm256_blendv_ps(y, x, (F)m); }
  // x, negated in the lanes i for which bit kLanes * part + i is set.
  SOPT_INLINE F negate_where(F x, uint32_t bits, int part) {
    const U shift = U{31, 30, 29, 28, 27, 26, 25, 24} -
                    uint32_t(kLanes * part);  // brings the bit of each lane to the sign
    return (F)((U)x ^ (((U{} + bits) << shift) & 0x80000000u));
  }
  // The exponent of x > 0 as a number, and x scaled by a power of two to [1, 2).
  SOPT_INLINE F exponent(F x) { return to_float((I)(((U)x >> 23) - 127u)); }
  SOPT_INLINE F mantissa(F x) { return (F)(((U)x & 0x7FFFFFu) | 0x3F800000u); }
  SOPT_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  SOPT_INLINE F sqrt(F x) { return _mm256_sqrt_ps(x); }
  SOPT_INLINE F max(F x, F y) { return _mm256_max_ps(x, y); }  // y if either is NaN
  SOPT_INLINE I max(I x, I y) { return (I)_mm256_max_epi32((__m256i)x, (__m256i)y); }
  SOPT_INLINE F fraction(F x) { return x - _mm256_floor_ps(x); }
  // y 2^floor(x), for y in [1, 2) and x < 127: 0 where that is below the normal numbers.
  SOPT_INLINE F times_exp2_of_floor(F y, F x) {
    const __m256i power = _mm256_cvtps_epi32(_mm256_floor_ps(x));
    const F scaled = (F)_mm256_add_epi32((__m256i)y, _mm256_slli_epi32(power, 23));
    return _mm256_andnot_ps(_mm256_cmp_ps(x, splat(-126.0f), _CMP_LT_OQ), scaled);
  }

  // The product of the low half of each lane and m.
  SOPT_INLINE W multiply_wide(W a, uint32_t m) {
    return (W)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
  }
  SOPT_INLINE W xor3(W a, W b, uint64_t c) { return a ^ b ^ c; }
  // Which block each 64-bit lane holds, so that zip() puts elements in order.
  SOPT_INLINE W blocks() { return W{0, 2, 1, 3}; }
  // The low halves of both, interleaved.
  SOPT_INLINE U interleave(W even, W odd) {
    return (U)_mm256_blend_epi32((__m256i)even, (__m256i)(odd << 32), 0xAA);
  }
  // Even and odd words of blocks to consecutive elements.
  SOPT_INLINE void zip(F& even, F& odd) {
    const F low = _mm256_unpacklo_ps(even, odd);
    odd = _mm256_unpackhi_ps(even, odd);
    even = low;
  }

  // A byte for each lane: 255 where x <= y, else 0.
  SOPT_INLINE void store_at_most(uint8_t* to, U x, U y) {
    const __m256i mask = _mm256_cmpeq_epi32(_mm256_min_epu32((__m256i)x, (__m256i)y), (__m256i)x);
    const __m128i halves =
        _mm_packs_epi32(_mm256_castsi256_si128(mask), _mm256_extracti128_si256(mask, 1));
    _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(halves, halves));
  }
  // Byte i is 255 where bit i of those from `from` on is set, else 0.
  SOPT_INLINE B bytes_of_bits(const uint8_t* from) {
    const __m256i of_byte =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    int32_t bits;
    memcpy(&bits, from, sizeof bits);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), of_byte);
    return (B)_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
  }
  // Lane i of pack j to lane j of pack i.
  SOPT_INLINE void transpose(F (&x)[8]) {
    float rows[8][8], columns[8][8];
    memcpy(rows, x, sizeof rows);
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 8; ++j) columns[i][j] = rows[j][i];
    memcpy(x, columns, sizeof columns);
  }

  SOPT_INLINE F load(const float* from) { return _mm256_loadu_ps(from); }
  SOPT_INLINE F load(const bfloat16* from) {
    return (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
  }
  SOPT_INLINE F load(const float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
  }
  SOPT_INLINE F load(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
  }
  SOPT_INLINE void store(float* to, F x) { _mm256_storeu_ps(to, x); }
  SOPT_INLINE void store(bfloat16* to, F x) {
    const U bits = (U)x, rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    const __m256i kept = (__m256i)(x == x ? rounded : (bits >> 16 | 0x40u));  // NaN stays NaN
    const __m128i low = _mm256_castsi256_si128(kept), high = _mm256_extracti128_si256(kept, 1);
    _mm_storeu_si128((__m128i*)to, _mm_packus_epi32(low, high));
  }
  SOPT_INLINE void store(float16* to, F x) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  SOPT_INLINE void store(int8_t* to, F x) {  // integers, modulo 256
    const __m256i low = _mm256_and_si256(_mm256_cvttps_epi32(x), _mm256_set1_epi32(255));
    const __m128i halves =
        _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(halves, halves));
  }
};

}  // namespace
}  // namespace sopt
