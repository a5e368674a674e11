#include "ei/jinja/builtins.h"

#include <algorithm>

#include "ei/jinja/python.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // as Jinja's sandbox has it

Value make_range(Meter& meter, Args& args) {
  const Parameters p(args, "range", {"start", "stop", "step"}, 1);
  const int64_t first = p.integer(0, 0);
  const int64_t start = p[1] ? first : 0, stop = p.integer(1, first), step = p.integer(2, 1);
  require(step != 0, "range() arg 3 must not be zero");
  ListBuilder items(meter);
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    require(static_cast<int64_t>(items.size()) < kMaxRange, "range() has more than {} numbers",
            kMaxRange);
    items.push(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return std::move(items).finish();
}

}  // namespace

Parameters::Parameters(Args& args, std::string_view function,
                       std::initializer_list<std::string_view> names, size_t n_required)
    : values_(names.size()), names_(names) {
  require(args.positional.size() <= names.size(), "{}() takes at most {} arguments, {} given",
          function, names.size(), args.positional.size());
  for (size_t i = 0; i < args.positional.size(); ++i) values_[i] = &args.positional[i];
  for (const auto& [name, value] : args.named) {
    const auto at = std::find(names_.begin(), names_.end(), name);
    require(at != names_.end(), "{}() has no parameter '{}'", function, name);
    const Value*& slot = values_[static_cast<size_t>(at - names_.begin())];
    require(slot == nullptr, "{}() got several values for '{}'", function, name);
    slot = &value;
  }
  for (size_t i = 0; i < n_required; ++i)
    require(values_[i] != nullptr, "{}() misses its argument '{}'", function, names_[i]);
}

int64_t Parameters::integer(size_t i, int64_t fallback) const {
  return values_[i] ? integer_of(*values_[i], names_[i]) : fallback;
}

bool Parameters::flag(size_t i, bool fallback) const {
  return values_[i] ? truthy(*values_[i]) : fallback;
}

std::optional<std::string_view> Parameters::text(size_t i) const {
  if (values_[i] == nullptr || values_[i]->is<None>()) return std::nullopt;
  return text_of(*values_[i], names_[i]);
}

std::string Namespace::repr(Meter& meter) const {
  StringBuilder out(meter);
  out.append("<Namespace {");
  for (const auto& [name, value] : attributes_) {
    if (name != attributes_.begin()->first) out.append(", ");
    out.append(quote(name) + ": ");
    print_repr(meter, value, out);
  }
  out.append("}>");
  return std::move(out).take();
}

std::optional<Value> Namespace::attribute(Meter&, std::string_view name) {
  const auto found = attributes_.find(name);
  return found == attributes_.end() ? std::nullopt : std::optional(found->second);
}

void Namespace::set(std::string_view name, Value value) {
  const auto found = attributes_.find(name);
  if (found != attributes_.end()) {
    found->second = std::move(value);
    return;
  }
  charge_.add(128 + name.size());
  attributes_.emplace(name, std::move(value));
}

Value make_function(Meter& meter, std::function<Value(Meter&, Args&)> run) {
  auto function = std::make_shared<NativeFunction>();
  function->charge = Charge(meter);
  function->charge.add(sizeof(NativeFunction) + 64);
  function->run = std::move(run);
  return ObjectPtr(std::move(function));
}

Value replace(Meter& meter, std::string_view source, std::string_view from, std::string_view to,
              int64_t limit) {
  meter.work(source.size());
  StringBuilder out(meter);
  size_t at = 0;
  while (limit-- != 0) {
    // An empty string is found before every character and at the end.
    const size_t found = find_text(source, from, at);
    if (found == std::string_view::npos) break;
    out.append(source.substr(at, found - at));
    out.append(to);
    at = found + from.size();
    if (!from.empty()) continue;
    if (at == source.size()) break;
    const size_t next = at + char_offset(source.substr(at), 1);
    out.append(source.substr(at, next - at));
    at = next;
  }
  out.append(source.substr(at));
  return std::move(out).finish();
}

Value join(Meter& meter, std::string_view separator, const Items& items) {
  StringBuilder out(meter);
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(separator);
    print(meter, items[i], out);
  }
  return std::move(out).finish();
}

std::map<std::string_view, Value> make_globals(Meter& meter, const Options& options,
                                               Namespaces& namespaces) {
  std::map<std::string_view, Value> globals;
  globals["range"] = make_function(meter, make_range);
  globals["namespace"] = make_function(meter, [&namespaces](Meter& m, Args& args) {
    auto made = std::make_shared<Namespace>(m);
    namespaces.push_back(made);
    for (const Value& given : args.positional) {
      require(given.dict() != nullptr, "namespace() takes dicts, not '{}'", type_name(given));
      for (const auto& [key, value] : given.dict()->items)
        made->set(text_of(key, "a name in a namespace"), value);
    }
    for (auto& [name, value] : args.named) made->set(name, std::move(value));
    return Value(ObjectPtr(made));
  });
  globals["raise_exception"] = make_function(meter, [](Meter& m, Args& args) -> Value {
    const Parameters p(args, "raise_exception", {"message"}, 1);
    throw Error(to_string(m, p.get(0)).string()->text);
  });
  if (options.strftime_now)
    globals["strftime_now"] = make_function(meter, [&options](Meter& m, Args& args) {
      const Parameters p(args, "strftime_now", {"format"}, 1);
      return make_string(m, options.strftime_now(text_of(p.get(0), "format")));
    });
  return globals;
}

}  // namespace ei::jinja
