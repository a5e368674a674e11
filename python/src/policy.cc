#include <algorithm>

#include "apps/eval/policies.h"
#include "ei/policy/named.h"
#include "python/src/bind.h"

namespace ei::python {
namespace {

// The flags of the command line, which name all settings.
struct Grammar {
  CLI::App app;
  Device device = Device::kCpu;
  cli::PolicyOptions options{app, device};
};
const Grammar& grammar() {
  static const Grammar grammar;
  return grammar;
}

// base_budget=1024 as policies write it: base-budget=1024.
std::string written(nb::handle key, nb::handle value) {
  auto name = nb::cast<std::string>(key);
  std::replace(name.begin(), name.end(), '_', '-');
  if (nb::isinstance<nb::bool_>(value)) return name + (nb::cast<bool>(value) ? "=true" : "=false");
  return name + "=" + nb::cast<std::string>(nb::str(value));
}

}  // namespace

Policy::Policy(std::string name, const nb::kwargs& settings) : name_(std::move(name)) {
  if (const size_t end = name_.find(':'); name_.substr(0, end).find('+') == std::string::npos)
    name_.insert(std::min(end, name_.size()), "+latent");
  for (const auto& [key, value] : settings) name_ += ":" + written(key, value);
  try {
    policies_ = eval::parse_policies(name_, grammar().options).policies;
  } catch (const CLI::ParseError& error) {
    throw nb::value_error(error.what());
  }
}

std::string Policy::describe() const { return grammar().options.describe(policies_).dump(); }

void bind_policy(nb::module_& m) {
  nb::class_<Policy>(m, "Policy",
                     "How attention is spent, by name: 'PREFILL+DECODE' or 'PREFILL', as in "
                     "Policy('paper+snapkv', base_budget=1024, budget=512). Settings are those of "
                     "`entropyinfer run --help`.")
      .def(nb::init_implicit<std::string>(), nb::arg("name"))
      .def(
          "__init__",
          [](Policy* self, std::string name, const nb::kwargs& settings) {
            new (self) Policy(std::move(name), settings);
          },
          nb::arg("name"), nb::arg("settings"),
          nb::sig("def __init__(self, name: str, **settings: typing.Any) -> None"))
      .def_prop_ro("name", &Policy::name, "PREFILL+DECODE:SETTING=VALUE")
      .def_prop_ro(
          "settings",
          [](const Policy& self) {
            return nb::cast<nb::dict>(nb::module_::import_("json").attr("loads")(self.describe()));
          },
          nb::sig("def settings(self) -> dict[str, typing.Any]"),
          "Every setting that matters, by name.")
      .def("__repr__", [](const Policy& self) { return "Policy('" + self.name() + "')"; });
  m.def(
      "default_policy",
      [](bool on_gpu) {
        return Policy(std::string(name_of(default_prefill(on_gpu ? Device::kCuda : Device::kCpu))));
      },
      nb::arg("on_gpu"), "What prompts are read by if nobody says otherwise.");
}

}  // namespace ei::python
