#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace ei {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };

// Rotary position embedding as config.json describes it (`rope_scaling`, under Hugging Face's
// names).
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  double factor = 1;                       // linear, llama3, yarn
  int64_t original_positions = 0;          // the same: context length of the first training
  double low_freq_factor = 1;              // llama3
  double high_freq_factor = 4;             // llama3
  double beta_fast = 32;                   // yarn
  double beta_slow = 1;                    // yarn
  double mscale = 0;                       // yarn; 0: not given
  double mscale_all_dim = 0;               // yarn; 0: not given
  bool truncate = true;                    // yarn: the ramp starts and ends at whole channels
  std::optional<double> attention_factor;  // yarn
  std::vector<float> factors;  // [d / 2] what frequencies are divided by on top; or empty
  bool interleaved = false;    // pairs are neighbours: Rope::interleaved
};

struct RopeFrequencies {
  std::vector<float> inv_freq;  // [d / 2] radians per token
  float scale = 1;              // of cos and sin: YaRN's attention factor
};

// With f_k = theta^(-2k/d), k = 0 .. d/2 - 1:
//   default  f_k
//   linear   f_k / factor
//   llama3   f_k where the wavelength is short, f_k / factor where long, a linear blend between
//   yarn     f_k / factor * r_k + f_k (1 - r_k), r a ramp over the channels (YaRN,
//   arXiv:2309.00071)
// Computed in double, rounded once; the formulas are those of Hugging Face transformers.
RopeFrequencies rope_frequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace ei
