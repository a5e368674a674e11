#include "ei/text/jinja.h"

#include <nlohmann/json.hpp>

#include "ei/base/fail.h"
#include "ei/text/jinja_interpreter.h"
#include "ei/text/jinja_parser.h"
#include "ei/text/utf8.h"

namespace ei {

struct JinjaTemplate::Parsed {
  std::string where;
  jinja::Body body;
};

JinjaTemplate::JinjaTemplate(std::string_view source, std::string where) {
  constexpr size_t kMaxBytes = 1 << 20;
  require(source.size() <= kMaxBytes, "{}: the template has {} bytes, expected at most {}", where,
          source.size(), kMaxBytes);
  require_utf8(source, where);
  try {
    jinja::Body body = jinja::parse_template(source);
    parsed_.reset(new Parsed{std::move(where), std::move(body)});
  } catch (const jinja::SyntaxError& error) {
    fail("{}:{}: {}", where, error.line, error.what());
  } catch (const Error& error) {
    fail("{}: {}", where, error.what());
  }
}

JinjaTemplate::~JinjaTemplate() = default;
JinjaTemplate::JinjaTemplate(JinjaTemplate&&) noexcept = default;
JinjaTemplate& JinjaTemplate::operator=(JinjaTemplate&&) noexcept = default;

std::string JinjaTemplate::render(const OrderedJson& variables, const JinjaOptions& options) const {
  require(variables.is_object(), "{}: the variables are {}, expected an object", parsed_->where,
          variables.type_name());
  jinja::Meter meter(options.limits);
  jinja::Value values;
  try {
    values = jinja::from_json(meter, variables);
  } catch (const Error& error) {
    fail("{}: {}", parsed_->where, error.what());
  }
  jinja::Interpreter interpreter(meter, values, options);
  try {
    return interpreter.run(parsed_->body);
  } catch (const Error& error) {
    fail("{}:{}: {}", parsed_->where, interpreter.line(), error.what());
  }
}

}  // namespace ei
