#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ei/base/error.h"

namespace ei {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // keeps the order of keys

struct JsonLimits {
  size_t max_bytes = 256u << 20;
  int max_depth = 64;
  // Of memory for values, beside the characters of strings: about 32 bytes for a number and 100 for
  // a field, of which two and seven bytes of text are enough.
  size_t max_value_bytes = SIZE_MAX;
};

// Parses foreign JSON. Throws Error naming `where` (a path, or what the text is) when the text is
// larger or deeper than `limits`, is not JSON or not UTF-8, is followed by anything but white
// space, or has an object with a duplicate key.
Json parse_json(std::string_view text, std::string_view where, JsonLimits limits = {});
// The same with objects whose keys are in the text's order.
OrderedJson parse_ordered_json(std::string_view text, std::string_view where,
                               JsonLimits limits = {});

// The same for a file; throws Error when it cannot be read.
Json read_json(const std::filesystem::path& path, JsonLimits limits = {});

// A string out of a file, fit to be printed: foreign, perhaps long, perhaps full of control bytes.
std::string shown(std::string_view text);

// Throws Error when it cannot be known: a directory without permission, a loop of links.
bool file_exists(const std::filesystem::path& path);

// A whole file as bytes. Throws Error naming the path when it is missing, unreadable, not a regular
// file, longer than `max_bytes` or one that git-lfs has not fetched.
std::string read_file(const std::filesystem::path& path, size_t max_bytes = size_t{4} << 30);

// What is wrong with one field of an object that came from `where`.
class FieldError : public Error {
 public:
  FieldError(std::string where, std::string_view field, const std::string& what)
      : Error(what), where(std::move(where)), field(field) {}
  std::string where, field;
};

// Typed access to the fields of a JSON object that came from `where`. All throw FieldError naming
// `where`, the field, the type expected and the value found. 100.0 is the integer 100.
template <class J>
class BasicFields {
 public:
  BasicFields(const J& object, std::string_view where);

  bool has(std::string_view key) const;  // present and not null
  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  std::vector<int64_t> integers(std::string_view key, int64_t min, int64_t max) const;  // a list
  double number(std::string_view key, double min, double max) const;
  double number(std::string_view key, double min, double max, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string string(std::string_view key) const;
  std::string string(std::string_view key, std::string_view fallback) const;
  const J& at(std::string_view key) const;
  const std::string& where() const { return where_; }

 private:
  const J& object_;
  std::string where_;
};
using Fields = BasicFields<Json>;
using OrderedFields = BasicFields<OrderedJson>;

}  // namespace ei
