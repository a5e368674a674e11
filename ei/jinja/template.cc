#include "ei/jinja/template.h"

#include <nlohmann/json.hpp>

#include "ei/base/fail.h"
#include "ei/base/utf8.h"
#include "ei/jinja/interpreter.h"
#include "ei/jinja/parser.h"

namespace ei::jinja {

struct Template::Parsed {
  std::string where;
  Body body;
};

Template::Template(std::string_view source, std::string where) {
  constexpr size_t kMaxBytes = 1 << 20;
  require(source.size() <= kMaxBytes, "{}: the template has {} bytes, expected at most {}", where,
          source.size(), kMaxBytes);
  require_utf8(source, where);
  try {
    Body body = parse_template(source);
    parsed_.reset(new Parsed{std::move(where), std::move(body)});
  } catch (const SyntaxError& error) {
    fail("{}:{}: {}", where, error.line, error.what());
  } catch (const Error& error) {
    fail("{}: {}", where, error.what());
  }
}

Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

std::string Template::render(const nlohmann::ordered_json& variables,
                             const Options& options) const {
  require(variables.is_object(), "{}: the variables are {}, expected an object", parsed_->where,
          variables.type_name());
  Meter meter(options.limits);
  Value values;
  try {
    values = from_json(meter, variables);
  } catch (const Error& error) {
    fail("{}: {}", parsed_->where, error.what());
  }
  Interpreter interpreter(meter, values, options);
  try {
    return interpreter.run(parsed_->body);
  } catch (const Error& error) {
    fail("{}:{}: {}", parsed_->where, interpreter.line(), error.what());
  }
}

}  // namespace ei::jinja
