#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/cli/model_argument.h"
#include "ei/engine/engine.h"

namespace ei::cli {

// Options that several subcommands share. Each class adds its flags to a subcommand and must stay
// where it is until the command line is parsed: the flags write into it.

// The flags of what computes, and in which numbers: --device, --threads, --cpu, --math, --kv-type
// and --weights.
void add_hardware(CLI::App& command, EngineOptions& options, const std::string& group);

void print_warning(const std::string& warning);
// At once and with exit code 1, as whoever hangs would be waited for.
[[noreturn]] void end_program(const std::string& why);

// Which checkpoint, and how it runs here.
class ModelOptions {
 public:
  explicit ModelOptions(CLI::App& command);
  ModelOptions(const ModelOptions&) = delete;

  const ModelArgument& model() const { return model_; }
  const Device& device() const { return options_.device; }
  // Shows how far it is where that takes long, and hands what the checkpoint has wrong to `warn`.
  // Once the ranks of --tp have ended, `on_end` is told why, by any thread.
  Engine load(const std::function<void(const std::string&)>& warn = print_warning,
              const std::function<void(const std::string&)>& on_end = end_program) const;

 private:
  ModelArgument model_;
  EngineOptions options_;
};

struct Policies {
  PrefillPolicy prefill;
  DecodePolicy decode;
};

// How the attention is spent: a preset and whatever is set beside it.
class PolicyOptions {
 public:
  // `device`, which says how prompts are read by default, is looked at once everything is parsed.
  // Without names there is no --prefill and --decode: the subcommand takes several of each.
  PolicyOptions(CLI::App& command, const Device& device, bool names = true);
  PolicyOptions(const PolicyOptions&) = delete;

  // Throws CLI::ValidationError when the settings do not fit each other.
  Policies policies() const { return policies(prefill(), decode_); }
  // The same settings beside other names than those of --prefill and --decode; throws for a name
  // that is not known as well.
  Policies policies(const std::string& prefill, const std::string& decode) const;
  // Sets what the flags set, and nothing else.
  void apply(Policies& policies) const;
  // Every setting that matters, by the name of its flag; of policies() with their names, or of
  // others.
  nlohmann::ordered_json describe() const;
  nlohmann::ordered_json describe(Policies policies) const;

 private:
  enum class Loop { kPrefill, kDecode };
  template <class T>
  using Field = T& (*)(Policies&);

  // Adds a flag for one field of Policies, whose help shows the default.
  template <class T>
  CLI::Option* number(Loop loop, const std::string& flag, Field<T> field, const std::string& help);
  template <class T>
  void choice(Loop loop, const std::string& flag, Field<T> field,
              std::vector<std::pair<std::string, T>> names, const std::string& help);
  void yes(Loop loop, const std::string& flag, Field<bool> field, const std::string& help);

  void add_prefill_settings();
  void add_decode_settings();

  struct Setting {
    Loop loop;
    std::string name;
    std::function<nlohmann::ordered_json(Policies&)> value;
  };

  std::string prefill() const;

  CLI::App& command_;
  const Device& device_;
  std::string prefill_;  // empty: the default
  std::string decode_ = "latent";
  std::string preset_ = "default";
  std::vector<std::function<void(Policies&)>> overrides_;  // of the preset, by explicit flags
  std::vector<Setting> settings_;
};

// How tokens are drawn: the checkpoint's defaults and whatever is set beside them.
class SamplingOptions {
 public:
  explicit SamplingOptions(CLI::App& command);
  SamplingOptions(const SamplingOptions&) = delete;

  // Without --seed, a new seed each time.
  SamplingParams params(const Engine& engine) const;

 private:
  std::optional<float> temperature_, top_p_, min_p_, repetition_penalty_, presence_penalty_,
      frequency_penalty_;
  std::optional<int32_t> top_k_;
  std::optional<uint64_t> seed_;
};

}  // namespace ei::cli
