// Kernels of int8 layers: convolutions, of which linear layers are those with a kernel of one
// element, and their gradients with respect to the input.
//
// An item of work is a tile of the result's pixels by some panels of its channels. The pixels that
// it reads are packed once, each to a row of words; there is no matrix of patches: for each element
// of the kernel, a list says which row each pixel of the tile reads, and a row of zeros stands for
// what is outside. Of the codes, one panel for one element of the kernel is packed at a time,
// where the layer is small for a part of the depth.
#pragma once
#include "int8_packing.h"

namespace sopt {
namespace {

// A share of the scratch: see int8_scratch_bytes.
template <class M>
struct Int8Scratch {
  typename M::Word* pixels;  // (pixels read + 1, pitch): the last one is zeros
  typename M::Word* panel;   // (depth, kColumns)
  float* totals;             // (totals of the tile, kColumns)
  float* scales;             // (pixels read + 1)
  int32_t* sources;          // (pixels of the tile): which row

  Int8Scratch(const Int8Call& c, uint8_t* memory) {
    const int64_t read = c.tile.read + 1;
    pixels = take<typename M::Word>(memory, read * c.x.pitch);
    panel = take<typename M::Word>(memory, c.x.depth * M::kColumns);
    totals = take<float>(memory, c.tile.totals * M::kColumns);
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

// finish(r, v, sum) for the sums, from `start` on, of the products of row r and the panel's pack v.
// A function of its own: with more alive around its loop GCC 12 keeps columns on the stack and
// reads them again for products. Zen 4: convolutions of 3 x 3 take 0.90 to 0.96 of that time.
template <class M, class Finish>
[[gnu::noinline]] void multiply_rows(const typename M::Word* const* rows,
                                     const typename M::Word* panel, int64_t words,
                                     const typename M::Sum* start, const Finish finish) {
  constexpr int R = kTileRows<typename M::Pack>, V = kTilePacks;
  const typename M::Word* row[R];
  typename M::Sum acc[R][V];
  SOPT_UNROLL
  for (int r = 0; r < R; ++r) {
    row[r] = rows[r];
    SOPT_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = start[v];
  }
  for (int64_t k = 0; k < words; ++k, panel += M::kColumns) {
    typename M::Words columns[V];
    SOPT_UNROLL
    for (int v = 0; v < V; ++v) columns[v] = M::load(panel + v * M::Pack::kLanes);
    SOPT_UNROLL
    for (int r = 0; r < R; ++r) {
      const typename M::Words word = M::splat(row[r][k]);
      SOPT_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = M::dot(word, columns[v], acc[r][v]);
    }
  }
  SOPT_UNROLL
  for (int r = 0; r < R; ++r) SOPT_UNROLL
  for (int v = 0; v < V; ++v) finish(r, v, acc[r][v]);
}

// Results of the channels of a panel.
template <class M>
struct Int8Outputs {
  using P = typename M::Pack;
  typename P::F scale[kTilePacks], shift[kTilePacks];
  int64_t channels, count;  // from pixel to pixel; of this panel

  Int8Outputs(const Int8Call& c, int64_t column)
      : channels(c.out.channels), count(c.out.channels - column) {
    const float* bias = c.transposed ? nullptr : c.layer.bias;
    for (int v = 0; v < kTilePacks; ++v) {
      const int64_t at = column + v * P::kLanes, left = c.out.channels - at;
      scale[v] = c.transposed ? P::splat(1.0f) : load_some<P>(c.layer.scales + at, left);
      shift[v] = bias == nullptr ? P::splat(0.0f) : load_some<P>(bias + at, left);
    }
  }
};

template <class M, class T>
SOPT_INLINE void write_result(const Int8Outputs<M>& y, T* out, int v, typename M::F total) {
  using P = typename M::Pack;
  store_some<P>(out + v * P::kLanes, y.count - v * P::kLanes,
                P::fma(total, y.scale[v], y.shift[v]));
}

// The products of all pixels, from word `begin` of them on, and a panel of `words`. With `out`,
// where pixels are `outputs.channels` apart, they are the whole result; else they are added to the
// totals, or begin them. Until the last panel of their depth, sums of integers stay what they are
// in the place of totals.
template <class M, class T>
void multiply_panel(const Int8Call& c, const Int8Scratch<M>& s, int64_t pixels, int64_t begin,
                    int64_t words, bool first, const Int8Outputs<M>& outputs, T* out) {
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
    const int64_t count = pixels - i;  // of rows, if below R
    const typename M::Word* rows[R];
    float scales[R];
    for (int r = 0; r < R; ++r) {
      const int32_t source = s.sources[r < count ? i + r : pixels - 1];
      rows[r] = s.pixels + source * c.x.pitch + begin;
      scales[r] = s.scales[source];
    }
    const float* scale = scales;
    if (out != nullptr) {
      T* to = out + i * outputs.channels;
      const auto* results = &outputs;
      multiply_rows<M>(rows, s.panel, words, start, [=](int r, int v, Sum sum) SOPT_LAMBDA {
        if (r < count)
          write_result(*results, to + r * results->channels, v,
                       M::add(P::splat(0.0f), sum, P::splat(scale[r])));
      });
    } else {
      float* totals = s.totals + i * M::kColumns;
      multiply_rows<M>(rows, s.panel, words, start, [=](int r, int v, Sum sum) SOPT_LAMBDA {
        if (r >= count) return;
        float* total = totals + r * M::kColumns + v * L;
        auto before = first ? P::splat(0.0f) : P::load(total);
        if (resumed) sum += (Sum)P::bits_of(before), before = P::splat(0.0f);
        P::store(total, unfinished ? P::float_of((typename P::U)sum)
                                   : M::add(before, sum, P::splat(scale[r])));
      });
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
    const int64_t row = int8_source(c.layer, c.transposed, t.top + y, down, c.x.image.height);
    for (int64_t x = 0; x < t.width; ++x) {
      const int64_t column = int8_source(c.layer, c.transposed, t.left + x, right, c.x.image.width);
      const bool inside = row >= 0 && column >= 0;
      s.sources[y * t.width + x] =
          int32_t(inside ? (row - t.rows.begin) * width + column - t.columns.begin : zeros);
    }
  }
}

// Totals to results.
template <class M, class T>
void write_panel(const Int8Call& c, const Int8Tile& t, const Int8Scratch<M>& s,
                 const Int8Outputs<M>& outputs, T* out) {
  using P = typename M::Pack;
  const float* totals = s.totals;
  for (int64_t y = 0; y < t.height; ++y, out += (c.out.width - t.width) * c.out.channels)
    for (int64_t x = 0; x < t.width; ++x, out += c.out.channels, totals += M::kColumns)
      for (int v = 0; v < kTilePacks; ++v)
        write_result(outputs, out, v, P::load(totals + v * P::kLanes));
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
    const Int8Outputs<M> outputs(c, column);
    T* out = static_cast<T*>(c.out.data) + column +
             ((t.batch * c.out.height + t.top) * c.out.width + t.left) * c.out.channels;
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
        multiply_panel(c, s, pixels, word, words, k == 0 && word == 0, outputs,
                       c.tile.totals > 0 ? nullptr : out);
      }
    }
    if (c.tile.totals > 0) write_panel(c, t, s, outputs, out);
  }
}

template <class M, class T>
constexpr Int8Body int8_body() {
  return {int8_layer<M, T>, M::kColumns, M::kDepth, kTileRows<typename M::Pack>};
}

}  // namespace
}  // namespace sopt
