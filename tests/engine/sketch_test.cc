#include "ei/engine/sketch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/files.h"
#include "tests/support/small_engine.h"

namespace ei {
namespace {

namespace fs = std::filesystem;

std::vector<float> values_of(const Sketch& sketch) {
  std::vector<float> all;
  for (const int layer : {0, 1}) {
    const SketchBasis basis = sketch.layer(layer);
    all.insert(all.end(), basis.directions.begin(), basis.directions.end());
    all.insert(all.end(), basis.mean.begin(), basis.mean.end());
  }
  return all;
}

std::vector<fs::path> files_in(const fs::path& dir) {
  std::vector<fs::path> files;
  if (fs::is_directory(dir))
    for (const auto& entry : fs::directory_iterator(dir)) files.push_back(entry.path());
  return files;
}

class SketchTest : public testing::Test {
 protected:
  SketchTest() { setenv("XDG_CACHE_HOME", dir_.path().c_str(), 1); }
  ~SketchTest() override { unsetenv("XDG_CACHE_HOME"); }
  fs::path cache() const { return dir_ / "entropyinfer"; }

  test::TempDir dir_;
  test::SmallEngine small_;
};

TEST_F(SketchTest, IsKeptAndMadeAgainWhereItIsDamaged) {
  const std::vector<float> want = values_of(make_sketch(small_.engine.impl()));
  ASSERT_EQ(files_in(cache()).size(), 1u);
  const fs::path file = files_in(cache())[0];
  const auto written = fs::last_write_time(file);
  EXPECT_EQ(values_of(make_sketch(small_.engine.impl())), want);
  EXPECT_EQ(fs::last_write_time(file), written);
  const std::string good = [&] {
    std::ifstream in(file, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  std::string flipped = good;
  flipped[good.size() / 2] ^= 1;
  for (const std::string& bad :
       {std::string(), good.substr(0, good.size() - 1), good + "x", flipped}) {
    test::write_file(file, bad);
    EXPECT_EQ(values_of(make_sketch(small_.engine.impl())), want);
    EXPECT_EQ(fs::file_size(file), good.size());
  }
}

TEST_F(SketchTest, NoPlaceForItIsNoError) {
  test::write_file(cache(), "a file in the place of the folder");
  const std::vector<float> want = values_of(make_sketch(small_.engine.impl()));
  fs::remove(cache());
  EXPECT_EQ(values_of(make_sketch(small_.engine.impl())), want);
}

TEST_F(SketchTest, OtherWeightsHaveOneOfTheirOwn) {
  const std::vector<float> first = values_of(make_sketch(small_.engine.impl()));
  Engine::Impl& e = small_.engine.impl();
  const ModelConfig config = e.model->config();
  e.model = std::make_unique<Model>(Model::random(*small_.backend, config, /*seed=*/2));
  EXPECT_NE(values_of(make_sketch(e)), first);
  EXPECT_EQ(files_in(cache()).size(), 2u);
}

// In the first layer a key goes by its token and its position alone: in a text of one token, again
// and again, those of a short text are every so many of one that fills the context.
TEST_F(SketchTest, KeysReachOverTheContext) {
  const Model& model = *small_.engine.impl().model;
  const int64_t d = model.config().head_dim, n_long = model.config().max_positions, n = 48;
  const auto keys = [&](int64_t n_tokens) {
    const std::vector<int32_t> text(static_cast<size_t>(n_tokens), 7);
    return read_keys(*small_.backend, model, text);
  };
  const std::vector<float> few = keys(n), all = keys(n_long);
  for (int64_t h = 0; h < model.config().n_kv_heads; ++h)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < d; ++c)  // angles in float are off by 1,024 * 2^-24
        ASSERT_NEAR(few[size_t((h * n + i) * d + c)],
                    all[size_t((h * n_long + i * n_long / n) * d + c)], 1e-3)
            << h << ' ' << i << ' ' << c;
}

// Keys that lie in few directions are told apart by these: what is left of others is small.
TEST_F(SketchTest, DirectionsArePrincipal) {
  constexpr int64_t kN = 200, kD = 32;
  const Sketch::Shape shape = {1, 1, kD};
  std::vector<float> keys(size_t(kN * kD), 0.01f);
  for (int64_t i = 0; i < kN; ++i) {
    keys[size_t(i * kD + 5)] = float(i % 7);
    keys[size_t(i * kD + 20)] = 3 + 0.1f * float(i % 11);
  }
  const std::vector<float> got = measure_sketch(shape, keys);
  EXPECT_NEAR(std::abs(got[5]), 1, 1e-3);        // the first
  EXPECT_NEAR(std::abs(got[kD + 20]), 1, 1e-3);  // the second
  const int64_t w = shape.n_directions();
  EXPECT_NEAR(std::abs(got[size_t(w * kD)]), 2.99, 0.05);  // the mean along the first
}

}  // namespace
}  // namespace ei
