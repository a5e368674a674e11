#include "ei/io/gguf.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei {
namespace {

static_assert(std::endian::native == std::endian::little, "values are used as the files have them");

constexpr uint64_t kMaxEntries = 65536;  // keys, and tensors
constexpr uint64_t kMaxKeyBytes = 512;
constexpr uint32_t kMaxGgufDims = 4;
constexpr uint64_t kMaxAlignment = 1 << 16;
constexpr int64_t kMaxParts = 1024;

// Types of metadata by their numbers. A string is its length in 8 bytes and its bytes.
enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kEnd
};
constexpr uint64_t kValueBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};

// Types of tensors by their numbers.
struct TensorType {
  uint32_t number;
  const char* name;
  int64_t block, bytes;
};
constexpr TensorType kTensorTypes[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 40},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36}};

// Reads what comes next, and throws Error when the file ends before.
class Cursor {
 public:
  Cursor(std::span<const std::byte> file, std::string_view where) : file_(file), where_(where) {}

  std::span<const std::byte> bytes(uint64_t n, std::string_view what) {
    require(n <= left(),
            "{}: {} takes {} bytes at byte {}, but the file ends after {} more; download it again",
            where_, what, n, at_, left());
    at_ += n;
    return file_.subspan(at_ - n, n);
  }
  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, bytes(sizeof value, what).data(), sizeof value);
    return value;
  }
  std::string_view string(std::string_view what) {
    const auto text = bytes(number<uint64_t>(what), what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  uint64_t at() const { return at_; }
  uint64_t left() const { return file_.size() - at_; }
  std::span<const std::byte> since(uint64_t begin) const {
    return file_.subspan(begin, at_ - begin);
  }

 private:
  std::span<const std::byte> file_;
  std::string_view where_;
  uint64_t at_ = 0;
};

GgufMetadata::Value read_value(Cursor& in, std::string_view key, std::string_view where) {
  GgufMetadata::Value value{.type = in.number<uint32_t>(key), .bytes = {}};
  if (value.type == kArray) {
    value = {.type = in.number<uint32_t>(key), .is_array = true, .bytes = {}};
    value.count = in.number<uint64_t>(key);
    require(value.type != kArray, "{}: key {} is an array of arrays, which is not supported", where,
            key);
  }
  require(value.type < kEnd, "{}: key {} has the type {}, expected less than {}", where, key,
          value.type, static_cast<uint32_t>(kEnd));
  require(value.count <= in.left() / kValueBytes[value.type],
          "{}: key {} has {} values, but the file ends after {} more bytes; download it again",
          where, key, value.count, in.left());
  const uint64_t begin = in.at();
  if (value.type == kString) {
    for (uint64_t i = 0; i < value.count; ++i) in.string(key);
  } else {
    in.bytes(value.count * kValueBytes[value.type], key);
  }
  value.bytes = in.since(begin);
  return value;
}

const TensorType& tensor_type(uint32_t number, std::string_view where) {
  for (const TensorType& type : kTensorTypes)
    if (type.number == number) return type;
  fail("{}: the type is {}, which is not known; the file may be newer than this program", where,
       number);
}

struct Placed {
  std::string name;
  uint64_t offset;
  uint64_t bytes;
};

Placed read_tensor(Cursor& in, TensorMap& tensors, std::string_view file) {
  const std::string name(in.string("the name of a tensor"));
  require(name.size() <= kMaxKeyBytes, "{}: the name {}... has {} bytes, at most {} are read", file,
          shown(name), name.size(), kMaxKeyBytes);
  const std::string where = fmt::format("{}: tensor {}", file, shown(name));
  const auto n_dims = in.number<uint32_t>("the number of dimensions");
  require(n_dims <= kMaxGgufDims, "{}: {} dimensions, at most {} are read", where, n_dims,
          kMaxGgufDims);
  TensorInfo tensor;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const auto dim = in.number<uint64_t>("a dimension");
    require(dim <= INT64_MAX, "{}: dimension {} is {}", where, i, dim);
    tensor.shape.insert(tensor.shape.begin(),
                        static_cast<int64_t>(dim));  // the file's are [inner, ...]
  }
  const TensorType& type = tensor_type(in.number<uint32_t>("the type of a tensor"), where);
  tensor.dtype = type.name;
  const int64_t inner = n_dims == 0 ? 1 : tensor.shape.back();
  require(inner % type.block == 0, "{}: rows of {} are no whole blocks of {}, as {} needs", where,
          inner, type.block, type.name);
  int64_t bytes = inner / type.block;
  bool fits = !__builtin_mul_overflow(bytes, type.bytes, &bytes);
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i)
    fits = fits && !__builtin_mul_overflow(bytes, tensor.shape[i], &bytes);
  int64_t elements = 1;
  for (const int64_t dim : tensor.shape)
    fits = fits && !__builtin_mul_overflow(elements, dim, &elements);
  require(fits, "{}: the tensor has more than 2^63 bytes", where);
  const auto offset = in.number<uint64_t>("the offset of a tensor");
  require(tensors.emplace(name, std::move(tensor)).second, "{}: the name is there twice", where);
  return {name, offset, static_cast<uint64_t>(bytes)};
}

// Points every tensor at its bytes within the data, which they may share with nobody.
void place_tensors(std::vector<Placed>& placed, TensorMap& tensors, std::span<const std::byte> data,
                   uint64_t alignment, std::string_view where) {
  std::ranges::sort(placed, {}, [](const Placed& p) { return std::pair(p.offset, p.bytes); });
  uint64_t end = 0;
  for (const Placed& p : placed) {
    require(p.offset % alignment == 0, "{}: tensor {} starts at byte {}, expected a multiple of {}",
            where, shown(p.name), p.offset, alignment);
    require(
        p.offset <= data.size() && p.bytes <= data.size() - p.offset,
        "{}: tensor {} takes {} bytes from byte {} on, but the file has {} bytes of data; a file "
        "that is cut short must be downloaded again",
        where, shown(p.name), p.bytes, p.offset, data.size());
    require(p.offset >= end, "{}: tensor {} starts at byte {}, where another one is", where,
            shown(p.name), p.offset);
    end = p.offset + p.bytes;
    tensors.find(p.name)->second.data = data.subspan(p.offset, p.bytes);
  }
}

// The element at `bytes`, which are of `type`, as any number.
template <class To>
To number_at(uint32_t type, const std::byte* bytes) {
  const auto as = [&]<class T>(T value) {
    std::memcpy(&value, bytes, sizeof value);
    return static_cast<To>(value);
  };
  switch (type) {
    case kU8:
      return as(uint8_t{});
    case kI8:
      return as(int8_t{});
    case kU16:
      return as(uint16_t{});
    case kI16:
      return as(int16_t{});
    case kU32:
      return as(uint32_t{});
    case kI32:
      return as(int32_t{});
    case kU64:
      return as(uint64_t{});
    case kI64:
      return as(int64_t{});
    case kF32:
      return as(float{});
    default:
      return as(double{});
  }
}
bool is_float(uint32_t type) { return type == kF32 || type == kF64; }
bool is_number(uint32_t type) { return type != kBool && type != kString; }

// NAME-00001-of-0000N.gguf: N, and where the number of the part stands; else 1.
struct SplitName {
  static constexpr size_t kSuffix = sizeof("-00001-of-00001.gguf") - 1;
  int64_t part = 1, count = 1;

  explicit SplitName(const std::string& name) {
    if (name.size() < kSuffix) return;
    const std::string_view suffix = std::string_view(name).substr(name.size() - kSuffix);
    int64_t numbers[2];
    for (const size_t i : {0, 1}) {
      const char* digits = suffix.data() + 1 + 9 * i;
      if (std::from_chars(digits, digits + 5, numbers[i]).ptr != digits + 5) return;
    }
    if (suffix[0] != '-' || suffix.substr(6, 4) != "-of-" || !suffix.ends_with(".gguf")) return;
    part = numbers[0];
    count = numbers[1];
  }
};

}  // namespace

void GgufMetadata::add(std::string_view key, const Value& value) {
  require(values_.emplace(key, value).second, "{}: key {} is there twice", where_, shown(key));
}

void GgufMetadata::wrong_type(std::string_view key, const Value& value,
                              std::string_view expected) const {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  fail("{}: key {} is {} {}, expected {}", where_, key, value.is_array ? "an array of" : "of type",
       kNames[value.type], expected);
}

const GgufMetadata::Value& GgufMetadata::scalar(std::string_view key) const {
  const auto it = values_.find(key);
  require(it != values_.end(), "{}: key {} is missing", where_, key);
  if (it->second.is_array) wrong_type(key, it->second, "one value");
  return it->second;
}

int64_t GgufMetadata::integer(std::string_view key, int64_t min, int64_t max) const {
  const Value& value = scalar(key);
  if (!is_number(value.type) || is_float(value.type)) wrong_type(key, value, "an integer");
  const auto found = number_at<int64_t>(value.type, value.bytes.data());
  const bool wraps = value.type == kU64 && found < 0;
  require(!wraps && found >= min && found <= max,
          "{}: key {} is {}, expected an integer from {} to {}", where_, key,
          wraps ? "more than 2^63" : std::to_string(found), min, max);
  return found;
}

int64_t GgufMetadata::integer(std::string_view key, int64_t min, int64_t max,
                              int64_t fallback) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double GgufMetadata::number(std::string_view key, double min, double max) const {
  const Value& value = scalar(key);
  if (!is_number(value.type)) wrong_type(key, value, "a number");
  const auto found = number_at<double>(value.type, value.bytes.data());
  require(found >= min && found <= max, "{}: key {} is {}, expected a number from {} to {}", where_,
          key, found, min, max);
  return found;
}

double GgufMetadata::number(std::string_view key, double min, double max, double fallback) const {
  return has(key) ? number(key, min, max) : fallback;
}

bool GgufMetadata::boolean(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  const Value& value = scalar(key);
  if (value.type != kBool) wrong_type(key, value, "a bool");
  return value.bytes[0] != std::byte{0};
}

std::string_view GgufMetadata::string(std::string_view key) const {
  const Value& value = scalar(key);
  if (value.type != kString) wrong_type(key, value, "a string");
  return Cursor(value.bytes, where_).string(key);
}

std::string_view GgufMetadata::string(std::string_view key, std::string_view fallback) const {
  return has(key) ? string(key) : fallback;
}

const GgufMetadata::Value* GgufMetadata::array(std::string_view key, uint64_t max_count) const {
  const auto it = values_.find(key);
  if (it == values_.end()) return nullptr;
  if (!it->second.is_array) wrong_type(key, it->second, "an array");
  require(it->second.count <= max_count, "{}: key {} has {} elements, at most {} are read", where_,
          key, it->second.count, max_count);
  return &it->second;
}

std::vector<std::string_view> GgufMetadata::strings(std::string_view key,
                                                    uint64_t max_count) const {
  const Value* value = array(key, max_count);
  if (value == nullptr) return {};
  if (value->type != kString) wrong_type(key, *value, "an array of strings");
  std::vector<std::string_view> strings(value->count);
  Cursor in(value->bytes, where_);
  for (std::string_view& string : strings) string = in.string(key);
  return strings;
}

std::vector<int64_t> GgufMetadata::integers(std::string_view key, uint64_t max_count) const {
  const Value* value = array(key, max_count);
  if (value == nullptr) return {};
  if (!is_number(value->type) || is_float(value->type))
    wrong_type(key, *value, "an array of integers");
  std::vector<int64_t> numbers(value->count);
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] =
        number_at<int64_t>(value->type, value->bytes.data() + i * kValueBytes[value->type]);
  return numbers;
}

std::vector<float> GgufMetadata::numbers(std::string_view key, uint64_t max_count) const {
  const Value* value = array(key, max_count);
  if (value == nullptr) return {};
  if (!is_number(value->type)) wrong_type(key, *value, "an array of numbers");
  std::vector<float> numbers(value->count);
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = number_at<float>(value->type, value->bytes.data() + i * kValueBytes[value->type]);
  return numbers;
}

GgufPart parse_gguf(std::span<const std::byte> file, std::string_view where) {
  Cursor in(file, where);
  const auto magic = in.bytes(4, "the magic number");
  require(std::memcmp(magic.data(), "GGUF", 4) == 0,
          "{}: does not start with GGUF: not a GGUF file", where);
  const auto version = in.number<uint32_t>("the version");
  require(version == 2 || version == 3,
          "{}: version {} of GGUF{}, expected 2 or 3; convert the model again", where, version,
          (version & 0xFFFF) == 0 ? " (big-endian?)" : "");
  const auto n_tensors = in.number<uint64_t>("the number of tensors");
  const auto n_keys = in.number<uint64_t>("the number of keys");
  require(n_tensors <= kMaxEntries && n_keys <= kMaxEntries,
          "{}: {} tensors and {} keys, at most {} of each are read", where, n_tensors, n_keys,
          kMaxEntries);

  GgufPart part{GgufMetadata(std::string(where)), {}};
  for (uint64_t i = 0; i < n_keys; ++i) {
    const std::string_view key = in.string("a key");
    require(key.size() <= kMaxKeyBytes, "{}: the key {}... has {} bytes, at most {} are read",
            where, shown(key), key.size(), kMaxKeyBytes);
    part.metadata.add(key, read_value(in, shown(key), where));
  }
  const auto alignment =
      static_cast<uint64_t>(part.metadata.integer("general.alignment", 1, kMaxAlignment, 32));
  require(std::has_single_bit(alignment),
          "{}: key general.alignment is {}, expected a power of two", where, alignment);

  std::vector<Placed> placed;
  for (uint64_t i = 0; i < n_tensors; ++i) placed.push_back(read_tensor(in, part.tensors, where));
  const uint64_t data = (in.at() + alignment - 1) / alignment * alignment;
  place_tensors(placed, part.tensors, file.subspan(std::min<uint64_t>(data, file.size())),
                alignment, where);
  return part;
}

GgufFile::GgufFile(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  const SplitName split(name);
  const std::string stem = name.substr(0, name.size() - std::min(name.size(), SplitName::kSuffix));
  const auto part = [&](int64_t i) {
    return path.parent_path() / fmt::format("{}-{:05}-of-{:05}.gguf", stem, i, split.count);
  };
  require(split.count >= 1 && split.count <= kMaxParts, "{}: of {} parts, expected 1 to {}",
          path.string(), split.count, kMaxParts);
  require(split.part == 1, "{}: part {} of {}; give the first, {}", path.string(), split.part,
          split.count, part(1).string());
  open(path);
  for (int64_t i = 2; i <= split.count; ++i) {
    require(file_exists(part(i)), "{}: part {} of {} is missing: {}", path.string(), i, split.count,
            part(i).string());
    open(part(i));
  }

  size_t n_tensors = 0;
  for (size_t i = 0; i < files_.size(); ++i) {
    const GgufMetadata& metadata = parts_[i].metadata;
    const int64_t count = metadata.integer("split.count", 0, UINT16_MAX, 1);
    const int64_t number = metadata.integer("split.no", 0, UINT16_MAX, 0);
    require(std::max<int64_t>(count, 1) == split.count && number == static_cast<int64_t>(i),
            "{}: says that it is part {} of {}, expected {} of {} by its name", files_[i].path(),
            number + 1, count, i + 1, split.count);
    n_tensors += parts_[i].tensors.size();
    for (const auto& [tensor_name, tensor] : parts_[i].tensors)
      require(entries_.emplace(tensor_name, TensorEntry{&tensor, &files_[i].path()}).second,
              "{}: tensor {} is in another part as well", files_[i].path(), shown(tensor_name));
  }
  const int64_t expected =
      metadata().integer("split.tensors.count", 0, INT32_MAX, static_cast<int64_t>(n_tensors));
  require(expected == 0 || static_cast<size_t>(expected) == n_tensors,
          "{}: {} tensors in all parts, expected {}", this->path(), n_tensors, expected);
}

void GgufFile::open(const std::filesystem::path& path) {
  const MappedFile& file = files_.emplace_back(path);
  parts_.push_back(parse_gguf(file.bytes(), file.path()));
}

const TensorEntry* GgufFile::find(std::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second;
}

void GgufFile::check_size() const {
  for (const MappedFile& file : files_) file.check_size();
}

void GgufFile::let_go(std::span<const std::byte> part) const {
  for (const MappedFile& file : files_) file.let_go(part);
}

}  // namespace ei
