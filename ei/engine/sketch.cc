#include "ei/engine/sketch.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/engine/sketch_text.h"
#include "ei/io/checksum.h"
#include "ei/io/new_file.h"

namespace ei {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kTextTokens = 1024;
constexpr int64_t kKeyTokens = 16;  // by whose keys weights are told apart

// The text as the model's tokens; for a model without a tokenizer, other tokens.
std::vector<int32_t> text_of(const Engine::Impl& engine) {
  const ModelConfig& config = engine.model->config();
  std::vector<int32_t> tokens;
  if (engine.longest_token > 0) tokens = engine.tokenizer->encode(kSketchText, /*add_bos=*/true);
  const bool fits = std::ranges::all_of(tokens, [&](int32_t t) { return t < config.vocab_size; });
  if (tokens.empty() || !fits) tokens = any_tokens(config, kTextTokens);
  tokens.resize(
      static_cast<size_t>(std::min({std::ssize(tokens), kTextTokens, config.max_positions})));
  return tokens;
}

// Empty where there is no place for it.
fs::path cache_directory() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return fs::path(cache) / "entropyinfer";
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? fs::path(home) / ".cache/entropyinfer" : fs::path();
}

uint64_t checksum_of(std::span<const float> values) { return checksum(std::as_bytes(values)); }

// A file of `values`, behind their checksum.
std::vector<float> read_file(const fs::path& path, int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  uint64_t sum = 0;
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(&sum), sizeof sum);
  file.read(reinterpret_cast<char*>(values.data()), size * int64_t{sizeof(float)});
  if (!file || file.peek() != std::ifstream::traits_type::eof() || checksum_of(values) != sum)
    values.clear();
  return values;
}

// Or nothing, where it cannot be kept.
void write_file(const fs::path& path, std::span<const float> values) {
  try {
    fs::create_directories(path.parent_path());
    const uint64_t sum = checksum_of(values);
    NewFile file(path);
    file.write(std::as_bytes(std::span(&sum, 1)));
    file.write(std::as_bytes(values));
    file.commit(/*to_disk=*/false);
  } catch (const std::exception&) {
  }
}

}  // namespace

std::vector<int32_t> any_tokens(const ModelConfig& config, int64_t n) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(config.vocab_size));
  return tokens;
}

Sketch make_sketch(const Engine::Impl& engine) {
  Backend& backend = *engine.backend;
  const Sketch::Shape shape = sketch_shape(engine.model->config());
  const std::vector<int32_t> text = text_of(engine);
  const auto keys_of = [&](int64_t n) {
    return read_keys(backend, *engine.model,
                     std::span(text).first(static_cast<size_t>(std::min(n, std::ssize(text)))));
  };
  // Other weights have other keys.
  const fs::path directory = cache_directory();
  const fs::path path = directory / fmt::format("sketch-{:016x}", checksum_of(keys_of(kKeyTokens)) ^
                                                                      std::ssize(text));
  std::vector<float> values;
  if (!directory.empty()) values = read_file(path, shape.size());
  // Ranks that share the model have a file each, and read the text together.
  if (sum_of_all(backend.ranks(), values.empty() ? 1 : 0) > 0) {
    std::vector<float> keys = keys_of(kTextTokens);
    // Of damaged weights. Whoever reads a prompt is told so by its logits.
    for (float& key : keys)
      if (!std::isfinite(key)) key = 0;
    values = measure_sketch(shape, keys);
    if (!directory.empty()) write_file(path, values);
  }
  return {backend, shape, values};
}

}  // namespace ei
