// The integer products with AMX tiles: a unit of inputs by sixteen rows by thirty-two outputs in four instructions.
//
// DESIGN: a panel's quads (integer_panel_avx512.h) are the rows of a tile of codes, and the signed hi and lo bytes of
// sixteen rows of inputs, in their order, are two more. Their products are the exact sums that the VNNI file makes, and
// Panel::add takes them in the same order, so the bits are the same. Few rows go to the VNNI file: filling tiles
// costs more there than it saves.

#include "kernels/integer_panel_avx512.h"
#include "kernels/tables.h"

namespace flash_moe::kernels {
namespace {

constexpr int64_t kRowsOfTile = 16;
constexpr int64_t kRowsMin = 8;

// As the tile configuration instruction reads it.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Tiles 0 to 3: sums (hi and lo of the first sixteen outputs, then of the second); 4, 5: hi and lo of inputs;
  // 6, 7: codes.
  TileShapes(int64_t input_rows, int quads) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? 4 * quads : 64);
      rows[tile] = static_cast<uint8_t>(tile < 6 ? input_rows : quads);
    }
  }
};

// Tile loads read memory behind the compiler's back.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Word w of a 4-bit row holds inputs 8 w .. 8 w + 7, that is quads 2 w and 2 w + 1.
template <typename Codec>
inline void fill_tile_from_nibbles(Panel& panel, int64_t block, int64_t inputs) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int half = 0; half < 2 && 32 * half < inputs; ++half) {
    __m512i words[4];
    load_quads(panel.code_rows, 32 * block + 16 * half, words);
    for (int i = 0; i < 4; ++i) {
      const __m512i even = Codec::adjust(_mm512_and_si512(words[i], mask));
      const __m512i odd = Codec::adjust(_mm512_and_si512(_mm512_srli_epi16(words[i], 4), mask));
      const __m512 low = _mm512_castsi512_ps(_mm512_unpacklo_epi8(even, odd));
      const __m512 high = _mm512_castsi512_ps(_mm512_unpackhi_epi8(even, odd));
      uint8_t(*at)[64] = panel.codes + 8 * half + 2 * i;
      _mm512_store_si512(at[0], _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0x88)));
      _mm512_store_si512(at[1], _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0xdd)));
    }
  }
}

template <typename Codec, int kind>
void fill_tile_panel(Panel& panel, int64_t block) {
  fill_block<kind>(panel, block, [&](int64_t inputs) {
    if constexpr (Codec::kOrder == Order::pairs) {
      fill_tile_from_nibbles<Codec>(panel, block, inputs);
    } else {
      fill_from_stream<Codec>(panel, block, inputs);
    }
  });
}

// Sixteen (or fewer) rows of inputs of one block: where a tile load finds their hi bytes, and how far the next row is.
// Lo bytes lie 64 behind.
struct InputBlock {
  alignas(64) int8_t staged[kRowsOfTile][128];
  const int8_t* at = nullptr;
  int64_t stride = 0;

  // `evenly`: the rows lie x_stride apart and there are as many as the tile has.
  void load(const Panel& panel, int64_t first, int64_t count, int64_t block, bool evenly, size_t x_stride) {
    if (evenly) {
      at = panel.rows[first].inputs + 128 * block;
      stride = static_cast<int64_t>(x_stride);
      return;
    }
    for (int64_t r = 0; r < count; ++r) {
      const int8_t* from = panel.rows[first + r].inputs + 128 * block;
      _mm512_store_si512(staged[r], load_bytes(from));
      _mm512_store_si512(staged[r] + 64, load_bytes(from + 64));
    }
    at = staged[0];
    stride = 128;
  }
};

struct UnitSums {
  alignas(64) int32_t of[4][kRowsOfTile][16];  // hi and lo of the first sixteen outputs, then of the second
};

// The sums of unit j of a block for a tile of rows and one or two panels of outputs.
template <int panels>
inline void multiply_tiles(const InputBlock& x, int offset, UnitSums& sums) {
  _tile_loadd(4, x.at + offset, x.stride);
  _tile_loadd(5, x.at + 64 + offset, x.stride);
  _tile_zero(0);
  _tile_zero(1);
  _tile_dpbsud(0, 4, 6);
  _tile_dpbsud(1, 5, 6);
  if constexpr (panels == 2) {
    _tile_zero(2);
    _tile_zero(3);
    _tile_dpbsud(2, 4, 7);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, sums.of[0], 64);
  _tile_stored(1, sums.of[1], 64);
  if constexpr (panels == 2) {
    _tile_stored(2, sums.of[2], 64);
    _tile_stored(3, sums.of[3], 64);
  }
}

// How the rows of a product lie.
struct TileRows {
  int64_t of_tile;
  bool evenly;
  size_t x_stride;
};

template <int kind, int panels>
void multiply_block(Panel* panel, int64_t block, const TileRows& rows) {
  constexpr int kQuads = 4 << kind;
  constexpr int kUnits = 4 >> kind;
  const int64_t row_count = panel[0].row_count;
  InputBlock x;
  UnitSums sums;
  for (int64_t first = 0; first < row_count; first += kRowsOfTile) {
    const int64_t count = row_count - first < kRowsOfTile ? row_count - first : kRowsOfTile;
    x.load(panel[0], first, count, block, rows.evenly && count == rows.of_tile, rows.x_stride);
    for (int j = 0; j < kUnits; ++j) {
      const int64_t unit = kUnits * block + j;
      if (unit >= panel[0].unit_count) break;
      finish_stores();
      _tile_loadd(6, panel[0].codes[kQuads * j], 64);
      if constexpr (panels == 2) _tile_loadd(7, panel[1].codes[kQuads * j], 64);
      multiply_tiles<panels>(x, 4 * kQuads * j, sums);
      for (int p = 0; p < panels; ++p) {
        for (int64_t r = 0; r < count; ++r) {
          const __m512i high = _mm512_load_si512(sums.of[2 * p][r]);
          const __m512i low = _mm512_load_si512(sums.of[2 * p + 1][r]);
          panel[p].add(first + r, unit, _mm512_add_epi32(_mm512_slli_epi32(high, 8), low), panel[0].rows[first + r]);
        }
      }
    }
  }
}

using MultiplyTiles = void (*)(Panel* panel, int64_t block, const TileRows& rows);

// `multiply`: of one panel, of two.
void tile_product(const MatmulArgs& args, int kind, FillPanel fill, const MultiplyTiles* multiply) {
  const TileRows rows{args.row_count < kRowsOfTile ? args.row_count : kRowsOfTile, args.x_rows == nullptr, args.x_stride};
  const TileShapes shapes(rows.of_tile, 4 << kind);
  const int64_t blocks = (args.matrix.cols + 63) / 64;
  Panel panel[2] = {Panel(args.matrix), Panel(args.matrix)};
  finish_stores();
  _tile_loadconfig(&shapes);
  for (int64_t first = 0; first < args.row_count; first += kPanelRows) {
    for (Panel& each : panel) each.set_rows(args, first, Order::natural, kind);
    for (int64_t out = args.out_begin; out < args.out_end; out += 32) {
      const int64_t left = args.out_end - out;
      const int panels = left > 16 ? 2 : 1;
      for (int p = 0; p < panels; ++p) panel[p].set_outs(out + 16 * p, left - 16 * p);
      for (int64_t block = 0; block < blocks; ++block) {
        for (int p = 0; p < panels; ++p) fill(panel[p], block);
        multiply[panels - 1](panel, block, rows);
      }
      for (int p = 0; p < panels; ++p) panel[p].finish(args, first);
    }
  }
  _tile_release();
}

void matmul(const MatmulArgs& args) {
  if (args.row_count < kRowsMin || !has_integer_codes(args.matrix)) return kAvx512VnniInteger.matmul(args);
  with_codec(args.matrix, [&]<typename Codec>() {
    with_unit_kind<Codec>(args.matrix, [&]<int kind>() {
      static constexpr MultiplyTiles kMultiply[2] = {multiply_block<kind, 1>, multiply_block<kind, 2>};
      tile_product(args, kind, fill_tile_panel<typename Codec::Panel, kind>, kMultiply);
    });
  });
}

}  // namespace

constinit const IntegerKernels kAmxInteger = {
    .name = "amx", .prepared_bytes = fast_row_bytes, .prepare_row = prepare_fast_row, .matmul = matmul};

}  // namespace flash_moe::kernels
