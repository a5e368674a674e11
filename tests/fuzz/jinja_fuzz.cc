#include <nlohmann/json.hpp>
#include <string_view>

#include "ei/base/error.h"
#include "ei/io/json.h"
#include "ei/jinja/template.h"

// A template, of which a line "====" and JSON variables may follow.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) try {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find("\n====\n");
  ei::OrderedJson variables = {
      {"n", 7}, {"s", "Grüße, World\n"}, {"l", {3, 1, "a", nullptr, 2.5}}, {"d", {{"a", 1}}}};
  if (end != input.npos) {
    ei::OrderedJson given = ei::OrderedJson::parse(input.substr(end + 6), nullptr, false);
    if (given.is_object()) variables = std::move(given);
  }
  ei::jinja::Options options;
  options.limits = {.max_steps = 100'000,
                    .max_depth = 250,
                    .max_output_bytes = 1 << 20,
                    .max_memory_bytes = 8 << 20};
  options.strftime_now = [](std::string_view format) { return std::string(format); };
  ei::jinja::Template(input.substr(0, end), "fuzz").render(variables, options);
  return 0;
} catch (const ei::Error&) {
  return 0;
}
