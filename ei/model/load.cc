#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <set>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/io/gguf.h"
#include "ei/model/gguf_model.h"
#include "ei/model/model.h"
#include "ei/model/quantized_tensors.h"
#include "ei/model/weight_source.h"
#include "ei/ops/weight_blocks.h"

namespace ei {
namespace {

std::string format_names() {
  std::vector<std::string_view> names;
  for (const WeightBlock& block : kWeightBlocks) names.push_back(block.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// Rows [first, last) of a matrix as they are computed with.
using WriteRows = std::function<void(int64_t first, int64_t last, char* to)>;

// All rows of the weight, on all threads; throws what one of them threw.
void write_all(const WriteRows& write, const Weight& weight, char* to) {
  constexpr int64_t kRows = 32;
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic)
  for (int64_t first = 0; first < weight.rows; first += kRows) {
    try {
      write(first, std::min(first + kRows, weight.rows),
            to + first * row_bytes(weight.format, weight.cols));
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// What a matrix becomes if weights are asked for in `wanted`. Numbers that are as small already
// stay as they are, as do rows that are no whole blocks. With Q4_K, rows of no whole 256 become
// Q4_1, and the embedding and the head, which suffer most from lost bits, Q8_0.
WeightFormat converted(WeightFormat wanted, const std::string& name, const Weight& weight) {
  using enum WeightFormat;
  if (wanted == kBF16) return wanted;
  const bool table = !name.starts_with("model.layers.");
  if (wanted == kQ4_K) wanted = table ? kQ8_0 : weight.cols % 256 == 0 ? kQ4_K : kQ4_1;
  if (weight.cols % block_of(wanted).weights != 0) return weight.format;
  return row_bytes(wanted, weight.cols) < row_bytes(weight.format, weight.cols) ? wanted
                                                                                : weight.format;
}

// Rows of `from`, which `read` writes if it is given, in another format and the order of inputs.
WriteRows conversion(const Weight& from, const WriteRows& read, WeightFormat format,
                     const std::string& where) {
  return [=](int64_t first, int64_t last, char* to) {
    const int64_t bytes = row_bytes(from.format, from.cols);
    std::vector<char> blocks(static_cast<size_t>(read ? (last - first) * bytes : 0));
    if (read) read(first, last, blocks.data());
    std::vector<float> row(static_cast<size_t>(from.cols)), ordered(row);
    for (int64_t i = first; i < last; ++i, to += row_bytes(format, from.cols)) {
      dequantize(from.format, read ? blocks.data() + (i - first) * bytes : from.row(i), from.cols,
                 row.data());
      for (size_t j = 0; from.order != nullptr && j < row.size(); ++j)
        ordered[static_cast<size_t>(from.order[j])] = row[j];
      for (const float value : row)
        require(std::abs(value) < 65504, "{} has {} in row {}, which is not converted", where,
                value, i);
      quantize(format, from.order == nullptr ? row.data() : ordered.data(), from.cols, to);
    }
  };
}

// The tensors of a checkpoint's files, which stay mapped as long as this lives. With `weights`,
// matrices are converted to it.
class CheckpointSource : public WeightSource {
 public:
  // `hugging_face` turns names in `files` into those of Hugging Face's checkpoints.
  template <class Files, class Rename>
  CheckpointSource(std::shared_ptr<const Files> files, const ModelConfig& config, int rank,
                   std::optional<WeightFormat> weights, const Rename& hugging_face)
      : path_(files->path()),
        architecture_(config.architecture),
        n_layers_(config.n_layers),
        rank_(rank),
        n_ranks_(config.n_ranks),
        quantization_(config.quantization),
        weights_(weights) {
    require(!weights || can_quantize(*weights), "weights are not converted to {}",
            block_of(weights.value_or(WeightFormat::kF32)).name);
    for (const auto& [name, entry] : files->entries())
      entries_.emplace(hugging_face(name), Entry{entry, name});
    let_go_ = [files](std::span<const std::byte> part) { files->let_go(part); };
  }

  bool has(const std::string& name) const override { return entries_.contains(name); }

  Weight matrix(const std::string& name, int64_t rows, int64_t cols, Part of_it) override {
    if (of_it == Part::kRows) rows *= n_ranks_;
    if (of_it == Part::kCols) cols *= n_ranks_;
    Weight weight{.rows = rows, .cols = cols};
    WriteRows write;
    const std::string module = name.substr(0, name.rfind('.'));
    const auto part = [&](std::string_view suffix) { return find_part(module, suffix); };
    auto quantized = find_quantized(quantization_, part, module, rows, cols);
    require(!quantized || !quantization_.leaves_plain(module),
            "{}: {} is quantized, but quantization_config lists it among the modules that are not",
            path_, module);
    if (quantized) {
      weight.data = quantized->data;
      weight.format = quantized->format;
      if (!quantized->order.empty())
        weight.order = orders_.insert(std::move(quantized->order)).first->data();
      write = std::move(quantized->write);
    } else {
      const Found found = find(name, {rows, cols});
      weight.data = aligned(found);
      weight.format = found.format;
    }
    if (weights_)
      if (const WeightFormat format = converted(*weights_, name, weight); format != weight.format) {
        write = conversion(weight, write, format, fmt::format("{}: tensor {}", path_, name));
        weight.format = format;
        weight.order = nullptr;
      }
    if (n_ranks_ > 1 && of_it != Part::kAll)
      take_share(weight, write, of_it, fmt::format("{}: tensor {}", path_, name));
    if (write && conversions_.emplace(weight.data, std::move(write)).second)
      unread_bytes_ += weight.bytes();
    return weight;
  }

  Weight read(const Weight& weight, int64_t available) override {
    const auto it = conversions_.find(weight.data);
    if (it == conversions_.end()) return weight;
    require(weight.bytes() <= available, "no memory for {} bytes: {} are available", weight.bytes(),
            available);
    auto memory = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(weight.bytes()));
    write_all(it->second, weight, memory.get());
    conversions_.erase(it);
    unread_bytes_ -= weight.bytes();
    Weight converted = weight;
    converted.data = memory.get();
    memory_.emplace(converted.data, std::move(memory));
    return converted;
  }

  int64_t unread_bytes() const override { return unread_bytes_; }

  void drop(const Weight& weight) override {
    if (memory_.erase(weight.data) == 0)
      let_go_({static_cast<const std::byte*>(weight.data), static_cast<size_t>(weight.bytes())});
  }

  std::vector<float> vector(const std::string& name, int64_t size, Part part) override {
    const Found found = find(name, {part == Part::kAll ? size : size * n_ranks_});
    std::vector<float> values(found.data.size() /
                              static_cast<size_t>(block_of(found.format).bytes));
    dequantize(found.format, found.data.data(), std::ssize(values), values.data());
    if (part == Part::kAll) return values;
    const auto begin = values.begin() + rank_ * size;
    return {begin, begin + size};
  }

  void check_complete() const override {
    for (const auto& [name, entry] : entries_) {
      if (asked_.contains(name) || adds_nothing(name, *entry.tensor)) continue;
      require(!name.starts_with("model.layers.") && !name.starts_with("blk."),
              "{}: tensor {} is not part of a {} with {} layers, as the checkpoint describes it",
              *entry.file, entry.name, architecture_, n_layers_);
    }
  }

 private:
  // Makes of a matrix, which `write` writes if it is given, the rank's part. Rows stay where they
  // are, columns are gathered.
  void take_share(Weight& weight, WriteRows& write, Part part, const std::string& where) const {
    const int64_t all_bytes = row_bytes(weight.format, weight.cols);
    if (part == Part::kRows) {
      weight.rows /= n_ranks_;
      const int64_t begin = rank_ * weight.rows;
      if (!write) {
        weight.data = weight.row(begin);
      } else {
        write = [write, begin](int64_t first, int64_t last, char* to) {
          write(begin + first, begin + last, to);
        };
      }
      return;
    }
    weight.cols /= n_ranks_;
    const WeightBlock& block = block_of(weight.format);
    require(weight.cols % block.weights == 0,
            "{}: each of {} ranks needs {} of its columns, which in {} come in blocks of {}; start "
            "fewer ranks, or take --weights bf16",
            where, n_ranks_, weight.cols, block.name, block.weights);
    require(
        weight.order == nullptr,
        "{}: its columns are in the order of their scales (act-order), which ranks cannot share; "
        "start one, or take --weights bf16",
        where);
    const int64_t bytes = row_bytes(weight.format, weight.cols), begin = rank_ * bytes;
    write = [=, from = static_cast<const char*>(weight.data)](int64_t first, int64_t last,
                                                              char* to) {
      std::vector<char> rows(static_cast<size_t>(write ? (last - first) * all_bytes : 0));
      if (write) write(first, last, rows.data());
      const char* row = write ? rows.data() : from + first * all_bytes;
      for (int64_t i = first; i < last; ++i, row += all_bytes, to += bytes)
        std::memcpy(to, row + begin, static_cast<size_t>(bytes));
    };
  }

  struct Entry : TensorEntry {
    std::string_view name;  // in the file
  };
  struct Found {
    WeightFormat format;
    std::span<const std::byte> data;
  };

  // Tensors that may be left out: what scales activations and caches are to be rounded by, which
  // here they are not, and the biases of zeros that quantized checkpoints have everywhere.
  bool adds_nothing(std::string_view name, const TensorInfo& tensor) const {
    const auto ends_with = [&](std::string_view end) { return name.ends_with(end); };
    if (ends_with("rotary_emb.inv_freq")) return true;
    if (quantization_.method == Quantization::Method::kNone) return false;
    constexpr std::string_view kUnused[] = {".input_scale", ".output_scale", ".k_scale", ".v_scale",
                                            ".weight_shape"};
    return std::ranges::any_of(kUnused, ends_with) ||
           (ends_with(".bias") &&
            std::ranges::all_of(tensor.data, [](std::byte b) { return b == std::byte{0}; }));
  }

  const TensorEntry* find_part(std::string_view module, std::string_view suffix) {
    const auto it = entries_.find(fmt::format("{}{}", module, suffix));
    if (it == entries_.end()) return nullptr;
    asked_.insert(it->first);
    return &it->second;
  }

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
  int n_layers_, rank_, n_ranks_;
  Quantization quantization_;
  std::optional<WeightFormat> weights_;
  std::function<void(std::span<const std::byte>)> let_go_;  // and what keeps the files mapped
  std::map<std::string, Entry, std::less<>> entries_;       // by their names at Hugging Face
  std::set<std::string, std::less<>> asked_;
  std::vector<std::vector<std::byte>> copies_;
  std::set<std::vector<int32_t>> orders_;                  // matrices of the same inputs share one
  std::map<const void*, WriteRows> conversions_;           // by the data of what matrix() gave
  int64_t unread_bytes_ = 0;                               // of them
  std::map<const void*, std::unique_ptr<char[]>> memory_;  // of what was converted, by its data
};

std::string gib(int64_t bytes) { return fmt::format("{:.1f} GiB", double(bytes) / 0x1p30); }

// What to do about weights of n_bytes that are too many: of the formats that they can be converted
// to, the most exact one that fits.
std::string smaller(int64_t n_bytes, int64_t n_parameters, int64_t available) {
  for (const auto& [format, flag] :
       {std::pair{WeightFormat::kQ8_0, "q8_0"}, {WeightFormat::kQ4_K, "q4_k"}}) {
    const int64_t bytes = row_bytes(format, n_parameters);
    if (bytes <= available && bytes < n_bytes)
      return fmt::format("with --weights {} they take about {}", flag, gib(bytes));
  }
  return "no format that they can be converted to is small enough";
}

}  // namespace

Model Model::load(Backend& backend, const std::filesystem::path& dir,
                  std::optional<WeightFormat> weights, const LoadProgress& progress) {
  const ModelConfig config = share_of(load_config(dir), backend.ranks().size(), dir.string());
  const auto files = std::make_shared<const Checkpoint>(dir);
  // Models that make embeddings are often saved without a head, and without "model." in front.
  const auto& tensors = files->entries();
  const bool bare = tensors.contains("norm.weight") && !tensors.contains("model.norm.weight");
  const auto full_name = [bare](std::string_view name) {
    return (bare && name != "lm_head.weight" ? "model." : "") + std::string(name);
  };
  Model model(backend, config);
  model.load(
      std::make_shared<CheckpointSource>(files, config, backend.ranks().rank(), weights, full_name),
      dir.string(), progress);
  files->check_size();
  return model;
}

Model Model::load(Backend& backend, std::shared_ptr<const GgufFile> file,
                  std::optional<WeightFormat> weights, const LoadProgress& progress) {
  const ModelConfig config = share_of(gguf_config(*file), backend.ranks().size(), file->path());
  Model model(backend, config);
  model.load(std::make_shared<CheckpointSource>(file, config, backend.ranks().rank(), weights,
                                                hugging_face_name),
             file->path(), progress);
  file->check_size();
  return model;
}

// Where the device reads the host's memory. Pages of files come and go: they need not fit.
void Model::check_memory(const std::string& path, int64_t converted, int64_t available) {
  require(converted <= available,
          "{}: the weights take {} once converted, {} of memory are available; {}", path,
          gib(converted), gib(available), smaller(converted, n_parameters_, available));
  if (weight_bytes_ > available)
    warnings_.push_back(fmt::format(
        "{}: the weights take {}, {} of memory are available: parts are read from the file again "
        "and again; {}",
        path, gib(weight_bytes_), gib(available),
        smaller(weight_bytes_, n_parameters_, available)));
}

void Model::load(const std::shared_ptr<WeightSource>& source, const std::string& path,
                 const LoadProgress& progress) {
  take(*source);
  source->check_complete();
  int64_t done = 0;
  bool copied = false;
  const auto place = [&](Weight& weight, bool factor = false) {
    try {
      const Weight host = source->read(weight, backend_->available_bytes());
      weight = factor ? backend_->place_factor(host) : backend_->place(host);
      copied = weight.data != host.data;
      if (copied) source->drop(host);
    } catch (const Error& error) {
      fail("{}: the weights take {} MiB, {} MiB of them were placed: {}", path, weight_bytes_ >> 20,
           done >> 20, error.what());
    }
    done += weight.bytes();
    if (progress) progress(done, weight_bytes_);
  };
  const int64_t converted = source->unread_bytes(), available = backend_->available_bytes();
  place(embedding_);
  if (!copied) check_memory(path, converted, available);
  for (Layer& layer : layers_)
    for (Weight* weight :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      place(*weight, /*factor=*/true);
  if (config_.tie_word_embeddings) {
    tie_head();
  } else {
    place(head_);
  }
  memory_ = source;
}

}  // namespace ei
