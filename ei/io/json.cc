#include "ei/io/json.h"

#include <cmath>
#include <fstream>
#include <system_error>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ei/base/fail.h"
#include "ei/io/mapped_file.h"

namespace ei {
namespace {

// What an error message shows of a value: enough to recognise it, never a whole vocabulary.
template <class J>
std::string brief(const J& value) {
  std::string text = value.dump(-1, ' ', true, J::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// is_number_integer() also holds for unsigned values beyond int64, which get() would wrap; a double
// is whole and exact up to 2^53.
template <class J>
bool is_integer(const J& value, int64_t min, int64_t max) {
  if (value.is_number_float()) {
    const double x = value.template get<double>();
    return std::abs(x) <= 0x1p53 && x == std::trunc(x) && x >= double(min) && x <= double(max);
  }
  const bool fits =
      value.is_number_integer() &&
      !(value.is_number_unsigned() && value.template get<uint64_t>() > uint64_t{INT64_MAX});
  return fits && value.template get<int64_t>() >= min && value.template get<int64_t>() <= max;
}

template <class J>
int64_t to_integer(const J& value) {
  return value.is_number_float() ? static_cast<int64_t>(value.template get<double>())
                                 : value.template get<int64_t>();
}

// Builds a value from the parser's events, with the limits given. Unlike nlohmann's own builder,
// which keeps the last of duplicate keys silently, it refuses them.
template <class J>
class Builder final : public nlohmann::json_sax<J> {
 public:
  Builder(std::string_view where, JsonLimits limits) : where_(where), limits_(limits) {}

  J take() { return std::move(root_); }

  bool null() override { return place(nullptr); }
  bool boolean(bool value) override { return place(value); }
  bool number_integer(int64_t value) override { return place(value); }
  bool number_unsigned(uint64_t value) override { return place(value); }
  bool number_float(double value, const std::string&) override { return place(value); }
  bool string(std::string& value) override {
    count(kHeapBytes);
    return place(std::move(value));
  }
  bool binary(typename J::binary_t&) override { return false; }  // not in JSON text
  bool start_object(size_t) override {
    if constexpr (std::is_same_v<J, OrderedJson>) keys_.emplace_back();
    return open(J::value_t::object);
  }
  bool start_array(size_t) override { return open(J::value_t::array); }
  bool end_object() override {
    if constexpr (std::is_same_v<J, OrderedJson>) keys_.pop_back();
    return close();
  }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    count(kHeapBytes);
    auto& object = open_.back()->template get_ref<typename J::object_t&>();
    if constexpr (std::is_same_v<J, OrderedJson>) {
      // Its own search for a key is linear.
      if (!keys_.back().insert(name).second) duplicate(name);
      std::vector<typename J::object_t::value_type>& entries = object;
      value_ = &entries.emplace_back(std::move(name), nullptr).second;
    } else {
      const auto [it, is_new] = object.try_emplace(std::move(name));
      if (!is_new) duplicate(it->first);
      value_ = &it->second;
    }
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    fail("{}: not valid JSON: {}", where_, error.what());
  }

 private:
  static constexpr size_t kValueBytes = 32;  // twice the size: arrays grow by doubling
  static constexpr size_t kHeapBytes = 64;   // of what a value points to

  [[noreturn]] void duplicate(const std::string& name) {
    fail("{}: duplicate key {}", where_, brief(Json(name)));
  }
  void count(size_t bytes) {
    n_bytes_ += bytes;
    require(n_bytes_ <= limits_.max_value_bytes, "{}: its JSON has too many values: {} bytes",
            where_, limits_.max_value_bytes);
  }
  J& next() {
    count(kValueBytes);
    if (open_.empty()) return root_;
    if (open_.back()->is_array()) {
      auto& array = open_.back()->template get_ref<typename J::array_t&>();
      return array.emplace_back();
    }
    return *value_;
  }
  template <class T>
  bool place(T&& value) {
    next() = std::forward<T>(value);
    return true;
  }
  bool open(typename J::value_t type) {
    require(static_cast<int>(open_.size()) < limits_.max_depth,
            "{}: JSON nested deeper than {} levels", where_, limits_.max_depth);
    count(kHeapBytes);
    J& value = next();
    value = type;
    open_.push_back(&value);
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view where_;
  JsonLimits limits_;
  size_t n_bytes_ = 0;
  J root_;
  std::vector<J*> open_;  // the arrays and objects around the next value
  J* value_ = nullptr;    // of the last key
  std::vector<std::unordered_set<std::string>> keys_;  // of the open objects, if they are ordered
};

template <class J>
J parse(std::string_view text, std::string_view where, JsonLimits limits) {
  require(text.size() <= limits.max_bytes, "{}: {} bytes of JSON, at most {} are read", where,
          text.size(), limits.max_bytes);
  // The parser would take it for the end of the text.
  require(text.find('\0') == text.npos, "{}: not valid JSON: it holds a zero byte", where);
  Builder<J> builder(where, limits);
  J::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

template <class... Args>
void check(bool ok, const std::string& where, std::string_view field,
           fmt::format_string<Args...> format, Args&&... args) {
  if (ok) return;
  throw FieldError(where, field,
                   fmt::format("{}: field \"{}\" ", where, field) +
                       fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

Json parse_json(std::string_view text, std::string_view where, JsonLimits limits) {
  return parse<Json>(text, where, limits);
}

OrderedJson parse_ordered_json(std::string_view text, std::string_view where, JsonLimits limits) {
  return parse<OrderedJson>(text, where, limits);
}

std::string shown(std::string_view text) {
  return Json(text.substr(0, 80)).dump(-1, ' ', true, Json::error_handler_t::replace);
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

template <class J>
BasicFields<J>::BasicFields(const J& object, std::string_view where)
    : object_(object), where_(where) {
  // Not require(): it would print the object every time.
  if (!object.is_object()) fail("{}: expected a JSON object, found {}", where, brief(object));
}

template <class J>
bool BasicFields<J>::has(std::string_view key) const {
  const auto it = object_.find(key);
  return it != object_.end() && !it->is_null();
}

template <class J>
const J& BasicFields<J>::at(std::string_view key) const {
  check(has(key), where_, key, "is missing");
  return *object_.find(key);
}

template <class J>
int64_t BasicFields<J>::integer(std::string_view key, int64_t min, int64_t max) const {
  const J& value = at(key);
  check(is_integer(value, min, max), where_, key, "is {}, expected an integer from {} to {}",
        brief(value), min, max);
  return to_integer(value);
}

template <class J>
int64_t BasicFields<J>::integer(std::string_view key, int64_t min, int64_t max,
                                int64_t fallback) const {
  return has(key) ? integer(key, min, max) : fallback;
}

template <class J>
std::vector<int64_t> BasicFields<J>::integers(std::string_view key, int64_t min,
                                              int64_t max) const {
  const J& list = at(key);
  check(list.is_array(), where_, key, "is {}, expected a list of integers", brief(list));
  for (const J& value : list)
    check(is_integer(value, min, max), where_, key, "holds {}, expected integers from {} to {}",
          brief(value), min, max);
  std::vector<int64_t> values;
  for (const J& value : list) values.push_back(to_integer(value));
  return values;
}

template <class J>
double BasicFields<J>::number(std::string_view key, double min, double max) const {
  const J& value = at(key);
  check(value.is_number() && value.template get<double>() >= min &&
            value.template get<double>() <= max,
        where_, key, "is {}, expected a number from {} to {}", brief(value), min, max);
  return value.template get<double>();
}

template <class J>
double BasicFields<J>::number(std::string_view key, double min, double max, double fallback) const {
  return has(key) ? number(key, min, max) : fallback;
}

template <class J>
bool BasicFields<J>::boolean(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  const J& value = at(key);
  check(value.is_boolean(), where_, key, "is {}, expected true or false", brief(value));
  return value.template get<bool>();
}

template <class J>
std::string BasicFields<J>::string(std::string_view key) const {
  const J& value = at(key);
  check(value.is_string(), where_, key, "is {}, expected a string", brief(value));
  return value.template get<std::string>();
}

template <class J>
std::string BasicFields<J>::string(std::string_view key, std::string_view fallback) const {
  return has(key) ? string(key) : std::string(fallback);
}

template class BasicFields<Json>;
template class BasicFields<OrderedJson>;

}  // namespace ei
