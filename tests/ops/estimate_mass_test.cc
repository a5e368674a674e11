#include "ei/ops/estimate_mass.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <span>

#include "ei/base/error.h"
#include "ei/cpu/backend.h"
#include "ei/cpu/targets.h"
#include "tests/support/device_kv.h"
#include "tests/support/numbers.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(EstimateMassTest);

struct MassCase {
  int64_t n, begin, segment, block, kv_heads, group, d, w, stride;
};
// n is whole segments. Strips and groups of queries that are not full, blocks of odd sizes, more
// directions than one run of 16-bit sums takes, more columns than a tile, and than shared memory
// has room for.
const MassCase kCases[] = {{8, 0, 8, 8, 1, 1, 16, 4, 2},      {16, 8, 8, 4, 2, 3, 16, 8, 4},
                           {64, 64, 32, 16, 1, 3, 64, 24, 8}, {40, 80, 40, 8, 2, 1, 32, 12, 8},
                           {72, 36, 12, 3, 1, 2, 40, 28, 1},  {128, 256, 64, 8, 2, 1, 64, 52, 8},
                           {96, 4800, 96, 2, 1, 1, 12, 8, 2}, {256, 384, 128, 128, 1, 4, 24, 8, 8},
                           {64, 12864, 64, 2, 1, 8, 12, 8, 2}};

struct Shares {
  Array<double, 3> mass;  // [n_kv_heads, n_segments, past blocks]
  Array<double, 2> own;
  Array<double, 2> entropy;
};

struct Inputs {
  Matrix q;                  // [n, heads * d]
  std::vector<Matrix> keys;  // of every KV head [begin + n, d]
  std::vector<Matrix> directions;
  std::vector<Vector> mean;
  double scale;
};

// What the op's header says, in double and without rounding anything. For every segment, each query
// head of `heads_of` gives distributions over all blocks up to the segment's end.
using Distributions = std::function<std::vector<Vector>(const Inputs&, const MassCase&, int64_t h,
                                                        int64_t head, int64_t begin)>;

Vector softmax(Vector x) {
  const double top = *std::max_element(x.v.begin(), x.v.end());
  double sum = 0;
  for (double& v : x.v) sum += v = std::exp(v - top);
  for (double& v : x.v) v /= sum;
  return x;
}

double dot(const double* a, const double* b, int64_t n) {
  return std::inner_product(a, a + n, b, 0.0);
}

// Logits are cut down to whole multiples of a step, if it is not 0.
std::vector<Vector> by_sketch_in_steps(double step, const Inputs& in, const MassCase& c, int64_t h,
                                       int64_t head, int64_t begin) {
  const int64_t n_blocks = (begin + c.segment) / c.block;
  const Matrix& u = in.directions[size_t(h)];
  Matrix keys({begin + c.segment, c.w});
  for (int64_t j = 0; j < keys.dim(0); ++j)
    for (int64_t r = 0; r < c.w; ++r)
      keys[j][r] = dot(u[r].data, in.keys[size_t(h)][j].data, c.d) - in.mean[size_t(h)][r];
  std::vector<Vector> all;
  const auto query = [&](int64_t i) { return in.q[begin - c.begin + i].data + head * c.d; };
  const auto square = [&](int64_t i) { return dot(query(i), query(i), c.d); };
  // Of every two queries the longer one, if its square is a fifth more than the other's, else the
  // second of odd heads; eight of them make a group.
  for (int64_t first = 0; first < c.segment; first += 16) {
    Vector highest({n_blocks}, -INFINITY);
    for (int64_t pair = first; pair < std::min(first + 16, c.segment); pair += 2) {
      const double more = pair + 1 < c.segment ? square(pair + 1) / square(pair) : 0;
      const int64_t i = pair + (more > 1.2 || (more >= 1 / 1.2 && head % c.group % 2 == 1));
      Vector q({c.w});
      for (int64_t r = 0; r < c.w; ++r) q[r] = dot(u[r].data, query(i), c.d);
      Vector logit({n_blocks}, -INFINITY);
      for (int64_t j = 0; j <= begin + i; ++j) {
        double x = dot(q.v.data(), keys[j].data, c.w);
        if (step > 0) x = std::floor(x / step) * step;
        logit[j / c.block] = std::max(logit[j / c.block], in.scale * x);
      }
      const double top = *std::max_element(logit.v.begin(), logit.v.end());
      for (int64_t b = 0; b < n_blocks; ++b) highest[b] = std::max(highest[b], logit[b] - top);
    }
    all.push_back(softmax(highest));
  }
  return all;
}

std::vector<Vector> by_sketch(const Inputs& in, const MassCase& c, int64_t h, int64_t head,
                              int64_t begin) {
  return by_sketch_in_steps(0, in, c, h, head, begin);
}

// Of projections that are whole numbers of steps: a product may take 16 bits, of which every 12
// numbers take 15 and a sign.
std::vector<Vector> by_whole_sketch(const Inputs& in, const MassCase& c, int64_t h, int64_t head,
                                    int64_t begin) {
  const int64_t parts = 2 * ((c.w + 23) / 24);
  return by_sketch_in_steps(std::exp2(std::ceil(std::log2(parts))), in, c, h, head, begin);
}

std::vector<Vector> by_antidiagonals(const Inputs& in, const MassCase& c, int64_t h, int64_t head,
                                     int64_t begin) {
  const int64_t t = c.stride;
  std::vector<Vector> all;
  for (int64_t r = begin / t; r < (begin + c.segment) / t; ++r) {
    Vector z({r + 1});
    for (int64_t col = 0; col <= r; ++col)
      for (int64_t u = 0; u < t; ++u)
        z[col] += in.scale / double(t) *
                  dot(in.q[r * t + t - 1 - u - c.begin].data + head * c.d,
                      in.keys[size_t(h)][col * t + u].data, c.d);
    const Vector p = softmax(z);
    Vector of_blocks({(begin + c.segment) / c.block});
    for (int64_t col = 0; col <= r; ++col) of_blocks[col * t / c.block] += p[col];
    all.push_back(of_blocks);
  }
  return all;
}

Shares expected(const Inputs& in, const MassCase& c, const Distributions& distributions) {
  const int64_t n_segments = c.n / c.segment;
  const int64_t width = (c.begin + c.n - c.segment) / c.block;
  Shares want{Array<double, 3>({c.kv_heads, n_segments, width}),
              Array<double, 2>({c.kv_heads, n_segments}),
              Array<double, 2>({c.kv_heads, n_segments})};
  for (int64_t h = 0; h < c.kv_heads; ++h)
    for (int64_t s = 0; s < n_segments; ++s) {
      const int64_t begin = c.begin + s * c.segment, past = begin / c.block;
      for (int64_t g = 0; g < c.group; ++g) {
        const auto all = distributions(in, c, h, h * c.group + g, begin);
        for (const Vector& p : all)
          for (int64_t b = 0; b < p.dim(0); ++b)
            (b < past ? want.mass[h][s][b] : want.own[h][s]) +=
                p[b] / double(std::ssize(all) * c.group);
      }
      const auto add = [&](double p) { want.entropy[h][s] -= p > 0 ? p * std::log(p) : 0; };
      for (int64_t b = 0; b < past; ++b) add(want.mass[h][s][b]);
      add(want.own[h][s]);
    }
  return want;
}

std::vector<Vector> by_mean_keys(const Inputs& in, const MassCase& c, int64_t h, int64_t head,
                                 int64_t begin) {
  // All heads of the group in one sum: the same for each of them.
  const int64_t n_blocks = (begin + c.segment) / c.block;
  Vector sums({n_blocks});
  for (int64_t g = 0; g < c.group; ++g)
    for (int64_t i = begin; i < begin + c.segment; ++i) {
      Vector x({n_blocks});
      for (int64_t j = 0; j < n_blocks * c.block; ++j)
        x[j / c.block] += in.scale / double(c.block) *
                          dot(in.q[i - c.begin].data + (head / c.group * c.group + g) * c.d,
                              in.keys[size_t(h)][j].data, c.d);
      const double top = *std::max_element(x.v.begin(), x.v.end());
      for (int64_t b = 0; b < n_blocks; ++b) sums[b] += std::exp(x[b] - top);
    }
  const double total = std::accumulate(sums.v.begin(), sums.v.end(), 0.0);
  for (double& x : sums.v) x /= total;
  return {sums};
}

// Keys and queries of this size along any few directions; queries that all backends hold alike.
Inputs normal_inputs(const MassCase& c, DType dtype, double size) {
  const double scale = 1 / std::sqrt(double(c.d));
  Inputs in{normal<2>({c.n, c.kv_heads * c.group * c.d}, 1, size), {}, {}, {}, scale};
  round_rows(in.q, DType::kBF16);
  for (int64_t h = 0; h < c.kv_heads; ++h) {
    in.keys.push_back(normal<2>({c.begin + c.n, c.d}, 2 + uint64_t(h), size, 0.3));
    round_rows(in.keys.back(), dtype);
    in.directions.push_back(normal<2>({c.w, c.d}, 50 + uint64_t(h), 1 / std::sqrt(double(c.d))));
    in.mean.push_back(normal<1>({c.w}, 90 + uint64_t(h), 0.1));
  }
  return in;
}

// Projections that are whole numbers of at most 63 steps, which rounding leaves alone: the
// directions are axes, every block has a key with 63 and no query too much in all.
Inputs whole_inputs(const MassCase& c) {
  std::mt19937_64 random(3);
  Inputs in{Matrix({c.n, c.kv_heads * c.group * c.d}), {}, {}, {}, 1.0 / 4096};
  const auto uniform = [&](int most) { return double(int(random() % (2 * most + 1)) - most); };
  // Every third query is much longer than others, in axes that are no directions.
  for (int64_t i = 0; i < in.q.dim(0); ++i)
    for (int64_t at = 0; at < in.q.dim(1); ++at)
      in.q[i][at] = uniform(i % 3 == 0 && at % c.d < c.d - c.w ? 120 : 30);
  for (int64_t h = 0; h < c.kv_heads; ++h) {
    Matrix u({c.w, c.d}), keys({c.begin + c.n, c.d});
    Vector mean({c.w});
    for (int64_t r = 0; r < c.w; ++r) u[r][c.d - 1 - r] = 1, mean[r] = uniform(9);
    for (int64_t j = 0; j < keys.dim(0); ++j)
      for (int64_t at = 0; at < c.d; ++at) {
        const int64_t r = c.d - 1 - at;
        const bool most = r == 0 && j % c.block == 0;
        keys[j][at] = (most ? 63 : uniform(62)) + (r < c.w ? mean[r] : 0);
      }
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t g = 0; g < c.group; ++g) in.q[i][(h * c.group + g) * c.d + c.d - 1] = 127;
    in.keys.push_back(keys);
    in.directions.push_back(u);
    in.mean.push_back(mean);
  }
  return in;
}

class Device {
 public:
  Device(Backend& backend, const Inputs& in, const MassCase& c, DType dtype)
      : c_(c), q_(backend, in.q, 1), cache_(make(backend, in, c, dtype)) {
    std::vector<float> directions, mean;
    for (const Matrix& u : in.directions)
      directions.insert(directions.end(), u.v.begin(), u.v.end());
    for (const Vector& m : in.mean) mean.insert(mean.end(), m.v.begin(), m.v.end());
    directions_ = DeviceArray<float, 1>(backend, directions);
    mean_ = DeviceArray<float, 1>(backend, mean);
    scale_ = float(in.scale);
  }
  // Of segments [first, first + n) of the chunk, as a chunk of their own.
  EstimateMass op(Estimate estimate, int64_t first, int64_t n, const View<float, 3>& mass,
                  const View<float, 2>& own, const View<float, 3>& entropy) const {
    return {.estimate = estimate,
            .q = q_.act().slice(first * c_.segment, n * c_.segment),
            .begin = c_.begin + first * c_.segment,
            .segment = c_.segment,
            .block = c_.block,
            .scale = scale_,
            .stride = c_.stride,
            .basis = {.directions = {directions_.view().data, {c_.kv_heads, c_.w, c_.d}},
                      .mean = {mean_.view().data, {c_.kv_heads, c_.w}}},
            .kv = cache_.layer(),
            .mass = mass,
            .own = own,
            .entropy = entropy,
            .layer = 1};
  }

 private:
  static DeviceKv make(Backend& backend, const Inputs& in, const MassCase& c, DType dtype) {
    std::vector<HostKv> heads;
    for (const Matrix& keys : in.keys) heads.push_back({keys, keys});
    return {backend, {dtype, c.d, 2 * c.segment, c.begin + c.n}, heads};
  }
  MassCase c_;
  DeviceAct q_;
  DeviceKv cache_;
  DeviceArray<float, 1> directions_, mean_;
  float scale_;
};

double distance(const Array<float, 3>& mass, const Array<float, 2>& own, const Shares& want,
                const MassCase& c) {
  double most = 0;
  for (int64_t h = 0; h < c.kv_heads; ++h)
    for (int64_t s = 0; s < c.n / c.segment; ++s) {
      double sum = std::abs(double(own[h][s]) - want.own[h][s]);
      for (int64_t b = 0; b < (c.begin + s * c.segment) / c.block; ++b)
        sum += std::abs(double(mass[h][s][b]) - want.mass[h][s][b]);
      most = std::isnan(sum) ? INFINITY : std::max(most, sum);
    }
  return most;
}

TEST_P(EstimateMassTest, MatchesTheRules) {
  struct Rule {
    const char* name;
    Estimate estimate;
    Distributions distributions;
    bool whole;
    double most;  // of the differences of a segment's shares, added up
  };
  // Exponents of logits of a few tens are off by their last bits, 1e-5. Rounded to 8 bits, normal
  // keys and queries have shares that are off by a few hundredths.
  for (const Rule& rule :
       {Rule{"sketch of whole numbers", Estimate::kSketch, by_whole_sketch, true, 1e-4},
        {"sketch", Estimate::kSketch, by_sketch, false, 0.06},
        {"antidiagonals", Estimate::kAntidiagonals, by_antidiagonals, false, 1e-4},
        {"mean keys", Estimate::kMeanKeys, by_mean_keys, false, 1e-4}})
    for (const MassCase& c : kCases)
      for (const DType dtype : kv_types(c.d)) {
        if (rule.whole && dtype != DType::kF32) continue;
        SCOPED_TRACE(testing::Message()
                     << rule.name << ", " << c.n << " from " << c.begin << ", segments of "
                     << c.segment << ", blocks of " << c.block << ", " << dtype_name(dtype));
        const Inputs in = rule.whole ? whole_inputs(c) : normal_inputs(c, dtype, 1.5);
        const Device device(backend(), in, c, dtype);
        const int64_t n_segments = c.n / c.segment;
        const int64_t first = c.begin / c.segment, past = (c.begin + c.n - c.segment) / c.block;
        const auto mass = poisoned_array<float, 3>({c.kv_heads, n_segments, past + 3});
        const auto own = poisoned_array<float, 2>({c.kv_heads, n_segments});
        const auto entropy = poisoned_array<float, 3>({first + n_segments + 1, 3, c.kv_heads});
        backend().run(
            device.op(rule.estimate, 0, n_segments, mass.view(), own.view(), entropy.view()));
        const Shares want = expected(in, c, rule.distributions);
        EXPECT_LE(distance(download(mass), download(own), want, c), rule.most);
        const auto got = download(entropy);
        for (int64_t h = 0; h < c.kv_heads; ++h)
          for (int64_t s = 0; s < n_segments; ++s)
            EXPECT_NEAR(got[first + s][1][h], want.entropy[h][s],
                        rule.most * (1 + std::log(double(past + 1))));
        const auto n_written = std::ranges::count_if(got.v, [](float e) { return e == e; });
        EXPECT_EQ(n_written, n_segments * c.kv_heads);  // nothing of other segments and layers
      }
}

TEST_P(EstimateMassTest, ThreadsAndChunksDoNotChangeABit) {
  const MassCase c = {256, 512, 32, 16, 2, 3, 64, 24, 8};
  const Inputs in = normal_inputs(c, DType::kBF16, 1.5);
  for (const Estimate estimate :
       {Estimate::kSketch, Estimate::kAntidiagonals, Estimate::kMeanKeys}) {
    std::vector<float> want;
    for (const auto& [n_threads, n_at_once] :
         {std::pair{1, 8}, {2, 8}, {5, 8}, {1, 1}, {2, 3}, {3, 5}}) {
      const auto backend = make_backend(n_threads);
      const Device device(*backend, in, c, DType::kBF16);
      const int64_t past = (c.begin + c.n) / c.block;
      const DeviceArray<float, 3> entropy(*backend, {c.begin / c.segment + 8, 2, 2});
      std::vector<float> got;
      for (int64_t s = 0; s < 8; s += n_at_once) {
        const int64_t n = std::min<int64_t>(n_at_once, 8 - s);
        const DeviceArray<float, 3> mass(*backend, {2, n, past});
        const DeviceArray<float, 2> own(*backend, {2, n});
        backend->run(device.op(estimate, s, n, mass.view(), own.view(), entropy.view()));
        const std::vector<float> shares = mass.to_host(*backend), owns = own.to_host(*backend);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t h = 0; h < 2; ++h) {
            const float* const row = shares.data() + (h * n + i) * past;
            got.insert(got.end(), row, row + (c.begin + (s + i) * c.segment) / c.block);
            got.push_back(owns[size_t(h * n + i)]);
          }
      }
      if (want.empty()) want = got;
      EXPECT_EQ(got, want) << n_threads << " threads, " << n_at_once << " segments at a time";
    }
  }
}

// Products of sketches are whole numbers, so that it makes no difference who multiplies. More or
// fewer blocks than the unit is ahead by, directions that fill its registers or do not fit them.
TEST(EstimateMassTiles, ChangeNoBit) {
  const std::vector<std::string> names = cpu::targets();
  const std::string without = names.front() == "amx" ? names[1] : names.front();
  for (const int64_t w : {4, 24, 60, 64, 68})
    for (const int64_t past : {1, 2, 3, 4, 5, 9, 30}) {
      const MassCase c = {48, past * 16, 16, 16, 2, 3, 72, w, 8};
      const Inputs in = normal_inputs(c, DType::kBF16, 2);
      std::vector<std::vector<float>> got;
      for (const std::string& name : {without, names.front(), std::string("emulated_amx")}) {
        cpu::use_target(name);
        const auto backend = make_cpu_backend(1);
        const Device device(*backend, in, c, DType::kBF16);
        const DeviceArray<float, 3> mass(*backend, {2, 3, past + 2});
        const DeviceArray<float, 2> own(*backend, {2, 3});
        const DeviceArray<float, 3> entropy(*backend, {past + 3, 2, 2});
        backend->run(device.op(Estimate::kSketch, 0, 3, mass.view(), own.view(), entropy.view()));
        std::vector<float>& all = got.emplace_back();
        for (int64_t h = 0; h < 2; ++h)
          for (int64_t s = 0; s < 3; ++s) {
            const float* const row = mass.view()[h][s].data;
            all.insert(all.end(), row, row + past + s);
            all.push_back(own.view()[h][s]);
          }
        EXPECT_EQ(got.back(), got.front()) << name << ", w " << w << ", " << past << " blocks";
      }
    }
  cpu::use_target("");
}

using EstimateMassOnGpu = BackendTest;
EI_GPU_TEST(EstimateMassOnGpu);

// Both round the same projections, but for the few that lie between two steps, and so keep the same
// blocks, but for those that are just enough.
TEST_P(EstimateMassOnGpu, KeepsTheBlocksOfTheCpu) {
  const MassCase c = {512, 2048, 32, 16, 2, 4, 128, 48, 8};
  const Inputs in = normal_inputs(c, DType::kBF16, 1.5);
  const int64_t n_segments = c.n / c.segment, past = (c.begin + c.n) / c.block;
  const auto cpu = make_cpu_backend(1);
  for (const Estimate estimate :
       {Estimate::kSketch, Estimate::kAntidiagonals, Estimate::kMeanKeys}) {
    std::vector<float> shares[2];
    std::vector<int32_t> counts[2], blocks[2];
    for (const int i : {0, 1}) {
      Backend& on = i == 0 ? *cpu : backend();
      const Device device(on, in, c, DType::kBF16);
      const DeviceArray<float, 3> mass(on, {c.kv_heads, n_segments, past});
      const DeviceArray<float, 2> own(on, {c.kv_heads, n_segments});
      const DeviceArray<float, 3> entropy(on, {c.begin / c.segment + n_segments, 2, c.kv_heads});
      on.run(device.op(estimate, 0, n_segments, mass.view(), own.view(), entropy.view()));
      const DeviceArray<int32_t, 2> count(on, {c.kv_heads, n_segments});
      const DeviceArray<int32_t, 3> index(on, {c.kv_heads, n_segments, past});
      on.run(SelectMass{.mass = mass.view(),
                        .own = own.view(),
                        .first_segment = c.begin / c.segment,
                        .segment = c.segment,
                        .block = c.block,
                        .total = 0.86f,
                        .by_entropy = estimate == Estimate::kSketch,
                        .sink = 16,
                        .local = 128,
                        .out = {count.view(), index.view()}});
      shares[i] = mass.to_host(on);
      counts[i] = count.to_host(on);
      blocks[i] = index.to_host(on);
    }
    size_t n_kept = 0, n_other = 0;
    for (size_t row = 0; row < counts[0].size(); ++row) {
      const size_t n = size_t(c.begin / c.block) + row % size_t(n_segments) * 2;
      double distance = 0;
      for (size_t b = row * size_t(past); b < row * size_t(past) + n; ++b)
        distance += std::abs(double(shares[0][b]) - double(shares[1][b]));
      EXPECT_LE(distance, estimate == Estimate::kSketch ? 2e-3 : 1e-5) << row;
      const auto kept = [&](int i) {
        const auto begin = blocks[i].begin() + std::ptrdiff_t(row) * past;
        return std::span(begin, begin + counts[i][row]);
      };
      std::vector<int32_t> other;
      std::ranges::set_symmetric_difference(kept(0), kept(1), std::back_inserter(other));
      n_kept += kept(0).size();
      n_other += other.size();
    }
    EXPECT_GT(n_kept, counts[0].size() * 10);
    EXPECT_LE(double(n_other), 0.005 * double(n_kept)) << "estimate " << int(estimate);
  }
}

// More exponentials than are held at a time: all segments at once, and in parts.
TEST_P(EstimateMassOnGpu, WhatIsHeldAtATimeChangesNoBit) {
  const MassCase c = {512, 100000, 8, 1, 1, 16, 16, 4, 1};
  const Device device(backend(), normal_inputs(c, DType::kBF16, 1.5), c, DType::kBF16);
  const int64_t n_segments = c.n / c.segment, past = c.begin + c.n;
  const DeviceArray<float, 3> entropy(backend(), {past / c.segment, 2, 1});
  for (const Estimate estimate :
       {Estimate::kSketch, Estimate::kAntidiagonals, Estimate::kMeanKeys}) {
    std::vector<float> got[2];
    for (const int64_t at_once : {n_segments, n_segments / 2 - 1})
      for (int64_t s = 0; s < n_segments; s += at_once) {
        const int64_t n = std::min(at_once, n_segments - s);
        const DeviceArray<float, 3> mass(backend(), {1, n, past});
        const DeviceArray<float, 2> own(backend(), {1, n});
        backend().run(device.op(estimate, s, n, mass.view(), own.view(), entropy.view()));
        const std::vector<float> shares = mass.to_host(backend()), owns = own.to_host(backend());
        std::vector<float>& all = got[at_once == n_segments ? 0 : 1];
        for (int64_t i = 0; i < n; ++i) {
          const float* const row = shares.data() + i * past;
          all.insert(all.end(), row, row + c.begin + (s + i) * c.segment);
          all.push_back(owns[size_t(i)]);
        }
      }
    EXPECT_TRUE(got[0] == got[1]) << "estimate " << int(estimate);
    EXPECT_NEAR(std::accumulate(got[0].begin(), got[0].end(), 0.0), double(n_segments), 1e-3);
  }
}

TEST_P(EstimateMassTest, DenseSegmentsAreNotLookedAt) {
  const MassCase c = {64, 32, 16, 8, 1, 2, 16, 8, 8};
  const Device device(backend(), normal_inputs(c, DType::kF32, 1), c, DType::kF32);
  const auto mass = poisoned_array<float, 3>({1, 4, 10});
  const auto own = poisoned_array<float, 2>({1, 4});
  const auto entropy = poisoned_array<float, 3>({6, 2, 1});
  EstimateMass op = device.op(Estimate::kSketch, 0, 4, mass.view(), own.view(), entropy.view());
  op.q.rows -= 5;  // the last may be short
  op.dense_before = 3;
  op.dense_from = 5;
  backend().run(op);
  const auto shares = download(own);
  for (int64_t s = 0; s < 4; ++s) EXPECT_EQ(std::isfinite(shares[0][s]), s == 1 || s == 2) << s;
  EXPECT_EQ(download(entropy)[2][1][0], 0);
  op.dense_from = INT64_MAX;
  EXPECT_THROW(backend().run(op), Error);
}

// Damaged weights make numbers of any kind; who reads a prompt is told so later.
TEST_P(EstimateMassTest, WhatIsNotFiniteIsSurvived) {
  const MassCase c = {32, 32, 16, 8, 1, 1, 16, 8, 8};
  for (const double bad : {double(NAN), double(INFINITY), 1e38}) {
    Inputs in = normal_inputs(c, DType::kF32, 1);
    in.q[3][2] = in.keys[0][5][7] = bad;
    const Device device(backend(), in, c, DType::kF32);
    const auto mass = poisoned_array<float, 3>({1, 2, 6});
    const auto own = poisoned_array<float, 2>({1, 2});
    const auto entropy = poisoned_array<float, 3>({4, 2, 1});
    for (const Estimate e : {Estimate::kSketch, Estimate::kAntidiagonals, Estimate::kMeanKeys})
      backend().run(device.op(e, 0, 2, mass.view(), own.view(), entropy.view()));
  }
}

}  // namespace
}  // namespace ei::test
