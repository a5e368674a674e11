#include "ei/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors are used as the files have them");

constexpr uint64_t kMaxHeaderBytes = 32u << 20;
constexpr size_t kMaxTensors = 65536;
constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxDims = 16;

// Bits of one element of every dtype of the format.
constexpr std::pair<std::string_view, int64_t> kDTypes[] = {
    {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},    {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"F64", 64},    {"I64", 64},
    {"U64", 64},        {"C64", 64}};

int64_t dtype_bits(std::string_view name, std::string_view where) {
  for (const auto& [known, bits] : kDTypes)
    if (known == name) return bits;
  fail("{}: field \"dtype\" is \"{}\", which safetensors does not define", where, name);
}

TensorInfo parse_tensor(const Json& json, std::string_view where, std::span<const std::byte> data) {
  const Fields fields(json, where);
  TensorInfo tensor{
      .dtype = fields.string("dtype"), .shape = fields.integers("shape", 0, INT64_MAX), .data = {}};
  require(tensor.shape.size() <= kMaxDims,
          "{}: field \"shape\" has {} dimensions, at most {} are read", where, tensor.shape.size(),
          kMaxDims);
  int64_t bits = dtype_bits(tensor.dtype, where);
  for (const int64_t dim : tensor.shape)
    require(!__builtin_mul_overflow(bits, dim, &bits),
            "{}: field \"shape\": the tensor has more than 2^63 bits", where);
  require(bits % 8 == 0, "{}: {} bits are no whole number of bytes", where, bits);

  const std::vector<int64_t> offsets = fields.integers("data_offsets", 0, INT64_MAX);
  require(offsets.size() == 2, "{}: field \"data_offsets\" has {} numbers, expected 2", where,
          offsets.size());
  const auto begin = static_cast<uint64_t>(offsets[0]), end = static_cast<uint64_t>(offsets[1]);
  require(begin <= end && end <= data.size(),
          "{}: field \"data_offsets\" is [{}, {}], expected a range within the file's {} bytes of "
          "data; a file that is cut short must be downloaded again",
          where, begin, end, data.size());
  require(end - begin == static_cast<uint64_t>(bits / 8),
          "{}: field \"data_offsets\" spans {} bytes, but {} elements by \"shape\" and \"dtype\" "
          "take {}",
          where, end - begin, tensor.dtype, bits / 8);
  tensor.data = data.subspan(begin, end - begin);
  return tensor;
}

// The tensors must fill the data without hole or overlap, in whatever order they are named.
void check_coverage(const TensorMap& tensors, std::span<const std::byte> data,
                    std::string_view where) {
  std::vector<const TensorMap::value_type*> by_offset;
  for (const auto& entry : tensors) by_offset.push_back(&entry);
  const auto range = [](const TensorMap::value_type* entry) {
    return std::pair(entry->second.data.data(), entry->second.data.size());
  };
  std::ranges::sort(by_offset, {}, range);
  const std::byte* next = data.data();
  for (const auto* entry : by_offset) {
    const std::byte* begin = entry->second.data.data();
    require(begin == next, "{}: tensor {} starts at byte {} of the data, expected {}: {}", where,
            shown(entry->first), begin - data.data(), next - data.data(),
            begin < next ? "it overlaps another tensor" : "nothing describes the bytes between");
    next = begin + entry->second.data.size();
  }
  require(next == data.data() + data.size(),
          "{}: {} bytes of data, but the tensors describe {}; the file is not complete or has "
          "something appended",
          where, data.size(), next - data.data());
}

}  // namespace

TensorMap parse_safetensors(std::span<const std::byte> file, std::string_view where,
                            Metadata* metadata) {
  uint64_t header_bytes = 0;
  require(file.size() > sizeof header_bytes,
          "{}: {} bytes, too short to be a safetensors file; download it again", where,
          file.size());
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  file = file.subspan(sizeof header_bytes);
  require(header_bytes <= kMaxHeaderBytes,
          "{}: the header says it has {} bytes, at most {} are read: not a safetensors file?",
          where, header_bytes, kMaxHeaderBytes);
  require(header_bytes <= file.size(),
          "{}: the header says it has {} bytes, but the file ends after {}; download it again",
          where, header_bytes, file.size());
  const std::string_view header(reinterpret_cast<const char*>(file.data()), header_bytes);
  require(header.starts_with('{'),
          "{}: the header does not start with '{{': not a safetensors file", where);
  const std::span<const std::byte> data = file.subspan(header_bytes);

  const std::string header_where = fmt::format("{}: header", where);
  const Json json = parse_json(header, header_where);
  require(json.size() <= kMaxTensors, "{}: {} tensors, at most {} are read", where, json.size(),
          kMaxTensors);
  TensorMap tensors;
  for (const auto& [name, fields] : json.items()) {
    if (name == "__metadata__") {
      if (metadata == nullptr) continue;
      const Fields texts(fields, fmt::format("{}: __metadata__", header_where));
      for (const auto& [key, value] : fields.items()) metadata->emplace(key, texts.string(key));
      continue;
    }
    require(name.size() <= kMaxNameBytes, "{}: the name {}... has {} bytes, at most {} are read",
            where, shown(name), name.size(), kMaxNameBytes);
    tensors.emplace(name,
                    parse_tensor(fields, fmt::format("{}: tensor {}", where, shown(name)), data));
  }
  check_coverage(tensors, data, where);
  return tensors;
}

std::string safetensors_header(std::span<const std::pair<std::string, TensorInfo>> tensors,
                               const Metadata& metadata) {
  OrderedJson header;
  header["__metadata__"] = metadata;
  uint64_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t begin = end;
    end += tensor.data.size();
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t n_bytes = text.size();
  return std::string(reinterpret_cast<const char*>(&n_bytes), sizeof n_bytes) + text;
}

namespace {

// What older checkpoints have, and what to do with it.
std::string instead_of_safetensors(const std::filesystem::path& dir) {
  if (!std::filesystem::is_directory(dir)) return "";
  for (const auto& entry : std::filesystem::directory_iterator(dir))
    for (const char* extension : {".bin", ".pth", ".pt"})
      if (entry.path().extension() == extension)
        return "; " + entry.path().filename().string() +
               " is a pickle, which may run code and is not read: save the model as safetensors "
               "with transformers (from_pretrained, save_pretrained)";
  return "";
}

}  // namespace

Checkpoint::Checkpoint(const std::filesystem::path& dir) {
  const auto single = dir / "model.safetensors";
  const auto index = dir / "model.safetensors.index.json";
  if (file_exists(single) || !file_exists(index)) {
    if (!file_exists(single))
      fail("{}: neither model.safetensors nor model.safetensors.index.json is there{}",
           dir.string(), instead_of_safetensors(dir));
    path_ = single.string();
    const SafetensorsFile& file = files_.emplace_back(single);
    for (const auto& [name, tensor] : file.tensors())
      entries_.emplace(name, TensorEntry{&tensor, &file.path()});
  } else {
    path_ = index.string();
    const Json json = read_json(index, {.max_bytes = kMaxHeaderBytes, .max_depth = 64});
    const Json& weight_map = Fields(json, path_).at("weight_map");
    const Fields shard_of(weight_map, path_ + ": weight_map");
    std::map<std::string, size_t> file_of;  // by the shard's name
    for (const auto& [name, value] : weight_map.items()) {
      const std::string shard = shard_of.string(name);
      // One plain name in the same directory: a path could reach any file of the machine.
      require(shard.ends_with(".safetensors") && shard.find('/') == std::string::npos &&
                  shard.find("..") == std::string::npos && shard.find('\0') == std::string::npos,
              "{}: weight_map: tensor {} is in {}, expected the name of a .safetensors file in the "
              "same directory",
              path_, shown(name), shown(shard));
      file_of.emplace(shard, 0);
    }
    for (auto& [shard, file] : file_of) {
      require(file_exists(dir / shard), "{}: shard {} is missing; download the model again", path_,
              shown(shard));
      file = files_.size();
      files_.emplace_back(dir / shard);
    }
    for (const auto& [name, value] : weight_map.items()) {
      const SafetensorsFile& file = files_[file_of.at(value)];
      const auto tensor = file.tensors().find(name);
      require(tensor != file.tensors().end(), "{}: tensor {} is missing, which {} places there",
              file.path(), shown(name), path_);
      entries_.emplace(tensor->first, TensorEntry{&tensor->second, &file.path()});
    }
  }
}

const TensorEntry* Checkpoint::find(std::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second;
}

void Checkpoint::check_size() const {
  for (const SafetensorsFile& file : files_) file.check_size();
}

void Checkpoint::let_go(std::span<const std::byte> part) const {
  for (const SafetensorsFile& file : files_) file.let_go(part);
}

}  // namespace ei
