#include "ei/engine/session_file.h"

#include <cstring>

#include "ei/base/fail.h"
#include "ei/io/checksum.h"

namespace ei {
namespace {

constexpr const char* kSessionFormat = "entropyinfer session 1";
constexpr size_t kWord = sizeof(uint64_t);

}  // namespace

std::vector<std::byte> SessionHead::bytes() const {
  const std::string text = OrderedJson{
      {"format", kSessionFormat},
      {"model", model},
      {"policy", policy},
      {"note", note}}.dump();
  std::vector<std::byte> bytes(text.size() + kWord);
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

void write_piece(NewFile& file, std::span<const std::byte> bytes) {
  const uint64_t n_bytes = bytes.size();
  file.write(std::as_bytes(std::span(&n_bytes, 1)));
  file.write(bytes);
}

SessionFile parse_session(std::span<const std::byte> file, std::string_view where) {
  std::vector<std::span<const std::byte>> pieces;
  while (!file.empty()) {
    uint64_t n_bytes = 0;
    require(file.size() >= kWord, "{}: ends in the middle; save the session again", where);
    std::memcpy(&n_bytes, file.data(), kWord);
    file = file.subspan(kWord);
    require(n_bytes > kWord, "{}: is no saved session, or it is damaged", where);
    require(n_bytes <= file.size(), "{}: {} bytes are missing at its end; save the session again",
            where, n_bytes - file.size());
    pieces.push_back(file.first(n_bytes));
    file = file.subspan(n_bytes);
  }
  require(!pieces.empty() && pieces[0].size() > kWord, "{}: is no saved session", where);
  const std::span<const std::byte> head = pieces[0].first(pieces[0].size() - kWord);
  uint64_t sum = 0;
  std::memcpy(&sum, pieces[0].data() + head.size(), kWord);
  require(checksum(head) == sum, "{}: is no saved session, or it is damaged", where);

  const OrderedJson json = parse_ordered_json(
      {reinterpret_cast<const char*>(head.data()), head.size()}, where, {.max_depth = 8});
  const OrderedFields fields(json, where);
  require(fields.string("format") == kSessionFormat, "{}: field \"format\" is {}, expected {}",
          where, shown(fields.string("format")), kSessionFormat);
  pieces.erase(pieces.begin());
  return {.head = {.model = fields.at("model"),
                   .policy = fields.at("policy"),
                   .note = fields.string("note")},
          .images = std::move(pieces)};
}

void check_fields(const OrderedJson& found, const OrderedJson& expected, std::string_view name,
                  std::string_view mend, std::string_view where) {
  for (const auto& [key, value] : expected.items()) {
    const OrderedJson has = found.is_object() ? found.value(key, OrderedJson()) : OrderedJson();
    const std::string text = has.is_string() ? has.get<std::string>() : has.dump();
    require(has == value, "{}: field \"{}.{}\" is {}, expected {}; {}", where, name, key,
            has.is_string() ? shown(text) : text, value.dump(), mend);
  }
}

}  // namespace ei
