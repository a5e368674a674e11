#include "tests/support/backend_fixture.h"

#include "ei/cpu/backend.h"
#include "ei/cpu/targets.h"
#include "ei/cuda/backend.h"
#include "ei/ops/weight_blocks.h"
#include "tests/support/numbers.h"

namespace ei::test {
namespace {

// CUDA's rows are read in vectors of 16 bytes; float's may lie anywhere.
int64_t unit(const Backend& backend) { return backend.act_bytes() == 4 ? 1 : 8; }

}  // namespace

DeviceAct::DeviceAct(Backend& backend, const Matrix& values, int64_t units)
    : backend_(&backend),
      buffer_(backend, (units * unit(backend) + std::ssize(values.v)) * backend.act_bytes()),
      act_{static_cast<char*>(buffer_.data()) + units * unit(backend) * backend.act_bytes(),
           values.dim(0), values.dim(1), backend.act_bytes()} {
  const DType type = backend.act_bytes() == 4 ? DType::kF32 : DType::kBF16;
  std::vector<char> bytes(values.v.size() * static_cast<size_t>(backend.act_bytes()));
  for (size_t i = 0; i < values.v.size(); ++i)
    encode(values.v[i], type, bytes.data() + i * static_cast<size_t>(backend.act_bytes()));
  backend.copy_in(act_.data, bytes.data(), std::ssize(bytes));
}

Matrix DeviceAct::values() const {
  Matrix values({act_.rows, act_.cols});
  if (values.v.empty()) return values;
  const DType type = act_.elem_bytes == 4 ? DType::kF32 : DType::kBF16;
  const auto size = static_cast<size_t>(act_.elem_bytes);
  std::vector<char> bytes(values.v.size() * size);
  backend_->copy_out(bytes.data(), act_.data, std::ssize(bytes));
  for (size_t i = 0; i < values.v.size(); ++i) values.v[i] = decode(bytes.data() + i * size, type);
  return values;
}

HostWeight::HostWeight(const Matrix& wanted, DType dtype, int64_t misaligned_bytes)
    : format(format_of(dtype)), offset(misaligned_bytes), values(wanted) {
  const auto size = static_cast<size_t>(dtype_bytes(dtype));
  bytes.resize(static_cast<size_t>(offset) + values.v.size() * size);
  for (size_t i = 0; i < values.v.size(); ++i) {
    values.v[i] = round_to(dtype, values.v[i]);
    encode(values.v[i], dtype, bytes.data() + static_cast<size_t>(offset) + i * size);
  }
}

HostWeight::HostWeight(WeightFormat format, int64_t rows, int64_t cols, uint64_t seed,
                       int64_t misaligned_bytes)
    : format(format), offset(misaligned_bytes), values({rows, cols}) {
  using enum WeightFormat;
  const WeightBlock& block = block_of(format);
  std::mt19937_64 random(seed);
  bytes.resize(static_cast<size_t>(offset + rows * row_bytes(format, cols)));
  for (char& byte : bytes) byte = static_cast<char>(random());
  // Where a block has its float16 scale d, and how large it is for values around 1.
  const int64_t at = format == kQ2_K ? 80 : format == kQ3_K ? 108 : format == kQ6_K ? 208 : 0;
  const double d = format == kQ8_0 || format == kIQ4_NL ? 1.0 / 64
                   : format == kQ3_K || format == kQ2_K ? 1.0 / 16
                   : block.weights == 32                ? 1.0 / 4
                                                        : 1.0 / 512;
  const auto put = [&](char* to, double value) {
    encode(value * std::uniform_real_distribution<>(0.5, 1)(random), DType::kF16, to);
  };
  for (size_t i = static_cast<size_t>(offset); i < bytes.size();
       i += static_cast<size_t>(block.bytes)) {
    if (format == kFP8 || format == kINT8) {
      encode(format == kFP8 ? 1.0 / 64 : 1.0 / 70, DType::kF32, &bytes[i]);
      for (size_t k = 4; k < 36; ++k)  // e4m3 has two that are no numbers
        if (format == kFP8 && (bytes[i + k] & 127) == 127) bytes[i + k] = 0;
      continue;
    }
    put(&bytes[i] + at, d);
    if (format == kQ4_1 || format == kQ5_1) put(&bytes[i] + 2, -8 * d);
    if (format == kQ4_K || format == kQ5_K) put(&bytes[i] + 2, 8 * d);
    if (format == kQ2_K) put(&bytes[i] + 82, 1.5 * d);
  }
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t i = 0; i < rows; ++i) {
    dequantize(format, weight().row(i), cols, row.data());
    std::copy(row.begin(), row.end(), values[i].begin());
  }
}

namespace {
// What is rounded to bf16 for the tile unit, or for what stands in for it.
bool has_tiles(const std::string& backend) { return backend.ends_with("amx"); }
}  // namespace

std::vector<std::string> backend_names(bool tiles) {
  std::vector<std::string> names;
  for (const std::string& target : cpu::targets()) names.push_back("cpu_" + target);
  if (tiles && !has_tiles(names.front())) names.push_back("cpu_emulated_amx");
  for (const std::string& gpu : gpu_names()) {
    names.push_back(gpu);
    names.push_back("second_" + gpu);
  }
  return names;
}

std::string tiles_of_halves() {
  return has_tiles("cpu_" + cpu::targets().front()) ? "cpu_amx_f32" : "cpu_emulated_amx_f32";
}

std::vector<std::string> gpu_names() {
#ifdef EI_CUDA
  return {"cuda"};
#else
  return {};
#endif
}

std::vector<std::string> gpu_pair_names() {
  return gpu_names().empty() ? std::vector<std::string>() : std::vector<std::string>{"two_cuda"};
}

bool BackendTest::rounds() { return backend().act_bytes() != 4 || has_tiles(GetParam()); }

void BackendTest::SetUp() {
  if (GetParam().ends_with("cuda")) {
    const std::string test = testing::UnitTest::GetInstance()->current_test_info()->name();
    if (test.starts_with("ThreadsDoNot")) GTEST_SKIP() << "threads are the CPU's";
    if (!cuda_available()) GTEST_SKIP() << "this machine has no GPU that the kernels run on";
    const int device = GetParam() == "cuda" ? 0 : 1;
    if (device >= n_gpus()) GTEST_SKIP() << "this machine has one GPU";
    backend_ = make_cuda_backend(gpu_math(), nullptr, device);
    return;
  }
  const std::string target = GetParam().substr(4);
  cpu::use_target(target.substr(0, target.find("_f32")));
  backend_ = make_backend(2);
}

void BackendTest::TearDown() {
  backend_.reset();
  cpu::use_target("");
}

std::unique_ptr<Backend> BackendTest::make_backend(int n_threads) {
  return make_cpu_backend(n_threads, GetParam().ends_with("_f32") ? Math::kF32 : Math::kBF16);
}

DeviceAct BackendTest::poisoned(int64_t rows, int64_t cols, int64_t offset) {
  return act(Matrix({rows, cols}, std::numeric_limits<double>::quiet_NaN()), offset);
}

}  // namespace ei::test
