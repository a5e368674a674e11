#pragma once

#include <string>
#include <utility>

#include "ei/base/error.h"

namespace ei::server {

// What a client did wrong, or the server cannot do, as OpenAI's error body says it.
class ApiError : public Error {
 public:
  ApiError(int status, std::string type, const std::string& what, std::string param = {},
           std::string code = {})
      : Error(what),
        status(status),
        type(std::move(type)),
        param(std::move(param)),
        code(std::move(code)) {}
  int status;
  std::string type, param, code;
};

}  // namespace ei::server
