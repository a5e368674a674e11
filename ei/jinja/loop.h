#pragma once

#include <functional>

#include "ei/jinja/python.h"

namespace ei::jinja {

// A for loop in progress, and the variable `loop` in its body. Items are filtered no earlier than
// they are needed, since the body may change what the filter looks at.
class Loop : public Object {
 public:
  using Accepts = std::function<bool(const Value&)>;  // null for all
  Loop(Meter& meter, Items source, Accepts accepts)
      : source_(std::move(source)), accepts_(std::move(accepts)), charge_(meter) {
    charge_.add(sizeof(Loop));
  }

  const Value* advance();                   // to the next item; null when there is none
  void end() { n_read_ = source_.size(); }  // what is left will not be looked at

  std::string_view type() const override { return "LoopContext"; }
  std::optional<Value> attribute(Meter& meter, std::string_view name) override;

 private:
  bool has(size_t i);  // looks no further than the i-th item

  Items source_;
  size_t n_read_ = 0;  // of source_
  Accepts accepts_;
  std::vector<Value> items_;
  size_t n_begun_ = 0;
  Charge charge_;
};

}  // namespace ei::jinja
