#pragma once

#include <algorithm>
#include <cstdint>

#include "ei/base/view.h"

namespace ei::cuda {

// How prefill attention cuts a chunk into tiles of queries, and the keys of a tile into tiles of
// keys. Plain index arithmetic, for host and device.

inline constexpr int kTileQueries = 128;
inline constexpr int kTileKeys = 128;
inline constexpr int kGroupKeys = 8;  // keys of one copy: 8 rows of 128 bytes are a swizzle atom

// The query tiles of a chunk: every segment is cut into tiles from its start, so that a tile has
// one selection. Where segments are shorter than tiles, a tile has queries of several heads that
// share a KV head and so the selection: head_rows of each, one after another. Positions are
// absolute.
struct ChunkTiles {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t segment = 0;
  int32_t per_segment = 0;  // tiles
  int32_t n_segments = 0;
  int32_t head_rows = 0;
  int32_t heads = 0;       // of a tile, at most
  int32_t head_tiles = 0;  // for the heads of a KV head

  EI_HOST_DEVICE int32_t n_tiles() const { return n_segments * per_segment; }
  // Of the rows from `row` on the one that sees least, counted from its head's first.
  EI_HOST_DEVICE int32_t least_row(int32_t row) const { return row < head_rows ? row : 0; }
};

// group: query heads of a KV head.
inline ChunkTiles chunk_tiles(int64_t begin, int64_t n, int64_t segment, int64_t group) {
  ChunkTiles tiles;
  tiles.begin = static_cast<int32_t>(begin);
  tiles.end = static_cast<int32_t>(begin + n);
  tiles.segment = static_cast<int32_t>(segment);
  tiles.per_segment = static_cast<int32_t>((segment + kTileQueries - 1) / kTileQueries);
  tiles.head_rows = static_cast<int32_t>(std::min<int64_t>(segment, kTileQueries));
  tiles.heads = static_cast<int32_t>(std::min<int64_t>(group, kTileQueries / tiles.head_rows));
  tiles.head_tiles = static_cast<int32_t>((group + tiles.heads - 1) / tiles.heads);
  tiles.n_segments =
      n == 0 ? 0 : static_cast<int32_t>((begin + n - 1) / segment - begin / segment + 1);
  return tiles;
}

struct QueryTile {
  int32_t segment = 0;        // within the chunk
  int32_t segment_start = 0;  // position
  int32_t first = 0;          // position of a head's first row; may lie before the chunk
  int32_t begin = 0;          // positions [begin, end) are the chunk's; none: an empty tile
  int32_t end = 0;
};

EI_HOST_DEVICE inline QueryTile query_tile(const ChunkTiles& tiles, int32_t i) {
  QueryTile tile;
  tile.segment = i / tiles.per_segment;
  tile.segment_start = (tiles.begin / tiles.segment + tile.segment) * tiles.segment;
  tile.first = tile.segment_start + i % tiles.per_segment * kTileQueries;
  tile.begin = tile.first > tiles.begin ? tile.first : tiles.begin;
  tile.end = tile.segment_start + tiles.segment;
  if (tile.end > tile.first + kTileQueries) tile.end = tile.first + kTileQueries;
  if (tile.end > tiles.end) tile.end = tiles.end;
  return tile;
}

// The keys a query tile attends to, as one list: the selected ones, then a run from own_start on
// that ends with the tile's last query. Row r of a head sees the first limit() + r of them: all
// selected ones, and causally those of the run. Dense attention is a run from 0 and no selected
// ones.
struct KeyList {
  int32_t n_selected = 0;  // keys
  int32_t own_start = 0;   // position
  int32_t first = 0;       // the tile's
  int32_t size = 0;

  EI_HOST_DEVICE int32_t limit() const { return n_selected + first - own_start + 1; }
  EI_HOST_DEVICE int32_t n_tiles() const { return (size + kTileKeys - 1) / kTileKeys; }
  // Cache row of list entry j >= n_selected.
  EI_HOST_DEVICE int32_t own_row(int32_t j) const { return own_start + j - n_selected; }
  // Whether key tile t is one run of rows within a page.
  EI_HOST_DEVICE bool is_run(int32_t t, int32_t page_rows) const {
    const int32_t j = t * kTileKeys;
    return j >= n_selected && j + kTileKeys <= size &&
           own_row(j) % page_rows + kTileKeys <= page_rows;
  }
};

// n_blocks < 0: all keys (kAllBlocks).
EI_HOST_DEVICE inline KeyList key_list(const QueryTile& tile, int32_t n_blocks, int32_t block) {
  KeyList list;
  list.n_selected = n_blocks < 0 ? 0 : n_blocks * block;
  list.own_start = n_blocks < 0 ? 0 : tile.segment_start;
  list.first = tile.first;
  list.size = list.n_selected + tile.end - list.own_start;
  return list;
}

// How many parts the rows of a cache are cut into so that decode attention fills the GPU: as many
// as n_resident thread blocks for all lists, but no part under kMinSplitRows rows.
inline constexpr int64_t kMinSplitRows = 256;
inline constexpr int64_t kMaxSplits = 128;

inline int64_t decode_splits(int64_t n_lists, int64_t rows_bound, int64_t n_resident) {
  const int64_t wanted = std::max<int64_t>(1, n_resident / std::max<int64_t>(1, n_lists));
  const int64_t useful = std::max<int64_t>(1, (rows_bound + kMinSplitRows - 1) / kMinSplitRows);
  return std::min({wanted, useful, kMaxSplits});
}

}  // namespace ei::cuda
