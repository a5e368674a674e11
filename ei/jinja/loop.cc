#include "ei/jinja/loop.h"

#include "ei/jinja/builtins.h"

namespace ei::jinja {

Loop::Loop(Meter& meter, ListPtr source, Accepts accepts)
    : source_(std::move(source)), accepts_(std::move(accepts)), charge_(meter) {
  charge_.add(sizeof(Loop));
}

bool Loop::has(size_t i) {
  while (items_.size() <= i && n_read_ < source_->items.size()) {
    const Value& item = source_->items[n_read_++];
    if (accepts_ && !accepts_(item)) continue;
    charge_.add(sizeof(Value));
    items_.push_back(item);
  }
  return i < items_.size();
}

bool Loop::advance() {
  if (!has(n_begun_)) return false;
  ++n_begun_;
  return true;
}

void Loop::end() {
  accepts_ = nullptr;
  last_.reset();
  has_ended_ = true;
}

int64_t Loop::length() {
  has(source_->items.size());
  return static_cast<int64_t>(items_.size());
}

std::string Loop::repr(Meter&) const { return fmt::format("<LoopContext {}>", n_begun_); }

Value Loop::cycle(Args& args) const {
  require(!args.positional.empty() && args.named.empty(), "cycle() needs items, without names");
  return args.positional[(n_begun_ - 1) % args.positional.size()];
}

bool Loop::changed(Meter& meter, Args& args) {
  Value now = make_list(meter, std::move(args.positional), List::Form::kTuple);
  if (last_ && equal(meter, *last_, now)) return false;
  if (!has_ended_) last_ = std::move(now);
  return true;
}

std::optional<Value> Loop::attribute(Meter& meter, std::string_view name) {
  const auto index = static_cast<int64_t>(n_begun_);
  if (name == "index") return index;
  if (name == "index0") return index - 1;
  if (name == "first") return index == 1;
  if (name == "last") return !has(n_begun_);
  if (name == "length") return length();
  if (name == "revindex") return length() - index + 1;
  if (name == "revindex0") return length() - index;
  if (name == "depth") return int64_t{1};
  if (name == "depth0") return int64_t{0};
  if (name == "previtem")
    return n_begun_ > 1 ? items_[n_begun_ - 2] : make_undefined(meter, "there is no previous item");
  if (name == "nextitem")
    return has(n_begun_) ? items_[n_begun_] : make_undefined(meter, "there is no next item");
  if (name == "cycle")
    return make_function(
        meter, [self = shared_from_this()](Meter&, Args& args) { return self->cycle(args); });
  if (name == "changed")
    return make_function(meter, [self = shared_from_this()](Meter& m, Args& args) {
      return Value(self->changed(m, args));
    });
  return std::nullopt;
}

}  // namespace ei::jinja
