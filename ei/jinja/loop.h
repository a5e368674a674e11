#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "ei/jinja/python.h"

namespace ei::jinja {

// A for loop in progress, and the variable `loop` in its body. Items are filtered no earlier than
// they are needed, since the body may change what the filter looks at.
class Loop : public Object, public std::enable_shared_from_this<Loop> {
 public:
  using Accepts = std::function<bool(const Value&)>;  // null for all
  Loop(Meter& meter, ListPtr source, Accepts accepts);

  bool advance();  // to the next item; false when there is none
  const Value& item() const { return items_[n_begun_ - 1]; }

  // To be called when the loop is over: it filters no more, and forgets what changed() has seen,
  // which may hold the loop itself.
  void end();

  std::string_view type() const override { return "LoopContext"; }
  std::string repr(Meter&) const override;
  std::optional<Value> attribute(Meter& meter, std::string_view name) override;

 private:
  bool has(size_t i);  // looks no further than the i-th item
  int64_t length();
  Value cycle(Args& args) const;
  bool changed(Meter& meter, Args& args);

  ListPtr source_;
  size_t n_read_ = 0;  // of source_
  Accepts accepts_;
  std::vector<Value> items_;
  size_t n_begun_ = 0;
  std::optional<Value> last_;  // what changed() has seen
  bool has_ended_ = false;
  Charge charge_;
};

}  // namespace ei::jinja
