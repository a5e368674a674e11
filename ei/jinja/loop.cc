#include "ei/jinja/loop.h"

namespace ei::jinja {

bool Loop::has(size_t i) {
  while (items_.size() <= i && n_read_ < source_.size()) {
    const Value& item = source_[n_read_++];
    if (accepts_ && !accepts_(item)) continue;
    charge_.add(sizeof(Value));
    items_.push_back(item);
  }
  return i < items_.size();
}

const Value* Loop::advance() { return has(n_begun_) ? &items_[n_begun_++] : nullptr; }

std::optional<Value> Loop::attribute(Meter& meter, std::string_view name) {
  const auto index = static_cast<int64_t>(n_begun_);
  const auto length = [&] {
    has(source_.size());
    return static_cast<int64_t>(items_.size());
  };
  if (name == "index") return index;
  if (name == "index0") return index - 1;
  if (name == "first") return index == 1;
  if (name == "last") return !has(n_begun_);
  if (name == "length") return length();
  if (name == "revindex") return length() - index + 1;
  if (name == "revindex0") return length() - index;
  if (name == "previtem")
    return n_begun_ > 1 ? items_[n_begun_ - 2] : make_undefined(meter, "there is no previous item");
  if (name == "nextitem")
    return has(n_begun_) ? items_[n_begun_] : make_undefined(meter, "there is no next item");
  return std::nullopt;
}

}  // namespace ei::jinja
