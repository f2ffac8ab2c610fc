// Kernels of int8 layers: convolutions, of which linear layers are those with a kernel of one
// element, and their gradients with respect to the input.
//
// An item of work is a tile of the result's pixels by some panels of its channels. The pixels that
// it reads are packed once, each to a row of words; there is no matrix of patches: for each element
// of the kernel, a list says which row each pixel of the tile reads, and a row of zeros stands for
// what is outside. Of the codes, one panel for one element of the kernel is packed at a time,
// where the layer is small for a part of the depth.
#pragma once
#include "int8_operands.h"
#include "kernels.h"

namespace sopt {
namespace {

// A share of the scratch: see int8_scratch_bytes.
template <class M>
struct Int8Scratch {
  typename M::Word* pixels;  // (pixels read + 1, pitch): the last one is zeros
  typename M::Word* panel;   // (depth, kColumns)
  float* totals;             // (pixels of the tile, kColumns)
  float* scales;             // (pixels read + 1)
  int32_t* sources;          // (pixels of the tile): which row

  Int8Scratch(const Int8Call& c, uint8_t* memory) {
    const int64_t read = c.tile.read + 1;
    pixels = take<typename M::Word>(memory, read * c.x.pitch);
    panel = take<typename M::Word>(memory, c.x.depth * M::kColumns);
    totals = take<float>(memory, c.tile.pixels * M::kColumns);
    scales = take<float>(memory, read);
    sources = take<int32_t>(memory, c.tile.pixels);
  }
  template <class T>
  static T* take(uint8_t*& memory, int64_t count) {
    T* taken = reinterpret_cast<T*>(memory);
    memory += int8_aligned(count * int64_t{sizeof(T)});
    return taken;
  }
};

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
  typename M::Element buffer[P::kLanes];
  for (int64_t k = 0; k < words * M::kDepth; k += P::kLanes) {
    F x = load_strided<P>(from + k * stride, stride, count - k);
    if (M::kQuantized) {
      if (inverse == 0.0f) x = F{};  // infinite elements among them
      x = (x * P::splat(inverse) + P::splat(kRounder)) - P::splat(kRounder - M::kOffset);
    } else if (factors != nullptr) {
      x = x * load_some<P>(factors + k, count - k);
    }
    if (k + P::kLanes <= words * M::kDepth) {
      M::store_elements(elements + k, x);
    } else {
      M::store_elements(buffer, x);
      memcpy(elements + k, buffer, size_t(words * M::kDepth - k) * sizeof *buffer);
    }
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

// Adds to each total the products of its pixel's row, from word `begin` on, and the panel. Until
// the last panel of their depth, sums of integers stay what they are in the place of totals.
template <class M>
[[gnu::noinline]] void multiply_panel(const Int8Call& c, const Int8Scratch<M>& s, int64_t pixels,
                                      int64_t begin, int64_t words) {
  using P = typename M::Pack;
  using Sum = typename M::Sum;
  constexpr int R = kTileRows<P>, V = kTilePacks, L = P::kLanes;
  const bool resumed = M::kQuantized && begin > 0;
  const bool unfinished = M::kQuantized && begin + words < c.x.words;
  Sum start[V] = {};
  if (M::kOffset != 0) {
    for (int64_t k = 0; k < words; ++k)
      for (int v = 0; v < V; ++v)
        start[v] =
            M::dot(M::splat(0x80808080u), M::load(s.panel + k * M::kColumns + v * L), start[v]);
    for (int v = 0; v < V; ++v) start[v] = Sum{} - start[v];
  }
  for (int64_t i = 0; i < pixels; i += R) {
    const typename M::Word* rows[R];
    int32_t sources[R];
    SOPT_UNROLL
    for (int r = 0; r < R; ++r) {
      sources[r] = s.sources[i + r < pixels ? i + r : pixels - 1];
      rows[r] = s.pixels + sources[r] * c.x.pitch + begin;
    }
    Sum acc[R][V];
    SOPT_UNROLL
    for (int r = 0; r < R; ++r) SOPT_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = start[v];
    const typename M::Word* b = s.panel;
    for (int64_t k = 0; k < words; ++k, b += M::kColumns) {
      typename M::Words columns[V];
      SOPT_UNROLL
      for (int v = 0; v < V; ++v) columns[v] = M::load(b + v * L);
      SOPT_UNROLL
      for (int r = 0; r < R; ++r) {
        const typename M::Words word = M::splat(rows[r][k]);
        SOPT_UNROLL
        for (int v = 0; v < V; ++v) acc[r][v] = M::dot(word, columns[v], acc[r][v]);
      }
    }
    SOPT_UNROLL
    for (int r = 0; r < R; ++r) {
      if (i + r >= pixels) break;
      float* totals = s.totals + (i + r) * M::kColumns;
      const auto scale = P::splat(s.scales[sources[r]]);
      SOPT_UNROLL
      for (int v = 0; v < V; ++v) {
        typename P::F total = P::load(totals + v * L);
        if (resumed) acc[r][v] += (Sum)P::bits_of(total), total = typename P::F{};
        total =
            unfinished ? P::float_of((typename P::U)acc[r][v]) : M::add(total, acc[r][v], scale);
        P::store(totals + v * L, total);
      }
    }
  }
}

// The pixels of a tile, and those that it reads.
struct Int8Tile {
  int64_t batch, top, left, height, width;
  Int8Span rows, columns;
};

static Int8Tile int8_tile(const Int8Call& c, int64_t index) {
  const int64_t across = (c.out.width + c.tile.width - 1) / c.tile.width;
  const int64_t down = (c.out.height + c.tile.height - 1) / c.tile.height;
  Int8Tile t;
  t.batch = index / (across * down);
  t.top = index / across % down * c.tile.height;
  t.left = index % across * c.tile.width;
  t.height = c.out.height - t.top < c.tile.height ? c.out.height - t.top : c.tile.height;
  t.width = c.out.width - t.left < c.tile.width ? c.out.width - t.left : c.tile.width;
  t.rows = int8_span(c, t.top, t.height, c.layer.kernel_height, c.x.image.height);
  t.columns = int8_span(c, t.left, t.width, c.layer.kernel_width, c.x.image.width);
  return t;
}

constexpr int64_t kMostGathered = 2560;  // channels; no layer of the published models has more

// Neighbours in a row whose channels lie apart, as rows of channels.
template <class P, class T>
SOPT_INLINE void gather_pixels(const T* from, int64_t stride, int64_t pixels, int64_t channels,
                               T* to) {
  constexpr int L = P::kLanes;
  for (int64_t k = 0; k < channels; k += L) {
    typename P::F rows[L];
    for (int64_t j = 0; j < L; ++j)
      rows[j] = k + j < channels ? load_some<P>(from + (k + j) * stride, pixels) : typename P::F{};
    P::transpose(rows);
    for (int64_t j = 0; j < pixels; ++j)
      store_some<P>(to + j * channels + k, channels - k, rows[j]);
  }
}

template <class M, class T>
void pack_pixels(const Int8Call& c, const Int8Tile& t, const Int8Scratch<M>& s) {
  constexpr int64_t L = M::Pack::kLanes;
  const sopt_image& x = c.x.image;
  const int64_t width = t.columns.size, read = t.rows.size * width, channels = c.x.channels;
  const bool apart = x.channel_stride != 1 && x.column_stride == 1 && channels <= kMostGathered;
  const float* factors = c.transposed ? c.layer.scales : nullptr;
  T gathered[L * kMostGathered];
  for (int64_t p = 0; p < read;) {
    const int64_t column = p % width, run = width - column < L ? width - column : L;
    const T* from = static_cast<const T*>(x.data) + t.batch * x.batch_stride +
                    (t.rows.begin + p / width) * x.row_stride +
                    (t.columns.begin + column) * x.column_stride;
    int64_t stride = x.channel_stride, step = x.column_stride;
    if (apart) {
      gather_pixels<typename M::Pack>(from, stride, run, channels, gathered);
      from = gathered, stride = 1, step = channels;
    }
    for (const int64_t end = p + run; p < end; ++p, from += step)
      s.scales[p] =
          pack_pixel<M>(from, stride, channels, c.x.words, factors, s.pixels + p * c.x.pitch);
  }
  const T zero{};
  s.scales[read] = 0.0f;
  pack_pixel<M>(&zero, 0, 1, c.x.words, nullptr, s.pixels + read * c.x.pitch);
}

// Which row each pixel of the tile reads for one element of the kernel.
template <class M>
void list_sources(const Int8Call& c, const Int8Tile& t, int64_t down, int64_t right,
                  const Int8Scratch<M>& s) {
  const int64_t width = t.columns.size, zeros = t.rows.size * width;
  for (int64_t y = 0; y < t.height; ++y) {
    const int64_t row = int8_source(c, t.top + y, down, c.x.image.height);
    for (int64_t x = 0; x < t.width; ++x) {
      const int64_t column = int8_source(c, t.left + x, right, c.x.image.width);
      const bool inside = row >= 0 && column >= 0;
      s.sources[y * t.width + x] =
          int32_t(inside ? (row - t.rows.begin) * width + column - t.columns.begin : zeros);
    }
  }
}

template <class M, class T>
void write_panel(const Int8Call& c, const Int8Tile& t, int64_t column, const Int8Scratch<M>& s) {
  using P = typename M::Pack;
  constexpr int L = P::kLanes;
  const float* bias = c.transposed ? nullptr : c.layer.bias;
  for (int64_t v = 0; v < M::kColumns && column + v < c.out.channels; v += L) {
    const int64_t count = c.out.channels - column - v;
    const auto scale =
        c.transposed ? P::splat(1.0f) : load_some<P>(c.layer.scales + column + v, count);
    const auto shift = bias == nullptr ? P::splat(0.0f) : load_some<P>(bias + column + v, count);
    for (int64_t y = 0; y < t.height; ++y) {
      const int64_t first =
          ((t.batch * c.out.height + t.top + y) * c.out.width + t.left) * c.out.channels;
      T* out = static_cast<T*>(c.out.data) + first + column + v;
      const float* totals = s.totals + y * t.width * M::kColumns + v;
      for (int64_t x = 0; x < t.width; ++x, out += c.out.channels, totals += M::kColumns)
        store_some<P>(out, count, P::fma(P::load(totals), scale, shift));
    }
  }
}

// One of tiles * groups items.
template <class M, class T>
void int8_layer(const Int8Call& c, int64_t item, uint8_t* memory) {
  const Int8Scratch<M> s(c, memory);
  const Int8Tile t = int8_tile(c, item / c.groups);
  const int64_t panels = (c.out.channels + M::kColumns - 1) / M::kColumns;
  const int64_t group = item % c.groups, begin = panels * group / c.groups;
  const int64_t end = panels * (group + 1) / c.groups, pixels = t.height * t.width;
  const sopt_int8_layer& layer = c.layer;
  const int64_t elements = layer.kernel_height * layer.kernel_width;
  pack_pixels<M, T>(c, t, s);
  for (int64_t column = begin * M::kColumns; column < end * M::kColumns; column += M::kColumns) {
    memset(s.totals, 0, size_t(pixels * M::kColumns) * sizeof(float));
    for (int64_t k = 0; k < elements; ++k) {
      list_sources(c, t, k / layer.kernel_width, k % layer.kernel_width, s);
      const int64_t row = elements * layer.inputs, columns = c.out.channels - column;
      for (int64_t word = 0; word < c.x.words; word += c.x.depth) {
        const int64_t words = c.x.words - word < c.x.depth ? c.x.words - word : c.x.depth;
        const int64_t skipped = word * M::kDepth, count = c.x.channels - skipped;
        const int8_t* codes = layer.codes + k * layer.inputs;
        if constexpr (M::kQuantized) {
          pack_outputs<M>(codes + column * row + skipped, row, columns, count, words, s.panel);
        } else if (c.transposed) {
          pack_inputs<M>(codes + skipped * row + column, row, columns, count, words, s.panel);
        } else {
          pack_outputs<M>(codes + column * row + skipped, row, columns, count, words, s.panel);
        }
        multiply_panel(c, s, pixels, word, words);
      }
    }
    write_panel<M, T>(c, t, column, s);
  }
}

template <class M, class T>
constexpr Int8Body int8_body() {
  return {int8_layer<M, T>, M::kColumns, M::kDepth, kTileRows<typename M::Pack>};
}

}  // namespace
}  // namespace sopt
