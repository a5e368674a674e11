#include "ei/cpu/tiled_weight.h"

#include <hwy/cache_control.h>

#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/panels.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/tiled_weight.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Of a group: how many numbers ahead of those in use memory is read.
constexpr int64_t kAhead = 2048;

// out[i][j] (+)= x[i] . weight[j] + bias[j] for kN rows of x and the outputs of kGroups groups from
// `group` on: an output is a lane, x is the same for all of them, and every input is added in its
// turn. Weights are widened to floats by a shift, x is not rounded.
template <int kN, int kGroups>
void dot_groups(const MatMul& op, const MatMul::Part& part, int64_t group) {
  const hn::CappedTag<float, kAmxRows> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  using V = hn::Vec<decltype(d)>;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(d));
  constexpr int kVectors = static_cast<int>(TiledWeight::kOutputs / kLanes);  // of a group
  constexpr int kOfTile = kVectors / 2;
  const TiledWeight weight(part.weight);
  const View<float, 2> x = rows_of(op.x);

  V sum[kN][kGroups][kVectors];
  for (auto& of_row : sum)
    for (auto& of_group : of_row)
      for (V& s : of_group) s = hn::Zero(d);
  // Pairs of inputs, of which the last may lack one.
  const auto add = [&](int64_t tile, int64_t pair, const float* const* from) HWY_ATTR {
    HWY_UNROLL(4)
    for (int g = 0; g < kGroups; ++g) {
      const uint16_t* at = weight.at(group + g, tile) + pair * kAmxDepth;
      HWY_UNROLL(32)
      for (int v = 0; v < kVectors; ++v) {
        const uint16_t* numbers = at + v / kOfTile * kAmxTile + v % kOfTile * 2 * kLanes;
        hwy::Prefetch(numbers + kAhead);
        const auto both = hn::LoadU(du, reinterpret_cast<const uint32_t*>(numbers));
        const V first = hn::BitCast(d, hn::ShiftLeft<16>(both));
        const V second = hn::BitCast(d, hn::And(both, hn::Set(du, 0xFFFF0000u)));
        HWY_UNROLL(8)
        for (int i = 0; i < kN; ++i) {
          sum[i][g][v] = hn::MulAdd(first, hn::Set(d, from[i][0]), sum[i][g][v]);
          sum[i][g][v] = hn::MulAdd(second, hn::Set(d, from[i][1]), sum[i][g][v]);
        }
      }
    }
  };
  const float* rows[kN];
  for (int64_t k = 0; k + 2 <= op.x.cols; k += 2) {
    HWY_UNROLL(8)
    for (int i = 0; i < kN; ++i) rows[i] = x[i].data + k;
    add(k / kAmxDepth, k % kAmxDepth / 2, rows);
  }
  if (op.x.cols % 2 != 0) {
    float last[kN][2];
    for (int i = 0; i < kN; ++i) {
      last[i][0] = x[i][op.x.cols - 1];
      last[i][1] = 0;
      rows[i] = last[i];
    }
    add((op.x.cols - 1) / kAmxDepth, (op.x.cols - 1) % kAmxDepth / 2, rows);
  }

  const View<float, 2> out = rows_of(part.out);
  for (int i = 0; i < kN; ++i)
    for (int g = 0; g < kGroups; ++g) {
      float sums[TiledWeight::kOutputs];
      for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[i][g][v], d, sums + v * kLanes);
      const int64_t begin = (group + g) * TiledWeight::kOutputs;
      const int64_t n = std::min(TiledWeight::kOutputs, weight.rows - begin);
      for (int64_t j = 0; j < n; ++j) {
        const float total = sums[j] + (part.bias.data != nullptr ? part.bias[begin + j] : 0);
        float& to = out[i][begin + j];
        to = part.accumulate ? to + total : total;
      }
    }
}

template <int kN>
void dot_groups(const MatMul& op, const MatMul::Part& part, int64_t group, int64_t last) {
  constexpr int kGroups = kN <= 2 ? 2 : 1;  // the sums stay in registers
  for (; group + kGroups <= last; group += kGroups) dot_groups<kN, kGroups>(op, part, group);
  for (; group < last; ++group) dot_groups<kN, 1>(op, part, group);
}

void dot_tiled(const MatMul& op, const MatMul::Part& part, int64_t begin, int64_t end) {
  using Dot = void(const MatMul&, const MatMul::Part&, int64_t, int64_t);
  constexpr Dot* kDots[] = {dot_groups<1>, dot_groups<2>, dot_groups<3>, dot_groups<4>,
                            dot_groups<5>, dot_groups<6>, dot_groups<7>, dot_groups<8>};
  kDots[op.x.rows - 1](op, part, begin / TiledWeight::kOutputs,
                       (end + TiledWeight::kOutputs - 1) / TiledWeight::kOutputs);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(dot_tiled);

// Weights are cut from pieces of this size: of a piece for each the last huge page would be for
// nothing.
constexpr int64_t kPiece = int64_t{64} << 20;

}  // namespace

// Matrices that a tile unit multiplies by are copied into its order, as long as the copies leave
// half of the memory that there was for everything else.
Weight CpuBackend::place_factor(const Weight& host) {
  if (tiles_ == Tiles::kNone || math_ != Math::kBF16 || host.format != WeightFormat::kBF16)
    return place(host);
  const TiledWeight layout(host);
  if (most_tiled_bytes_ < 0) most_tiled_bytes_ = available_bytes() / 2;
  if (layout.bytes() > most_tiled_bytes_) return place(host);
  most_tiled_bytes_ -= layout.bytes();
  if (layout.bytes() > piece_left_) {
    piece_left_ = std::max(kPiece, layout.bytes());
    placed_.emplace_back(*this, piece_left_);
    piece_ = static_cast<char*>(placed_.back().data());
  }
  auto* const numbers = reinterpret_cast<uint16_t*>(piece_);
  Weight tiled = host;
  tiled.data = numbers;
  tiled.tiled = true;
  piece_ += layout.bytes();
  piece_left_ -= layout.bytes();
  pack(host, numbers);
  return tiled;
}

void CpuBackend::run_tiled_dot(const MatMul& op, int64_t step) {
  const Panels panels = {op, step};
  parallel_for(n_threads_, panels.size(), [&](int64_t i) {
    const auto& [part, begin, end] = panels[i];
    HWY_DYNAMIC_DISPATCH(dot_tiled)(op, part, begin, end);
  });
}

}  // namespace ei::cpu
#endif
