// Pixels and codes to the words that int8 layers multiply.
#pragma once
#include "int8_operands.h"

namespace sopt {
namespace {

// L elements from a row whose elements are `stride` apart, zero from `count` on.
template <class P, class T>
SOPT_INLINE typename P::F load_strided(const T* from, int64_t stride, int64_t count) {
  if (stride == 1) return load_some<P>(from, count);
  T buffer[P::kLanes] = {};
  for (int64_t i = 0; i < P::kLanes && i < count; ++i) buffer[i] = from[i * stride];
  return P::load(buffer);
}

// The bits of the largest absolute value; those of NaN are above those of infinity.
template <class P, class T>
SOPT_INLINE uint32_t largest_bits(const T* from, int64_t stride, int64_t count) {
  typename P::I most{};
  for (int64_t k = 0; k < count; k += P::kLanes) {
    const auto x = load_strided<P>(from + k * stride, stride, count - k);
    most = P::max(most, P::signed_of(P::bits_of(x) & 0x7FFFFFFFu));
  }
  int32_t largest = 0;
  for (int i = 0; i < P::kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
  return uint32_t(largest);
}

// The same of 16-bit numbers, whose own bits are in the same order.
template <class P, class T>
SOPT_INLINE uint32_t largest_bits_of_16(const T* from, int64_t count) {
  using Halves = typename P::Halves;
  constexpr int64_t L = 2 * P::kLanes;
  Halves most{};
  int64_t k = 0;
  for (; k + L <= count; k += L) {
    Halves bits;
    memcpy(&bits, from + k, sizeof bits);
    bits &= 0x7FFF;
    most = bits > most ? bits : most;
  }
  T largest{};
  for (int i = 0; i < L; ++i) largest.bits = most[i] > largest.bits ? most[i] : largest.bits;
  for (; k < count; ++k) {
    const uint16_t bits = from[k].bits & 0x7FFF;
    largest.bits = bits > largest.bits ? bits : largest.bits;
  }
  const T lanes[P::kLanes] = {largest};
  return P::bits_of(P::load(lanes))[0];
}

// A pixel to a row of words; its scale, by which sums of quantized elements are multiplied.
template <class M, class T>
float pack_pixel(const T* from, int64_t stride, int64_t count, int64_t words, const float* factors,
                 typename M::Word* to) {
  using P = typename M::Pack;
  using F = typename P::F;
  float scale = 1.0f, inverse = 0.0f;
  if (M::kQuantized) {
    uint32_t bits;
    if constexpr (sizeof(T) == 2)
      bits =
          stride == 1 ? largest_bits_of_16<P>(from, count) : largest_bits<P>(from, stride, count);
    else
      bits = largest_bits<P>(from, stride, count);
    const float largest = float_of(bits);
    scale = largest / 127.0f;
    if (bits >= 0x7F800000u) {
      scale = float_of(0x7FC00000u);
    } else if (largest < kLeastQuantized) {
      scale = 0.0f;
    } else {
      inverse = 127.0f / largest;
    }
  }
  auto* elements = reinterpret_cast<typename M::Element*>(to);
  const auto store = [=](typename M::Element* element, F x, int64_t k, int64_t left) SOPT_LAMBDA {
    if constexpr (M::kQuantized) {
      if (inverse == 0.0f) x = F{};  // infinite elements among them
      M::store_codes(element, P::bits_of(x * P::splat(inverse) + P::splat(kRounder + M::kOffset)));
    } else {
      M::store_elements(element, factors == nullptr ? x : x * load_some<P>(factors + k, left));
    }
  };
  int64_t k = 0;
  if (stride == 1)
    for (; k + P::kLanes <= count; k += P::kLanes)
      store(elements + k, P::load(from + k), k, P::kLanes);
  typename M::Element buffer[P::kLanes];
  for (const int64_t end = words * M::kDepth; k < end; k += P::kLanes) {
    store(buffer, load_strided<P>(from + k * stride, stride, count - k), k, count - k);
    const int64_t some = end - k < P::kLanes ? end - k : P::kLanes;
    memcpy(elements + k, buffer, size_t(some) * sizeof *buffer);
  }
  return scale;
}

// The codes of `columns` outputs, `row` apart, for one element of the kernel.
template <class M>
[[gnu::noinline]] void pack_outputs(const int8_t* codes, int64_t row, int64_t columns,
                                    int64_t count, int64_t words, typename M::Word* panel) {
  using P = typename M::Pack;
  constexpr int L = P::kLanes, D = M::kDepth;
  for (int64_t column = 0; column < M::kColumns; column += L)
    for (int64_t k = 0; k < words; k += L) {
      typename P::F rows[L];
      for (int64_t j = 0; j < L; ++j) {
        const int8_t* from = codes + (column + j) * row + k * D;
        const int64_t left = column + j < columns ? count - k * D : 0;
        if (left >= L * D) {
          rows[j] = P::float_of(M::load_codes(from));
        } else {
          int8_t buffer[L * D] = {};
          if (left > 0) memcpy(buffer, from, size_t(left));
          rows[j] = P::float_of(M::load_codes(buffer));
        }
      }
      P::transpose(rows);
      for (int64_t j = 0; j < L && k + j < words; ++j)
        M::store(panel + (k + j) * M::kColumns + column, P::bits_of(rows[j]));
    }
}

// The codes of `columns` inputs, for one element of the kernel: depth counts outputs, `row` apart.
template <class M>
[[gnu::noinline]] void pack_inputs(const int8_t* codes, int64_t row, int64_t columns, int64_t count,
                                   int64_t words, typename M::Word* panel) {
  constexpr int L = M::Pack::kLanes, D = M::kDepth;
  for (int64_t k = 0; k < words; ++k)
    for (int64_t column = 0; column < M::kColumns; column += L) {
      const int8_t* from = codes + k * D * row + column;
      typename M::Words word;
      if (column + L <= columns && (k + 1) * D <= count) {
        word = M::join_rows(from, row);
      } else {
        int8_t buffer[D * L] = {};
        const int64_t some = columns - column < L ? columns - column : L;
        for (int64_t d = 0; d < D && k * D + d < count && some > 0; ++d)
          memcpy(buffer + d * L, from + d * row, size_t(some));
        word = M::join_rows(buffer, L);
      }
      M::store(panel + k * M::kColumns + column, word);
    }
}

}  // namespace
}  // namespace sopt
