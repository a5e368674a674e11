#include <string>
#include <vector>

#include "apps/server/http_reader.h"

namespace {

using ei::server::HttpReader;

constexpr ei::server::HttpLimits kLimits = {.head_bytes = 512, .n_headers = 8, .body_bytes = 1024};

// What was read of a stream that comes in pieces of `size` bytes, and that nothing grew too large.
std::vector<std::string> read(std::string_view stream, size_t size) {
  std::vector<std::string> events;
  HttpReader reader(kLimits);
  for (; !stream.empty(); stream.remove_prefix(std::min(size, stream.size()))) {
    std::string_view piece = stream.substr(0, size);
    while (true) {
      const auto before = reader.state();
      piece.remove_prefix(reader.read(piece));
      if (reader.body().size() > kLimits.body_bytes) __builtin_trap();
      if (reader.state() == HttpReader::State::kRefused) {
        events.push_back(reader.refusal().body);
        return events;
      }
      if (reader.state() == HttpReader::State::kDone) {
        const auto& head = reader.head();
        events.push_back(head.method + head.path + head.host + reader.body());
        reader.next();
      } else if (reader.state() == before) {
        if (!piece.empty()) __builtin_trap();
        break;
      }
    }
  }
  return events;
}

}  // namespace

// A connection's bytes are read the same however they are cut.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view stream(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto whole = read(stream, stream.size());
  if (read(stream, 1) != whole || read(stream, data[0] + size_t{1}) != whole) __builtin_trap();
  return 0;
}
