#include "ei/cuda/attention_tiles.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace ei::cuda {
namespace {

struct Chunk {
  int64_t begin, n, segment;
};

// Every position of the chunk in one tile, of its own segment.
TEST(AttentionTiles, QueryTilesCoverTheChunkOnce) {
  for (const Chunk& c : {Chunk{0, 1, 512},
                         {0, 512, 512},
                         {512, 513, 512},
                         {100, 90, 64},
                         {63, 1, 64},
                         {65, 300, 100},
                         {0, 1000, 128},
                         {8192, 8192, 512}}) {
    const ChunkTiles tiles = chunk_tiles(c.begin, c.n, c.segment, 1);
    std::vector<int> seen(static_cast<size_t>(c.n), 0);
    for (int i = 0; i < tiles.n_tiles(); ++i) {
      const QueryTile tile = query_tile(tiles, i);
      EXPECT_EQ(tile.segment_start % c.segment, 0);
      for (int32_t position = tile.begin; position < tile.end; ++position) {
        ASSERT_GE(position, c.begin);
        ASSERT_LT(position, c.begin + c.n);
        ++seen[static_cast<size_t>(position - c.begin)];
        EXPECT_EQ(position / c.segment - c.begin / c.segment, tile.segment);
        EXPECT_GE(position - tile.first, 0);
        EXPECT_LT(position - tile.first, kTileQueries);
      }
    }
    for (const int count : seen) ASSERT_EQ(count, 1) << c.begin << " " << c.n << " " << c.segment;
  }
}

TEST(AttentionTiles, NoQueriesNoTiles) { EXPECT_EQ(chunk_tiles(512, 0, 512, 4).n_tiles(), 0); }

// Rows of a tile are as many heads as fit, and all heads have a tile.
TEST(AttentionTiles, HeadsShareTiles) {
  struct Case {
    int64_t segment, group;
    int head_rows, heads, head_tiles, least_of_the_upper_half;
  };
  for (const Case& c : {Case{32, 4, 32, 4, 1, 0},
                        {32, 3, 32, 3, 1, 0},
                        {32, 7, 32, 4, 2, 0},
                        {32, 1, 32, 1, 1, 0},
                        {64, 4, 64, 2, 2, 0},
                        {48, 4, 48, 2, 2, 0},
                        {96, 4, 96, 1, 4, 64},
                        {128, 4, 128, 1, 4, 64},
                        {512, 5, 128, 1, 5, 64}}) {
    const ChunkTiles tiles = chunk_tiles(1024, 512, c.segment, c.group);
    EXPECT_EQ(tiles.head_rows, c.head_rows) << c.segment << " " << c.group;
    EXPECT_EQ(tiles.heads, c.heads) << c.segment << " " << c.group;
    EXPECT_EQ(tiles.head_tiles, c.head_tiles) << c.segment << " " << c.group;
    EXPECT_LE(tiles.heads * tiles.head_rows, kTileQueries);
    EXPECT_EQ(tiles.least_row(0), 0);
    EXPECT_EQ(tiles.least_row(64), c.least_of_the_upper_half);
  }
}

// What row r of a tile may see, entry by entry of the list.
TEST(AttentionTiles, KeyListIsTheSelectionThenTheOwnSegment) {
  const ChunkTiles tiles = chunk_tiles(1024, 700, 512, 4);
  for (int i = 0; i < tiles.n_tiles(); ++i) {
    const QueryTile tile = query_tile(tiles, i);
    if (tile.begin >= tile.end) continue;
    for (const int32_t n_blocks : {-1, 0, 1, 37}) {
      const KeyList keys = key_list(tile, n_blocks, 8);
      EXPECT_EQ(keys.n_selected, n_blocks < 0 ? 0 : 8 * n_blocks);
      EXPECT_EQ(keys.own_row(keys.n_selected), n_blocks < 0 ? 0 : tile.segment_start);
      EXPECT_EQ(keys.own_row(keys.size - 1), tile.end - 1);
      for (int32_t position = tile.begin; position < tile.end; ++position) {
        const int32_t limit = keys.limit() + position - tile.first;
        EXPECT_EQ(keys.own_row(limit - 1), position);  // itself is the last key it sees
        EXPECT_LE(limit, keys.size);
      }
      EXPECT_EQ(keys.n_tiles(), (keys.size + 127) / 128);
    }
  }
}

TEST(AttentionTiles, RunsAreWholeTilesOfOnePage) {
  KeyList keys;
  keys.n_selected = 40;  // the first tile is gathered in part
  keys.own_start = 512;
  keys.first = 512 + 384;
  keys.size = 40 + 512;
  for (const int32_t page_rows : {8, 64, 128, 512}) {
    for (int32_t t = 0; t < keys.n_tiles(); ++t) {
      std::set<int32_t> pages;
      bool whole = true;
      for (int32_t j = 128 * t; j < 128 * (t + 1); ++j) {
        whole &= j >= keys.n_selected && j < keys.size;
        pages.insert(keys.own_row(j) / page_rows);
      }
      EXPECT_EQ(keys.is_run(t, page_rows), whole && pages.size() == 1) << page_rows << " " << t;
    }
  }
}

TEST(DecodeSplits, FillTheGpuWithoutTinyParts) {
  EXPECT_EQ(decode_splits(8, 131072, 264), 33);  // one long sequence: two blocks everywhere
  EXPECT_EQ(decode_splits(8, 1024, 264), 4);     // a compacted cache: no part under 256 rows
  EXPECT_EQ(decode_splits(8, 1, 264), 1);
  EXPECT_EQ(decode_splits(1024, 131072, 264), 1);  // a large batch fills it by itself
  EXPECT_EQ(decode_splits(1, 1 << 20, 264), kMaxSplits);
}

}  // namespace
}  // namespace ei::cuda
