#include <set>

#include "ei/base/fail.h"
#include "ei/io/gguf.h"
#include "ei/model/gguf_model.h"
#include "ei/model/model.h"
#include "ei/model/weight_source.h"
#include "ei/ops/weight_blocks.h"

namespace ei {
namespace {

std::string format_names() {
  std::vector<std::string_view> names;
  for (const WeightBlock& block : kWeightBlocks) names.push_back(block.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// The tensors of a checkpoint's files, which stay mapped as long as this lives.
class CheckpointSource : public WeightSource {
 public:
  // `hugging_face` turns names in `files` into those of Hugging Face's checkpoints.
  template <class Files, class Rename>
  CheckpointSource(std::shared_ptr<const Files> files, const ModelConfig& config,
                   const Rename& hugging_face)
      : path_(files->path()), architecture_(config.architecture), n_layers_(config.n_layers) {
    for (const auto& [name, entry] : files->entries())
      entries_.emplace(hugging_face(name), Entry{entry, name});
    files_ = std::move(files);
  }

  bool has(const std::string& name) const override { return entries_.contains(name); }

  Weight matrix(const std::string& name, int64_t rows, int64_t cols) override {
    const Found found = find(name, {rows, cols});
    return {aligned(found), found.format, rows, cols};
  }

  std::vector<float> vector(const std::string& name, int64_t size) override {
    const Found found = find(name, {size});
    std::vector<float> values(static_cast<size_t>(size));
    dequantize(found.format, found.data.data(), size, values.data());
    return values;
  }

  void check_complete() const override {
    for (const auto& [name, entry] : entries_) {
      if (asked_.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
      require(!name.starts_with("model.layers.") && !name.starts_with("blk."),
              "{}: tensor {} is not part of a {} with {} layers, as the checkpoint describes it",
              *entry.file, entry.name, architecture_, n_layers_);
    }
  }

 private:
  struct Entry : TensorEntry {
    std::string_view name;  // in the file
  };
  struct Found {
    WeightFormat format;
    std::span<const std::byte> data;
  };

  Found find(const std::string& name, const std::vector<int64_t>& shape) {
    const auto it = entries_.find(name);
    require(it != entries_.end(), "{}: tensor {} is missing; {} needs it as [{}]", path_, name,
            architecture_, fmt::join(shape, ", "));
    const Entry& entry = it->second;
    require(
        entry.tensor->shape == shape,
        "{}: tensor {} has shape [{}], expected [{}] according to the checkpoint's configuration",
        *entry.file, entry.name, fmt::join(entry.tensor->shape, ", "), fmt::join(shape, ", "));
    const auto format = weight_format(entry.tensor->dtype);
    require(format.has_value(), "{}: tensor {} is in {}, which is not supported; these are: {}",
            *entry.file, entry.name, entry.tensor->dtype, format_names());
    asked_.insert(name);
    return {*format, entry.tensor->data};
  }

  // Safetensors does not align tensors; the rare one that is not gets a copy that is.
  const void* aligned(const Found& found) {
    const auto address = reinterpret_cast<uintptr_t>(found.data.data());
    if (is_quantized(found.format) ||
        address % static_cast<uintptr_t>(block_of(found.format).bytes) == 0)
      return found.data.data();
    return copies_.emplace_back(found.data.begin(), found.data.end()).data();
  }

  std::string path_, architecture_;
  int n_layers_;
  std::shared_ptr<const void> files_;
  std::map<std::string, Entry, std::less<>> entries_;  // by their names at Hugging Face
  std::set<std::string, std::less<>> asked_;
  std::vector<std::vector<std::byte>> copies_;
};

}  // namespace

Model Model::load(Backend& backend, const std::filesystem::path& dir,
                  const LoadProgress& progress) {
  const ModelConfig config = load_config(dir);
  const auto files = std::make_shared<const Checkpoint>(dir);
  const auto same = [](std::string_view name) { return std::string(name); };
  Model model(backend, config);
  model.load(std::make_shared<CheckpointSource>(files, config, same), dir.string(), progress);
  files->check_size();
  return model;
}

Model Model::load(Backend& backend, std::shared_ptr<const GgufFile> file,
                  const LoadProgress& progress) {
  const ModelConfig config = gguf_config(*file);
  Model model(backend, config);
  model.load(std::make_shared<CheckpointSource>(file, config, hugging_face_name), file->path(),
             progress);
  file->check_size();
  return model;
}

void Model::load(const std::shared_ptr<WeightSource>& source, const std::string& path,
                 const LoadProgress& progress) {
  take(*source);
  source->check_complete();
  int64_t done = 0;
  const auto place = [&](Weight& weight) {
    try {
      weight = backend_->place(weight);
    } catch (const Error& error) {
      fail("{}: the weights take {} MiB, {} MiB of them were placed: {}", path, weight_bytes_ >> 20,
           done >> 20, error.what());
    }
    done += weight.bytes();
    if (progress) progress(done, weight_bytes_);
  };
  place(embedding_);
  for (Layer& layer : layers_)
    for (Weight* weight :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      place(*weight);
  if (config_.tie_word_embeddings) {
    head_ = embedding_;
  } else {
    place(head_);
  }
  memory_ = source;
}

}  // namespace ei
