#pragma once

#include <span>
#include <string>

#include "ei/engine/engine.h"
#include "python/src/bind.h"

namespace ei::python {

// An engine and the conversation that it remembers.
class Model {
 public:
  // `model` as the command line takes it; what is missing of a model of the hub is fetched.
  Model(const std::string& model, const EngineOptions& options, int64_t prefix_bytes);

  Engine& engine() { return engine_; }
  Session& session() { return session_; }
  int64_t vocab_size() const { return vocab_size_; }
  // With these policies; none: the program's default.
  Request request(const Array<const int32_t, 1>& tokens, const Policy* policy) const;

 private:
  Device device_;
  Engine engine_;
  Session session_;
  int64_t vocab_size_;
};

}  // namespace ei::python
