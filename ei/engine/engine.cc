#include "ei/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <span>

#include "ei/base/affinity.h"
#include "ei/base/fail.h"
#include "ei/engine/engine_impl.h"
#include "ei/engine/make_backend.h"
#include "ei/engine/memory_plan.h"
#include "ei/engine/named_shapes.h"
#include "ei/engine/sketch.h"
#include "ei/text/gguf_tokenizer.h"

namespace ei {
namespace {

SamplingParams sampling_of(const GenerationConfig& config) {
  SamplingParams params;
  if (!config.do_sample.value_or(false)) {
    params.repetition_penalty = static_cast<float>(config.repetition_penalty.value_or(1));
    return params;
  }
  params.temperature = static_cast<float>(config.temperature.value_or(1));
  params.top_k = static_cast<int32_t>(config.top_k.value_or(0));
  params.top_p = static_cast<float>(config.top_p.value_or(1));
  params.min_p = static_cast<float>(config.min_p.value_or(0));
  params.repetition_penalty = static_cast<float>(config.repetition_penalty.value_or(1));
  return params;
}

// A directory of a checkpoint, or what was given instead of one.
void check_directory(const std::filesystem::path& dir) {
  namespace fs = std::filesystem;
  constexpr const char* kWhat =
      "a Hugging Face model directory (config.json, *.safetensors, tokenizer.json or "
      "tokenizer.model) or a .gguf file";
  if (!fs::is_directory(dir))
    fail("{}: {}; give {}", dir.string(),
         fs::exists(dir) ? "a file, not a directory" : "there is no such file or directory", kWhat);
  if (fs::exists(dir / "config.json")) return;
  for (const auto& entry : fs::directory_iterator(dir))
    if (entry.path().extension() == ".gguf")
      fail("{}: has GGUF files but no config.json; give one of the files, as {}", dir.string(),
           entry.path().string());
  fail("{}: has no config.json; give {}", dir.string(), kWhat);
}

// Ids without text, for weights that have learnt none.
class NoTokenizer final : public Tokenizer {
 public:
  explicit NoTokenizer(int64_t vocab_size) : Tokenizer(vocabulary(vocab_size)) {}

 private:
  static Vocabulary vocabulary(int64_t size) {
    Vocabulary v;
    v.tokens.resize(static_cast<size_t>(size));
    return v;
  }
  void encode_text(std::string_view, bool, std::vector<int32_t>&) const override {
    fail("random weights have no tokenizer; give the prompt as token ids");
  }
  std::optional<int32_t> find_token(std::string_view) const override { return std::nullopt; }
};

}  // namespace

PrefillPolicy default_prefill(Device device) {
  return on_gpu(device) ? PrefillPolicy{} : PrefillPolicy::sketch();
}

Engine::Engine(const EngineOptions& options) : impl_(std::make_unique<Impl>()) {
  require(options.threads >= 0, "threads is {}, expected 0 (all cores) or more", options.threads);
  require(options.chunk >= 0, "chunk is {}, expected 1 or more, or 0 (what suits the device)",
          options.chunk);
  require(options.page >= 1, "page is {}, expected 1 or more", options.page);
  require(options.kv_type != DType::kF16, "kv-type is f16, expected bf16, f32, q8_0 or fp8");
  impl_->options = options;
  impl_->backend = make_backend(options);
  if (options.chunk == 0) impl_->options.chunk = impl_->backend->prompt_rows();
}

Engine Engine::make(const EngineOptions& options, const std::function<void(Impl&)>& load) {
  const auto make_one = [&](const EngineOptions& of_rank) {
    Engine engine(of_rank);
    load(*engine.impl_);
    of_all(engine.impl_->backend->ranks(), 0);  // from here on no rank waits for another's files
    return engine;
  };
  require(options.tp >= 1, "tp is {}, expected 1 or more", options.tp);
  if (options.tp == 1) return make_one(options);
  require(!options.ranks || options.ranks->size() == 1,
          "tp is {}, but several processes share the model already; start one of the two",
          options.tp);
  const std::vector<int> cpus = pinned_cpus(options.pin);
  const int all = options.threads > 0 ? options.threads : default_threads(cpus);
  const int n_threads = std::max(1, all / options.tp);  // of a rank
  require(cpus.empty() || std::ssize(cpus) >= int64_t{n_threads} * options.tp,
          "{} ranks of {} threads are to be pinned to {} CPUs ({}); give each thread a CPU of its "
          "own, or fewer threads",
          options.tp, n_threads, cpus.size(), fmt::join(cpus, ","));
  auto threads = std::make_unique<ThreadRanks>(options.tp, options.on_end);
  std::vector<std::optional<Engine>> engines(static_cast<size_t>(options.tp));
  threads->run([&](const std::shared_ptr<Communicator>& rank) {
    EngineOptions own = options;
    own.tp = 1;
    own.ranks = rank;
    own.threads = n_threads;
    if (!cpus.empty())
      own.pin = fmt::format(
          "{}", fmt::join(std::span(cpus).subspan(static_cast<size_t>(rank->rank() * n_threads),
                                                  static_cast<size_t>(n_threads)),
                          ","));
    if (rank->rank() > 0) own.on_load = {};
    engines[static_cast<size_t>(rank->rank())] = make_one(own);
  });
  Engine first = std::move(*engines[0]);
  for (size_t r = 1; r < engines.size(); ++r) first.impl_->others.push_back(std::move(*engines[r]));
  first.impl_->threads = std::move(threads);
  return first;
}

Engine::Engine(const std::filesystem::path& model, const EngineOptions& options)
    : Engine(make(options, [&](Impl& impl) { impl.load(model); })) {}

void Engine::Impl::load(const std::filesystem::path& path) {
  const auto start = std::chrono::steady_clock::now();
  if (path.extension() == ".gguf") {
    load_file(path);
  } else {
    load_directory(path);
  }
  check_tokens(path.string());
  check_kv_type();
  load_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

void Engine::Impl::load_directory(const std::filesystem::path& dir) {
  check_directory(dir);
  tokenizer = load_tokenizer(dir);
  model = std::make_unique<Model>(Model::load(*backend, dir, options.weights, options.on_load));
  chat = ChatTemplate::load(dir, *tokenizer);

  const GenerationConfig generation = load_generation_config(dir);
  default_sampling = sampling_of(generation);
  const ModelConfig& config = model->config();
  eos.insert(config.eos_ids.begin(), config.eos_ids.end());
  eos.insert(generation.eos_ids.begin(), generation.eos_ids.end());
  if (tokenizer->eos_id()) eos.insert(*tokenizer->eos_id());
}

void Engine::Impl::load_file(const std::filesystem::path& path) {
  const auto file = std::make_shared<const GgufFile>(path);
  tokenizer = load_tokenizer(file->metadata());
  model = std::make_unique<Model>(Model::load(*backend, file, options.weights, options.on_load));
  chat = load_chat_template(file->metadata(), *tokenizer);
  const std::vector<int32_t> ends = end_ids(file->metadata(), *tokenizer);
  eos.insert(ends.begin(), ends.end());
}

void Engine::Impl::check_tokens(const std::string& where) {
  const int64_t vocab_size = model->config().vocab_size;
  std::erase_if(eos, [&](int32_t id) {
    const bool known = id >= 0 && id < vocab_size;
    if (!known)
      warnings.push_back(fmt::format("{}: eos_token_id {} is ignored: the vocabulary has {} tokens",
                                     where, id, vocab_size));
    return !known;
  });
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id)
    longest_token = std::max(longest_token, std::ssize(tokenizer->token_bytes(id)));
}

void Engine::Impl::check_kv_type() const {
  const int64_t d = model->config().head_dim;
  require(
      options.kv_type != DType::kFP8 || PageLayout::has_fp8(d),
      "KV caches of fp8 are for heads of 16, 32, 64, 128 or 256 numbers, the model has {}; take "
      "--kv-type bf16",
      d);
}

Engine Engine::random(std::string_view shape, const EngineOptions& options) {
  const ModelConfig config = named_shape(shape);
  return make(options, [&](Impl& e) {
    e.tokenizer = std::make_unique<NoTokenizer>(config.vocab_size);
    e.model = std::make_unique<Model>(Model::random(*e.backend, config, /*seed=*/1));
    e.check_kv_type();
  });
}

// What ranks have in common (NCCL's communicator) they give up together.
Engine::~Engine() {
  if (!impl_ || !impl_->threads) return;
  const std::unique_ptr<ThreadRanks> threads = std::move(impl_->threads);
  std::vector<Engine> all = std::move(impl_->others);
  all.insert(all.begin(), std::move(*this));
  threads->run([&](const std::shared_ptr<Communicator>& rank) {
    all[static_cast<size_t>(rank->rank())].impl_.reset();
  });
}

Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&& other) noexcept {
  std::swap(impl_, other.impl_);
  return *this;
}

KvShape Engine::Impl::kv_shape(const PrefillPolicy& policy, int64_t max_tokens) const {
  const ModelConfig& config = model->config();
  return {
      .n_layers = config.n_layers,
      .n_kv_heads = config.n_kv_heads,
      .layout = {.dtype = options.kv_type,
                 .head_dim = config.head_dim,
                 .rows = page_rows(policy),
                 .block =
                     policy.is_dense() || policy.estimate != Estimate::kBounds ? 0 : policy.block},
      .max_tokens = max_tokens};
}

int64_t Engine::Impl::page_rows(const PrefillPolicy& policy) const {
  return (options.page + policy.segment - 1) / policy.segment * policy.segment;
}

PrefillPlan::Shape Engine::Impl::prefill_shape(const PrefillPolicy& policy,
                                               int64_t max_tokens) const {
  const ModelConfig& config = model->config();
  return {.n_layers = config.n_layers,
          .n_heads = config.n_heads,
          .n_kv_heads = config.n_kv_heads,
          .head_dim = config.head_dim,
          .max_tokens = max_tokens,
          .page = page_rows(policy),
          .chunk = options.chunk};
}

const Sketch& Engine::Impl::sketch() {
  const std::lock_guard lock(sketch_mutex);
  if (!made_sketch) made_sketch.emplace(make_sketch(*this));
  return *made_sketch;
}

int64_t Engine::Impl::n_ids() const {
  return std::min<int64_t>(tokenizer->vocab_size(), model->config().vocab_size);
}

const ChatTemplate& Engine::Impl::chat_template() const {
  require(chat.has_value(),
          "this checkpoint has no chat template (chat_template.jinja, \"chat_template\" in "
          "tokenizer_config.json, tokenizer.chat_template in GGUF); give the prompt as raw text "
          "(--raw, /v1/completions)");
  return *chat;
}

std::vector<int32_t> Engine::Impl::encode_chat(std::span<const Message> messages,
                                               bool thinking) const {
  ChatOptions options;
  if (!thinking) options.variables["enable_thinking"] = false;
  return chat_template().encode(to_json(messages), options);
}

ModelInfo Engine::info() const {
  const Impl& e = *impl_;
  const ModelConfig& config = e.model->config();
  ModelInfo info;
  info.architecture = config.architecture;
  info.chat_template = e.chat ? e.chat->where() : "";
  info.device = e.backend->name();
  info.n_parameters = e.model->n_parameters();
  info.n_layers = config.n_layers;
  info.n_heads = config.n_heads;
  info.n_kv_heads = config.n_kv_heads;
  info.head_dim = config.head_dim;
  info.hidden = config.hidden;
  info.intermediate = config.intermediate;
  info.vocab_size = config.vocab_size;
  info.max_context = config.max_positions;
  info.max_text_bytes = config.max_positions * e.longest_token;
  info.weight_bytes = e.model->weight_bytes();
  for (const auto& [format, bytes] : e.model->matrix_bytes())
    info.weight_formats.emplace_back(block_of(format).name, bytes);
  info.activation_bytes = Activations::bytes(*e.backend, config, e.options.chunk, 1);
  info.available_bytes = e.backend->available_bytes();
  const PrefillPolicy prefill = default_prefill(e.options.device);
  const KvShape shape = e.kv_shape(prefill, config.max_positions);
  const PageLayout& layout = shape.layout;
  const int64_t row_bytes = layout.entry_bytes() * config.n_layers * config.n_kv_heads;
  info.kv_bytes_per_token = 2 * row_bytes;
  info.bounds_bytes_per_token = (layout.bytes() - 2 * layout.rows * layout.entry_bytes()) *
                                config.n_layers * config.n_kv_heads / layout.rows;
  // Under the default policies.
  const DecodePolicy decode;
  info.longest_context =
      longest_prompt(e, prefill, decode, shape, layout.bytes(), 1, info.available_bytes);
  if (const int64_t n = info.longest_context; n > 0)
    info.longest_context_bytes =
        plan_memory(e, prefill, decode, shape, layout.bytes(), n, n + 1).total();
  info.load_ms = e.load_ms;
  info.warnings = e.model->warnings();
  info.warnings.insert(info.warnings.end(), e.warnings.begin(), e.warnings.end());
  return info;
}

SamplingParams Engine::default_sampling() const { return impl_->default_sampling; }

std::vector<int32_t> Engine::tokenize(std::string_view text) const {
  return impl_->tokenizer->encode(text, /*add_bos=*/true);
}

std::vector<int32_t> Engine::tokenize(std::span<const Message> messages, bool thinking) const {
  return impl_->encode_chat(messages, thinking);
}

const Tokenizer& Engine::tokenizer() const { return *impl_->tokenizer; }
const ChatTemplate& Engine::chat_template() const { return impl_->chat_template(); }

std::string Engine::detokenize(std::span<const int32_t> tokens) const {
  return impl_->tokenizer->decode(tokens, /*skip_special=*/false);
}

}  // namespace ei
