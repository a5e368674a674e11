#include "apps/cli/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <type_traits>

#include "apps/cli/command.h"
#include "apps/cli/limits.h"
#include "apps/cli/progress.h"
#include "apps/cli/ranks.h"
#include "apps/cli/terminal.h"
#include "ei/engine/make_backend.h"
#include "ei/policy/named.h"

namespace ei::cli {
namespace {

constexpr const char* kModelGroup = "Model";
constexpr const char* kPolicyGroup = "Policy";
constexpr const char* kPrefillGroup =
    "Policy of reading the prompt (defaults of --prefill entropy)";
constexpr const char* kDecodeGroup = "Policy of writing the answer (defaults of --decode latent)";
constexpr const char* kSamplingGroup =
    "Sampling (default: as the checkpoint's generation_config.json says)";

std::string setting_name(const std::string& flag) {
  std::string name = flag.substr(2);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

template <class Policy>
std::vector<std::string> names(std::span<const Named<Policy>> named) {
  std::vector<std::string> all;
  for (const auto& [name, policy] : named) all.emplace_back(name);
  return all;
}

template <class Policy>
const Policy& known(const Policy* found, std::span<const Named<Policy>> named,
                    const std::string& name) {
  if (found == nullptr)
    throw CLI::ValidationError(
        fmt::format("policy {} is not known, expected {}", name, fmt::join(names(named), ", ")));
  return *found;
}

// Of flags that are not given: those of --prefill entropy and --decode latent.
const Policies& default_settings() {
  static const Policies policies = {PrefillPolicy::sketch(), DecodePolicy{}};
  return policies;
}

// A flag that takes one of a few names; what it stands for goes to `set`. `unset`: the name that
// holds without the flag, if any.
template <class T>
CLI::Option* add_choice(CLI::App& command, const std::string& flag,
                        const std::vector<std::pair<std::string, T>>& names,
                        const std::function<void(T)>& set, const std::string& help,
                        const std::string& unset = "") {
  std::vector<std::string> allowed;
  for (const auto& [name, value] : names) allowed.push_back(name);
  return command
      .add_option_function<std::string>(
          flag,
          [names, set](const std::string& given) {
            for (const auto& [name, value] : names)
              if (name == given) set(value);
          },
          help)
      ->check(CLI::IsMember(allowed))
      ->option_text(fmt::format("{}{}", fmt::join(allowed, "|"),
                                unset.empty() ? "" : fmt::format(" [{}]", unset)));
}

}  // namespace

void add_hardware(CLI::App& command, EngineOptions& options, const std::string& group) {
  add_choice<Device>(
      command, "--device",
      {{"auto", Device::kAuto}, {"cpu", Device::kCpu}, {"cuda", Device::kCuda}},
      [&options](Device value) { options.device = value; },
      "What computes; auto: a GPU if there is one that can be used", "auto")
      ->group(group);
  command.add_option("-t,--threads", options.threads, "CPU threads; 0: one a CPU")
      ->transform(count(0, 4096))
      ->option_text("N [0]")
      ->group(group);
  command
      .add_option("--pin", options.pin,
                  "Keep each of them on a CPU of its own: of these, in this order (0-3,8,16-30:2), "
                  "or auto: one of every core, then the cores' second ones")
      ->option_text("LIST|auto [not pinned]")
      ->group(group);
  add_choice<std::string>(
      command, "--cpu",
      {{"amx", "amx"},
       {"avx512", "avx512"},
       {"avx2", "avx2"},
       {"sse4", "sse4"},
       {"scalar", "scalar"}},
      [&options](const std::string& value) { options.cpu = value; },
      "Instructions of the CPU's kernels, at most (default: the best that it has)")
      ->group(group);
  add_choice<Math>(
      command, "--math", {{"bf16", Math::kBF16}, {"f32", Math::kF32}, {"fp8", Math::kFP8}},
      [&options](Math value) { options.math = value; },
      "What goes into products of more than 8 rows: bf16 where the processor has a unit for it; "
      "fp8, with a scale for each row, on a GPU",
      "bf16")
      ->group(group);
  add_choice<DType>(
      command, "--kv-type",
      {{"bf16", DType::kBF16}, {"f32", DType::kF32}, {"q8_0", DType::kQ8}, {"fp8", DType::kFP8}},
      [&options](DType value) { options.kv_type = value; },
      "How the KV cache stores its numbers; in half the memory q8_0, on the CPU, and fp8, on a GPU",
      "bf16")
      ->group(group);
  add_choice<WeightFormat>(
      command, "--weights",
      {{"bf16", WeightFormat::kBF16},
       {"fp8", WeightFormat::kFP8},
       {"q8_0", WeightFormat::kQ8_0},
       {"q4_k", WeightFormat::kQ4_K}},
      [&options](WeightFormat value) { options.weights = value; },
      "Convert the weights while loading, where that makes them smaller; bf16: always")
      ->group(group);
}

void print_warning(const std::string& warning) {
  fmt::print(stderr, "entropyinfer: warning: {}\n", warning);
}

void end_program(const std::string& why) {
  restore_terminal();
  fmt::print(stderr, "entropyinfer: {}\n", why);
  _exit(kExitError);
}

ModelOptions::ModelOptions(CLI::App& command) : model_(command) {
  model_.option()->required();
  add_hardware(command, options_, kModelGroup);
  command.add_option(kTensorParallel, options_.tp, "GPUs of this machine that share the model")
      ->transform(count(1, 1024))
      ->option_text("N [1]")
      ->group(kModelGroup);
  command.add_option("--chunk", options_.chunk, "Prompt tokens read at a time")
      ->transform(count(1, int64_t{1} << 30))
      ->option_text("N [2048; CUDA: 8192]")
      ->group(kModelGroup);
}

Engine ModelOptions::load(const std::function<void(const std::string&)>& warn,
                          const std::function<void(const std::string&)>& on_end) const {
  const std::filesystem::path& path = model_.path();
  ProgressBar bar("loading", "MiB");
  EngineOptions options = options_;
  options.ranks = ranks();
  options.on_end = on_end;
  const auto start = std::chrono::steady_clock::now();
  options.on_load = [&](int64_t done, int64_t total) {
    if (std::chrono::steady_clock::now() - start > std::chrono::seconds(1))
      bar.update(done >> 20, total >> 20);
  };
  Engine engine(path, options);
  bar.clear();
  for (const std::string& warning : engine.info().warnings) warn(warning);
  return engine;
}

template <class T>
CLI::Option* PolicyOptions::number(Loop loop, const std::string& flag, Field<T> field,
                                   const std::string& help) {
  // By the digits that give back the number: 0.4, not the 0.4000000059604645 that a float holds.
  settings_.push_back({loop, setting_name(flag), [field](Policies& p) {
                         return nlohmann::ordered_json::parse(fmt::format("{}", field(p)));
                       }});
  Policies defaults = default_settings();
  CLI::Option* option =
      command_
          .add_option_function<T>(
              flag,
              [this, field](const T& value) {
                overrides_.push_back([field, value](Policies& p) { field(p) = value; });
              },
              help)
          ->option_text(
              fmt::format("{} [{}]", std::is_floating_point_v<T> ? "X" : "N", field(defaults)))
          ->group(loop == Loop::kPrefill ? kPrefillGroup : kDecodeGroup);
  constexpr double kAny = std::numeric_limits<double>::max();
  return std::is_floating_point_v<T> ? option->check(between(-kAny, kAny))
                                     : option->transform(count(INT64_MIN));
}

template <class T>
void PolicyOptions::choice(Loop loop, const std::string& flag, Field<T> field,
                           std::vector<std::pair<std::string, T>> names, const std::string& help) {
  const auto name_of = [names](T value) {
    return std::find_if(names.begin(), names.end(), [&](auto& n) { return n.second == value; })
        ->first;
  };
  settings_.push_back(
      {loop, setting_name(flag), [field, name_of](Policies& p) { return name_of(field(p)); }});
  Policies defaults = default_settings();
  add_choice<T>(
      command_, flag, names,
      [this, field](T value) {
        overrides_.push_back([field, value](Policies& p) { field(p) = value; });
      },
      help, name_of(field(defaults)))
      ->group(loop == Loop::kPrefill ? kPrefillGroup : kDecodeGroup);
}

void PolicyOptions::yes(Loop loop, const std::string& flag, Field<bool> field,
                        const std::string& help) {
  settings_.push_back({loop, setting_name(flag), [field](Policies& p) { return field(p); }});
  command_
      .add_flag_function(
          flag,
          [this, field](int64_t count) {
            overrides_.push_back([field, count](Policies& p) { field(p) = count > 0; });
          },
          help)
      ->group(loop == Loop::kPrefill ? kPrefillGroup : kDecodeGroup);
}

PolicyOptions::PolicyOptions(CLI::App& command, const Device& device, bool with_names)
    : command_(command), device_(device) {
  const auto policy = [&](const char* flag, std::string& value, std::vector<std::string> allowed,
                          const char* text, const char* help) {
    command.add_option(flag, value, help)
        ->check(CLI::IsMember(std::move(allowed)))
        ->option_text(text)
        ->group(kPolicyGroup);
  };
  if (with_names) {
    policy("--prefill", prefill_, names(prefill_policies()),
           "entropy|dense|paper|reference|criti|xattention|flashprefill [entropy; CUDA: paper]",
           "How the prompt is read: blocks that hold most of the attention by our estimate, all of "
           "them, by the EntropyInfer paper or its released code, or a method to compare with");
    policy(
        "--decode", decode_, names(decode_policies()),
        "latent|full|snapkv|adakv|latent-adakv|pyramidkv|streaming|expected|kvzip|kvzip-plus "
        "[latent]",
        "The cache of the answer: what the first generated tokens vote for, all of it, or a method "
        "to compare with");
  }
  policy("--preset", preset_, {"default", "reference"}, "default|reference [default]",
         "Where the settings below start: ours, or the authors' released code");
  add_prefill_settings();
  add_decode_settings();
}

void PolicyOptions::add_prefill_settings() {
  constexpr Loop kLoop = Loop::kPrefill;
  using P = Policies;
  choice<Estimate>(
      kLoop, "--estimate", [](P& p) -> Estimate& { return p.prefill.estimate; },
      {{"sketch", Estimate::kSketch},
       {"bounds", Estimate::kBounds},
       {"antidiagonals", Estimate::kAntidiagonals},
       {"mean-keys", Estimate::kMeanKeys}},
      "What says how much a segment wants a block");
  number<float>(
      kLoop, "--mass", [](P& p) -> float& { return p.prefill.mass; },
      "Share of the estimated attention that is attended to (all estimates but bounds)");
  choice<bool>(
      kLoop, "--enough", [](P& p) -> bool& { return p.prefill.by_entropy; },
      {{"mass", false}, {"entropy", true}},
      "What says that blocks are enough: the mass alone, or with how many blocks the rest lies on");
  number<float>(
      kLoop, "--share", [](P& p) -> float& { return p.prefill.share; },
      "Instead of a mass: blocks with so much of the likeliest's; 0: off");
  number<int64_t>(
      kLoop, "--stride", [](P& p) -> int64_t& { return p.prefill.stride; },
      "Queries and keys of an antidiagonal; divides the block");
  number<float>(
      kLoop, "--base-budget", [](P& p) -> float& { return p.prefill.budget.base; },
      "Past tokens that a head attends to at least (bounds)")
      ->transform(count(1));
  number<int64_t>(
      kLoop, "--segment", [](P& p) -> int64_t& { return p.prefill.segment; },
      "Queries that choose blocks together");
  number<int64_t>(
      kLoop, "--block", [](P& p) -> int64_t& { return p.prefill.block; },
      "Keys chosen together; divides the segment");
  number<int64_t>(
      kLoop, "--threshold", [](P& p) -> int64_t& { return p.prefill.threshold_len; },
      "Segments that start before this token are dense")
      ->option_text("N [1024; CUDA: 8192]");
  number<int64_t>(
      kLoop, "--dense-layers", [](P& p) -> int64_t& { return p.prefill.dense_layers; },
      "First layers that are dense");
  number<int64_t>(
      kLoop, "--dense-tail", [](P& p) -> int64_t& { return p.prefill.dense_tail; },
      "The segments that hold any of the last so many tokens are dense");
  number<float>(
      kLoop, "--e-t", [](P& p) -> float& { return p.prefill.budget.e_t; },
      "Entropy in nats below which a head is rigid");
  number<float>(
      kLoop, "--delta-t", [](P& p) -> float& { return p.prefill.budget.delta_t; },
      "Growth of entropy that leaves a budget as it is");
  number<float>(
      kLoop, "--alpha", [](P& p) -> float& { return p.prefill.budget.alpha; },
      "Step of a budget, in units of the base budget");
  choice<Rank>(
      kLoop, "--rank", [](P& p) -> Rank& { return p.prefill.rank; },
      {{"score", Rank::kScore}, {"probability", Rank::kProbability}}, "What blocks are ranked by");
  choice<bool>(
      kLoop, "--budgets", [](P& p) -> bool& { return p.prefill.budget.max_over_heads; },
      {{"per-head", false}, {"max-over-heads", true}},
      "Each head's own budget, or the largest for all");
  choice<bool>(
      kLoop, "--rigid", [](P& p) -> bool& { return p.prefill.budget.rigid_whole_prompt; },
      {{"so-far", false}, {"whole-prompt", true}},
      "Whether a head is rigid by the segments so far or by all of the prompt");
  number<float>(
      kLoop, "--fusion", [](P& p) -> float& { return p.prefill.fusion; },
      "Share of the layer before in the ranks of blocks");
  yes(
      kLoop, "--score-scale", [](P& p) -> bool& { return p.prefill.scale_scores; },
      "Divide block scores by the root of the head size");
  number<int64_t>(
      kLoop, "--sink", [](P& p) -> int64_t& { return p.prefill.sink; },
      "Tokens at the start that are always kept");
  number<int64_t>(
      kLoop, "--local", [](P& p) -> int64_t& { return p.prefill.local; },
      "Tokens before the segment that are always kept");
}

void PolicyOptions::add_decode_settings() {
  constexpr Loop kLoop = Loop::kDecode;
  using P = Policies;
  number<int64_t>(
      kLoop, "--budget", [](P& p) -> int64_t& { return p.decode.budget; },
      "Cache entries kept per head");
  number<int64_t>(
      kLoop, "--decode-gap", [](P& p) -> int64_t& { return p.decode.gap; },
      "Tokens written before the cache is compressed; -1: right after the prompt; auto: as soon as "
      "they no longer change what is kept")
      ->transform(CLI::Transformer(std::map<std::string, int64_t>{{"auto", kAutoGap}}));
  settings_.back().value = [](P& p) -> nlohmann::ordered_json {
    if (p.decode.gap == kAutoGap) return "auto";
    return p.decode.gap;
  };
  choice<Voter>(
      kLoop, "--voter", [](P& p) -> Voter& { return p.decode.voter; },
      {{"window", Voter::kWindow}, {"expected", Voter::kExpected}, {"repeat", Voter::kRepeat}},
      "Whose attention decides: the newest queries', that of queries they let expect, or the "
      "prompt's own as it is repeated");
  number<int64_t>(
      kLoop, "--window", [](P& p) -> int64_t& { return p.decode.window; },
      "Newest queries that vote on what is kept, or are measured; tokens repeated at a time");
  choice<Pooling>(
      kLoop, "--pooling", [](P& p) -> Pooling& { return p.decode.pooling; },
      {{"avg", Pooling::kAvg},
       {"max", Pooling::kMax},
       {"both", Pooling::kBoth},
       {"none", Pooling::kNone}},
      "How votes are smoothed along the tokens");
  number<int64_t>(
      kLoop, "--kernel", [](P& p) -> int64_t& { return p.decode.kernel; },
      "Width of the pool, odd");
  number<int64_t>(
      kLoop, "--regrow", [](P& p) -> int64_t& { return p.decode.regrow; },
      "Compress again after so many more tokens; 0: never");
  choice<GroupReduce>(
      kLoop, "--reduce", [](P& p) -> GroupReduce& { return p.decode.reduce; },
      {{"mean", GroupReduce::kMean}, {"max", GroupReduce::kMax}},
      "How the query heads of a KV head vote together");
  choice<bool>(
      kLoop, "--votes", [](P& p) -> bool& { return p.decode.by_output; },
      {{"attention", false}, {"output", true}},
      "What of a token counts as the prompt is repeated: attention, or what that adds to the "
      "layer's output, of the length of what it is added to");
  choice<KvScope>(
      kLoop, "--kv-scope", [](P& p) -> KvScope& { return p.decode.scope; },
      {{"kv", KvScope::kKvHead}, {"query", KvScope::kQueryHead}},
      "Whether each KV head or each query head keeps its own entries");
  choice<Split>(
      kLoop, "--split", [](P& p) -> Split& { return p.decode.split; },
      {{"even", Split::kEven},
       {"adaptive", Split::kAdaptive},
       {"global", Split::kGlobal},
       {"pyramid", Split::kPyramid},
       {"streaming", Split::kStreaming}},
      "How budgets are shared: the same for all, over the heads of a layer or of all layers by "
      "votes, falling from layer to layer, or the first and last entries without votes");
  number<float>(
      kLoop, "--floor", [](P& p) -> float& { return p.decode.floor; },
      "Share of its even budget that an adaptive or global split leaves every head");
  number<int64_t>(
      kLoop, "--pyramid-beta", [](P& p) -> int64_t& { return p.decode.pyramid_beta; },
      "A pyramid split gives the last layer so many times less than an even one");
  yes(
      kLoop, "--off-by-one", [](P& p) -> bool& { return p.decode.off_by_one; },
      "Let one key after each voting query count, as the released code does");
}

void PolicyOptions::apply(Policies& policies) const {
  for (const auto& override_field : overrides_) override_field(policies);
}

Policies PolicyOptions::policies(const std::string& prefill, const std::string& decode) const {
  Policies p{known(find_prefill(prefill, on_gpu(device_)), prefill_policies(), prefill),
             known(find_decode(decode), decode_policies(), decode)};
  if (preset_ == "reference" && (prefill == "entropy" || prefill == "paper"))
    p.prefill = PrefillPolicy::reference();
  if (preset_ == "reference" && decode == "latent") p.decode = DecodePolicy::reference();
  apply(p);
  if (prefill == "dense") p.prefill.threshold_len = PrefillPolicy::dense().threshold_len;
  if (decode == "full") p.decode.budget = DecodePolicy::full().budget;
  try {
    validate(p.prefill);
    validate(p.decode);
  } catch (const Error& error) {
    throw CLI::ValidationError(error.what());
  }
  return p;
}

std::string PolicyOptions::prefill() const {
  return prefill_.empty() ? std::string(name_of(default_prefill(device_))) : prefill_;
}

nlohmann::ordered_json PolicyOptions::describe() const {
  nlohmann::ordered_json out = {{"prefill", prefill()}, {"decode", decode_}, {"preset", preset_}};
  out.update(describe(policies()));
  return out;
}

nlohmann::ordered_json PolicyOptions::describe(Policies p) const {
  auto out = nlohmann::ordered_json::object();
  for (const Setting& setting : settings_)
    if (setting.loop == Loop::kPrefill ? !p.prefill.is_dense() : !p.decode.is_full())
      out[setting.name] = setting.value(p);
  return out;
}

SamplingOptions::SamplingOptions(CLI::App& command) {
  const auto add = [&](const char* flag, auto& value, double min, double max, const char* text,
                       const char* help) {
    command.add_option(flag, value, help)
        ->check(between(min, max))
        ->option_text(text)
        ->group(kSamplingGroup);
  };
  add("--temp", temperature_, 0.0, 100.0, "X", "Temperature; 0: always the likeliest token");
  add("--top-k", top_k_, -1, INT32_MAX, "N", "Draw among the N likeliest tokens; 0 or -1: all");
  add("--top-p", top_p_, 0.0, 1.0, "X", "Draw among the fewest tokens that have this probability");
  add("--min-p", min_p_, 0.0, 1.0, "X",
      "Draw among tokens at least X times as likely as the likeliest");
  add("--repetition-penalty", repetition_penalty_, 0.01, 100.0, "X",
      "Make tokens of the prompt and the answer less likely; 1: off");
  add("--presence-penalty", presence_penalty_, -2.0, 2.0, "X",
      "Make tokens of the answer less likely, as OpenAI's API does");
  add("--frequency-penalty", frequency_penalty_, -2.0, 2.0, "X",
      "The same for each time that they are in it");
  command
      .add_option("--seed", seed_, "Start of the random numbers; without it, a new one each time")
      ->option_text("N")
      ->group(kSamplingGroup);
}

SamplingParams SamplingOptions::params(const Engine& engine) const {
  SamplingParams p = engine.default_sampling();
  p.temperature = temperature_.value_or(p.temperature);
  p.top_k = std::max(0, top_k_.value_or(p.top_k));
  p.top_p = top_p_.value_or(p.top_p);
  p.min_p = min_p_.value_or(p.min_p);
  p.repetition_penalty = repetition_penalty_.value_or(p.repetition_penalty);
  p.presence_penalty = presence_penalty_.value_or(p.presence_penalty);
  p.frequency_penalty = frequency_penalty_.value_or(p.frequency_penalty);
  p.seed = seed_ ? *seed_ : std::random_device()();
  return p;
}

}  // namespace ei::cli
