#include "apps/eval/results.h"

#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::eval {

namespace {

// Every field with its name, for reading and for writing.
template <class R, class Visit>
void visit_fields(R& r, const Visit& visit) {
  visit("task", r.task);
  visit("length", r.length);
  visit("sample", r.sample);
  visit("depth", r.depth);
  visit("policy", r.policy);
  visit("expected", r.expected);
  visit("answer", r.answer);
  visit("score", r.score);
  visit("prompt_tokens", r.prompt_tokens);
  visit("density", r.density);
  visit("kv_bytes", r.kv_bytes);
  visit("kv_bytes_full", r.kv_bytes_full);
  visit("prefill_ms", r.prefill_ms);
  visit("token_ms", r.token_ms);
}

OrderedJson to_json(const Result& result) {
  OrderedJson json;
  visit_fields(result, [&](const char* name, const auto& value) { json[name] = value; });
  return json;
}

Result from_json(const OrderedJson& json) {
  Result result;
  visit_fields(result, [&](const char* name, auto& value) { json.at(name).get_to(value); });
  return result;
}

std::string line(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

// The first field that differs, for people.
std::string difference(const OrderedJson& found, const OrderedJson& wanted) {
  for (const auto& [name, value] : wanted.items()) {
    if (!found.is_object() || !found.contains(name)) return name + " is missing";
    if (found[name] != value)
      return fmt::format("{} is {}, expected {}", name, found[name].dump(), value.dump());
  }
  return "";
}

}  // namespace

ResultFile::ResultFile(const std::filesystem::path& path, const OrderedJson& about) : path_(path) {
  std::string text;
  if (std::filesystem::exists(path)) text = read_file(path);
  const size_t whole = text.rfind('\n') + 1;  // a last line without its end was being written
  size_t n_line = 0;
  for (size_t begin = 0; begin < whole; ++n_line) {
    const size_t end = text.find('\n', begin);
    try {
      const OrderedJson json = OrderedJson::parse(text.substr(begin, end - begin));
      if (n_line == 0) {
        const std::string differs = difference(json, about);
        require(differs.empty(), "it is of another evaluation: {}; give another --out", differs);
      } else {
        results_.push_back(from_json(json));
      }
    } catch (const std::exception& error) {
      fail("{}, line {}: {}", path.string(), n_line + 1, error.what());
    }
    begin = end + 1;
  }
  if (whole < text.size()) std::filesystem::resize_file(path, whole);
  file_.open(path, std::ios::binary | std::ios::app);
  if (whole == 0) file_ << line(about);
  require(bool(file_ << std::flush), "{}: cannot be written", path.string());
}

void ResultFile::add(Result result) {
  require(bool(file_ << line(to_json(result)) << std::flush), "{}: cannot be written",
          path_.string());
  results_.push_back(std::move(result));
}

}  // namespace ei::eval
