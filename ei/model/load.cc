#include <set>

#include "ei/base/fail.h"
#include "ei/base/half.h"
#include "ei/model/model.h"
#include "ei/model/weight_source.h"

namespace ei {
namespace {

class CheckpointSource : public WeightSource {
 public:
  CheckpointSource(const std::filesystem::path& dir, const ModelConfig& config)
      : checkpoint_(dir), config_(config) {}

  bool has(const std::string& name) const override { return checkpoint_.find(name) != nullptr; }

  Weight matrix(const std::string& name, int64_t rows, int64_t cols) override {
    const Found found = find(name, {rows, cols});
    return {aligned(found), found.dtype, rows, cols};
  }

  std::vector<float> vector(const std::string& name, int64_t size) override {
    const Found found = find(name, {size});
    const void* data = aligned(found);
    std::vector<float> values(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) values[static_cast<size_t>(i)] = load(data, found.dtype, i);
    return values;
  }

  // Throws Error when the layers have weights that nobody asked for: the checkpoint is then of
  // another model than config.json says, and leaving them out would give wrong answers in silence.
  void check_complete() const {
    for (const auto& [name, entry] : checkpoint_.entries()) {
      if (!name.starts_with("model.layers.") || asked_.contains(name) ||
          name.ends_with("rotary_emb.inv_freq"))
        continue;
      fail("{}: tensor {} is not part of a {} with {} layers, as config.json describes it",
           *entry.file, name, config_.architecture, config_.n_layers);
    }
    checkpoint_.check_size();
  }

 private:
  struct Found {
    DType dtype;
    std::span<const std::byte> data;
  };

  Found find(const std::string& name, const std::vector<int64_t>& shape) {
    const Checkpoint::Entry* entry = checkpoint_.find(name);
    require(entry != nullptr, "{}: tensor {} is missing; {} needs it as [{}]", checkpoint_.path(),
            name, config_.architecture, fmt::join(shape, ", "));
    const TensorInfo& tensor = *entry->tensor;
    require(tensor.shape == shape,
            "{}: tensor {} has shape [{}], expected [{}] according to config.json", *entry->file,
            name, fmt::join(tensor.shape, ", "), fmt::join(shape, ", "));
    const auto dtype = float_dtype(tensor.dtype);
    require(dtype.has_value(), "{}: tensor {} has dtype {}, expected BF16, F16 or F32",
            *entry->file, name, tensor.dtype);
    asked_.insert(name);
    return {*dtype, tensor.data};
  }

  // The format does not align tensors; the rare one that is not gets a copy that is.
  const void* aligned(const Found& found) {
    const auto address = reinterpret_cast<uintptr_t>(found.data.data());
    if (address % static_cast<uintptr_t>(dtype_bytes(found.dtype)) == 0) return found.data.data();
    return copies_.emplace_back(found.data.begin(), found.data.end()).data();
  }

  Checkpoint checkpoint_;
  ModelConfig config_;
  std::set<std::string, std::less<>> asked_;
  std::vector<std::vector<std::byte>> copies_;
};

}  // namespace

Model Model::load(Backend& backend, const std::filesystem::path& dir,
                  const LoadProgress& progress) {
  Model model(backend, load_config(dir));
  const auto source = std::make_shared<CheckpointSource>(dir, model.config_);
  model.take(*source);
  source->check_complete();

  int64_t done = 0;
  const auto place = [&](Weight& weight) {
    try {
      weight = backend.place(weight);
    } catch (const Error& error) {
      fail("{}: the weights take {} MiB, {} MiB of them were placed: {}", dir.string(),
           model.weight_bytes_ >> 20, done >> 20, error.what());
    }
    done += weight.bytes();
    if (progress) progress(done, model.weight_bytes_);
  };
  place(model.embedding_);
  for (Layer& layer : model.layers_)
    for (Weight* weight :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      place(*weight);
  if (model.config_.tie_word_embeddings) {
    model.head_ = model.embedding_;
  } else {
    place(model.head_);
  }
  model.memory_ = source;
  return model;
}

}  // namespace ei
