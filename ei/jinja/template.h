#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ei::jinja {

// What one rendering may cost. Templates come with checkpoints and their variables with requests:
// neither is trusted.
struct Limits {
  int64_t max_steps = 5'000'000;  // expressions evaluated, plus one for every 64 bytes handled
  int64_t max_depth = 250;        // nested expressions, statements and macro calls
  int64_t max_output_bytes = 64 << 20;
  int64_t max_memory_bytes = 256 << 20;  // all strings, lists and dicts alive at one time
};

struct Options {
  Limits limits;
  // The time now, formatted as strftime() does. Where it is absent the name strftime_now is
  // undefined, and templates print the date they have for that case.
  std::function<std::string(std::string_view format)> strftime_now;
};

// A chat template in the language of Jinja 2, as Hugging Face sets it up: trim_blocks and
// lstrip_blocks, break and continue, {% generation %} as a mere scope, tojson without HTML escapes,
// raise_exception(), and values that templates cannot change, namespaces apart. Of Jinja there is
// what chat templates use: if, for, set and macro; most filters, tests and methods of strings. No
// blocks and includes, no raw, call, filter and with, no recursive loops, no autoescape, no "%"
// formats, no integers beyond 64 bits.
//
// A template has no way to reach files, the network or other requests. Rendering is const and may
// be done from several threads.
class Template {
 public:
  // Throws Error "WHERE:LINE: what" when the source is not UTF-8 or not a template. `where` is the
  // template's name in messages.
  Template(std::string_view source, std::string where);
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  // The text for an object of variables (messages, tools, add_generation_prompt, bos_token, ...).
  // Throws Error "WHERE:LINE: what" when the template fails, when it calls raise_exception (what is
  // its message), or at a limit.
  std::string render(const nlohmann::ordered_json& variables, const Options& options = {}) const;

 private:
  struct Parsed;
  std::unique_ptr<const Parsed> parsed_;
};

}  // namespace ei::jinja
