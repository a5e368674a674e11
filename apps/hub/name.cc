#include "apps/hub/name.h"

#include <algorithm>

namespace ei::hub {
namespace {

bool is_alnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// The hub's own rule for the names of people and of what they publish.
bool is_part(std::string_view text) {
  return !text.empty() && text.size() <= 96 && is_alnum(text.front()) && text.back() != '.' &&
         text.back() != '-' && text.find("--") == text.npos && text.find("..") == text.npos &&
         std::ranges::all_of(
             text, [](char c) { return is_alnum(c) || c == '.' || c == '_' || c == '-'; });
}

// Cuts what stands behind `mark` off the end; nullopt: there is no mark.
std::optional<std::string> cut(std::string_view& text, char mark) {
  const size_t at = text.find(mark);
  if (at == text.npos) return std::nullopt;
  std::string rest(text.substr(at + 1));
  text = text.substr(0, at);
  return rest;
}

}  // namespace

std::string ModelName::str() const {
  return repo + (revision == "main" ? "" : "@" + revision) + (tag.empty() ? "" : ":" + tag);
}

bool is_relative_path(std::string_view text) {
  if (text.empty() || text.size() > 1024) return false;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('/', begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return std::ranges::all_of(text, [](char c) { return c > ' ' && c != '\\' && c != 127; });
}

std::optional<ModelName> parse_name(std::string_view text) {
  ModelName name;
  if (const auto tag = cut(text, ':')) {
    if (!is_relative_path(*tag)) return std::nullopt;
    name.tag = *tag;
  }
  if (const auto revision = cut(text, '@')) {
    if (!is_relative_path(*revision)) return std::nullopt;
    name.revision = *revision;
  }
  const size_t slash = text.find('/');
  if (slash == text.npos || !is_part(text.substr(0, slash)) || !is_part(text.substr(slash + 1)) ||
      text.ends_with(".gguf"))
    return std::nullopt;
  name.repo = text;
  return name;
}

}  // namespace ei::hub
