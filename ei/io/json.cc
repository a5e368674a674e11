#include "ei/io/json.h"

#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "ei/base/fail.h"
#include "ei/io/mapped_file.h"

namespace ei {
namespace {

// What an error message shows of a value: enough to recognise it, never a whole vocabulary.
std::string brief(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// is_number_integer() also holds for unsigned values beyond int64, which get() would wrap.
bool is_integer(const Json& value, int64_t min, int64_t max) {
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
  return fits && value.get<int64_t>() >= min && value.get<int64_t>() <= max;
}

// Builds a value from the parser's events. Unlike nlohmann's own builder, which keeps the last of
// duplicate keys silently, it refuses them.
class Builder final : public Json::json_sax_t {
 public:
  Builder(std::string_view where, int max_depth) : where_(where), max_depth_(max_depth) {}

  Json take() { return std::move(root_); }

  bool null() override { return place(nullptr); }
  bool boolean(bool value) override { return place(value); }
  bool number_integer(int64_t value) override { return place(value); }
  bool number_unsigned(uint64_t value) override { return place(value); }
  bool number_float(double value, const std::string&) override { return place(value); }
  bool string(std::string& value) override { return place(std::move(value)); }
  bool binary(Json::binary_t&) override { return false; }  // not in JSON text
  bool start_object(size_t) override { return open(Json::value_t::object); }
  bool start_array(size_t) override { return open(Json::value_t::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    const auto [it, is_new] = open_.back()->get_ref<Json::object_t&>().try_emplace(std::move(name));
    if (!is_new) fail("{}: duplicate key {}", where_, brief(Json(it->first)));
    value_ = &it->second;
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    fail("{}: not valid JSON: {}", where_, error.what());
  }

 private:
  Json& next() {
    if (open_.empty()) return root_;
    if (open_.back()->is_array()) return open_.back()->emplace_back();
    return *value_;
  }
  template <class T>
  bool place(T&& value) {
    next() = std::forward<T>(value);
    return true;
  }
  bool open(Json::value_t type) {
    require(static_cast<int>(open_.size()) < max_depth_, "{}: JSON nested deeper than {} levels",
            where_, max_depth_);
    Json& value = next();
    value = type;
    open_.push_back(&value);
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view where_;
  int max_depth_;
  Json root_;
  std::vector<Json*> open_;  // the arrays and objects around the next value
  Json* value_ = nullptr;    // of the last key
};

}  // namespace

Json parse_json(std::string_view text, std::string_view where, JsonLimits limits) {
  require(text.size() <= limits.max_bytes, "{}: {} bytes of JSON, at most {} are read", where,
          text.size(), limits.max_bytes);
  // The parser would take it for the end of the text.
  require(text.find('\0') == text.npos, "{}: not valid JSON: it holds a zero byte", where);
  Builder builder(where, limits.max_depth);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

bool file_exists(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  require(status.type() != std::filesystem::file_type::none, "{}: {}", path.string(),
          error.message());
  return std::filesystem::exists(status);
}

std::string read_file(const std::filesystem::path& path, size_t max_bytes) {
  std::error_code error;
  require(file_exists(path), "{}: no such file", path.string());
  require(std::filesystem::is_regular_file(path, error), "{}: not a regular file", path.string());
  std::ifstream in(path, std::ios::binary);
  require(in.good(), "{}: cannot be opened; check its permissions", path.string());
  const auto size = std::filesystem::file_size(path, error);
  require(!error, "{}: its size cannot be read: {}", path.string(), error.message());
  require(size <= max_bytes, "{}: {} bytes, at most {} are read", path.string(), size, max_bytes);
  std::string bytes(size, '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(size));
  require(in.gcount() == static_cast<std::streamsize>(size), "{}: read {} of {} bytes",
          path.string(), in.gcount(), size);
  refuse_lfs_pointer(bytes, path.string());
  return bytes;
}

Json read_json(const std::filesystem::path& path, JsonLimits limits) {
  return parse_json(read_file(path, limits.max_bytes), path.string(), limits);
}

Fields::Fields(const Json& object, std::string_view where) : object_(object), where_(where) {
  // Not require(): it would print the object every time.
  if (!object.is_object()) fail("{}: expected a JSON object, found {}", where, brief(object));
}

bool Fields::has(std::string_view key) const {
  const auto it = object_.find(key);
  return it != object_.end() && !it->is_null();
}

const Json& Fields::at(std::string_view key) const {
  require(has(key), "{}: field \"{}\" is missing", where_, key);
  return *object_.find(key);
}

int64_t Fields::integer(std::string_view key, int64_t min, int64_t max) const {
  const Json& value = at(key);
  require(is_integer(value, min, max), "{}: field \"{}\" is {}, expected an integer from {} to {}",
          where_, key, brief(value), min, max);
  return value.get<int64_t>();
}

int64_t Fields::integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
  return has(key) ? integer(key, min, max) : fallback;
}

std::vector<int64_t> Fields::integers(std::string_view key, int64_t min, int64_t max) const {
  const Json& list = at(key);
  require(list.is_array(), "{}: field \"{}\" is {}, expected a list of integers", where_, key,
          brief(list));
  for (const Json& value : list)
    require(is_integer(value, min, max),
            "{}: field \"{}\" holds {}, expected integers from {} to {}", where_, key, brief(value),
            min, max);
  return list.get<std::vector<int64_t>>();
}

double Fields::number(std::string_view key, double min, double max) const {
  const Json& value = at(key);
  require(value.is_number() && value.get<double>() >= min && value.get<double>() <= max,
          "{}: field \"{}\" is {}, expected a number from {} to {}", where_, key, brief(value), min,
          max);
  return value.get<double>();
}

double Fields::number(std::string_view key, double min, double max, double fallback) const {
  return has(key) ? number(key, min, max) : fallback;
}

bool Fields::boolean(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  const Json& value = at(key);
  require(value.is_boolean(), "{}: field \"{}\" is {}, expected true or false", where_, key,
          brief(value));
  return value.get<bool>();
}

std::string Fields::string(std::string_view key) const {
  const Json& value = at(key);
  require(value.is_string(), "{}: field \"{}\" is {}, expected a string", where_, key,
          brief(value));
  return value.get<std::string>();
}

std::string Fields::string(std::string_view key, std::string_view fallback) const {
  return has(key) ? string(key) : std::string(fallback);
}

}  // namespace ei
