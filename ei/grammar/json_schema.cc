#include "ei/grammar/json_schema.h"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <map>
#include <set>

#include "ei/base/fail.h"

namespace ei::grammar {
namespace {

constexpr int64_t kMaxCount = 4096;  // of minLength, maxItems and the like

// ' ' or nothing.
int32_t maybe_space(Grammar& g, int32_t next) {
  const int32_t node = g.node();
  g.edge(node, ' ', ' ', next);
  g.free_to(node, next);
  return node;
}

int32_t digits(Grammar& g, int least, int most, int32_t next) {
  int32_t node = next;
  for (int i = most; i > 0; --i) {
    const int32_t before = g.node();
    g.edge(before, '0', '9', node);
    if (i > least) g.free_to(before, next);
    node = before;
  }
  return node;
}

}  // namespace

const JsonRules::Strings& JsonRules::strings() {
  if (strings_.string != 0) return strings_;
  Grammar& g = grammar_;
  const int32_t c = g.node();
  g.edge(c, 0x20, '"' - 1, kEnd);
  g.edge(c, '"' + 1, '\\' - 1, kEnd);
  g.edge(c, '\\' + 1, 0x7F, kEnd);
  g.multibyte(c, kEnd);
  const int32_t escape = g.node();
  g.edge(c, '\\', '\\', escape);
  for (const char byte : std::string_view("\"\\/bfnrt")) {
    const auto b = static_cast<uint8_t>(byte);
    g.edge(escape, b, b, kEnd);
  }
  // \uXXXX but for halves of pairs.
  const auto hex = [&](int32_t next, char low, char high) {
    const int32_t node = g.node();
    g.edge(node, '0', static_cast<uint8_t>(std::min(high, '9')), next);
    if (high > '9') {
      g.edge(node, static_cast<uint8_t>(low), static_cast<uint8_t>(high), next);
      g.edge(node, static_cast<uint8_t>(low + 32), static_cast<uint8_t>(high + 32), next);
    }
    return node;
  };
  const int32_t h1 = hex(kEnd, 'A', 'F'), h2 = hex(h1, 'A', 'F'), h3 = hex(h2, 'A', 'F');
  const int32_t u = hex(h3, 'A', 'C');
  for (const char other : std::string_view("EFef"))
    g.edge(u, static_cast<uint8_t>(other), static_cast<uint8_t>(other), h3);
  const int32_t after_d = hex(h2, '0', '7');
  g.edge(u, 'D', 'D', after_d);
  g.edge(u, 'd', 'd', after_d);
  g.edge(escape, 'u', 'u', u);
  strings_.character = c;
  strings_.string = g.text("\"", g.repeated(c, 0, -1, g.text("\"", kEnd)));
  return strings_;
}

// So many digits that every number is finite and a whole one fits 64 bits.
int32_t JsonRules::number(bool is_whole) {
  int32_t& rule = is_whole ? integer_ : real_;
  if (rule != 0) return rule;
  Grammar& g = grammar_;
  int32_t after = kEnd;
  if (!is_whole) {
    const int32_t sign = g.node(), exponent = digits(g, 1, 2, kEnd);
    g.edge(sign, '+', '+', exponent);
    g.edge(sign, '-', '-', exponent);
    g.free_to(sign, exponent);
    const int32_t e = g.node();
    g.edge(e, 'e', 'e', sign);
    g.edge(e, 'E', 'E', sign);
    g.free_to(e, kEnd);
    after = g.node();
    g.edge(after, '.', '.', digits(g, 1, 16, e));
    g.free_to(after, e);
  }
  const int32_t first = g.node();
  g.edge(first, '0', '0', after);
  g.edge(first, '1', '9', digits(g, 0, 17, after));
  rule = g.node();
  g.edge(rule, '-', '-', first);
  g.free_to(rule, first);
  return rule;
}

// Any object or array.
int32_t JsonRules::container(bool is_object) {
  int32_t& rule = is_object ? object_ : array_;
  if (rule != 0) return rule;
  Grammar& g = grammar_;
  rule = g.node();
  const int32_t string = is_object ? strings().string : 0, any = any_value();
  const int32_t close = g.text(is_object ? "}" : "]", kEnd);
  const int32_t more = g.node();
  int32_t entry = g.called(any, more);
  if (is_object) entry = g.called(string, g.text(":", maybe_space(g, entry)));
  g.edge(more, ',', ',', maybe_space(g, entry));
  g.free_to(more, close);
  const int32_t inside = g.node();
  g.free_to(inside, entry);
  g.free_to(inside, close);
  g.free_to(rule, g.text(is_object ? "{" : "[", inside));
  return rule;
}

int32_t JsonRules::any_value() {
  if (any_ != 0) return any_;
  Grammar& g = grammar_;
  any_ = g.node();
  for (const char* word : {"null", "true", "false"}) g.free_to(any_, g.text(word, kEnd));
  g.free_to(any_, strings().string);
  g.free_to(any_, number(false));
  for (const bool is_object : {false, true}) g.call(any_, container(is_object), kEnd, true);
  return any_;
}

int32_t JsonRules::any_object() { return container(true); }

// What one schema says, with all that it refers to.
class JsonRules::Schema {
 public:
  Schema(JsonRules& rules, const OrderedJson& root)
      : rules_(rules), g_(rules.grammar_), root_(root) {}

  int32_t rule(const OrderedJson& schema);

 private:
  int32_t compiled(const OrderedJson& schema);
  int32_t of_type(const OrderedJson& schema, const std::string& type);
  int32_t object(const OrderedJson& schema);
  int32_t array(const OrderedJson& schema);
  int32_t string(const OrderedJson& schema);
  int32_t other_key(const std::set<std::string>& taken);
  const OrderedJson& target(const std::string& reference) const;
  static std::vector<std::string> types(const OrderedJson& schema);
  static int64_t count(const OrderedJson& schema, const char* key, int64_t fallback);
  static void check_range(const char* keys, int64_t least, int64_t most);

  JsonRules& rules_;
  Grammar& g_;
  const OrderedJson& root_;
  struct Rule {
    int32_t node = 0;
    bool is_done = false;
  };
  std::map<const OrderedJson*, Rule> known_;
  std::set<const OrderedJson*> open_;  // that are being read, with nothing written since
  int depth_ = 0;
};

int32_t JsonRules::schema(const OrderedJson& schema) { return Schema(*this, schema).rule(schema); }

// The rule stands before what it is made of is read: it may be part of itself.
int32_t JsonRules::Schema::rule(const OrderedJson& schema) {
  constexpr int kMaxDepth = 200;
  if (const auto it = known_.find(&schema); it != known_.end()) {
    require(!open_.contains(&schema), "\"$ref\" refers to itself");
    if (it->second.is_done) return it->second.node;
    const int32_t again = g_.node();
    g_.call(again, it->second.node, kEnd, /*shallow=*/true);
    return again;
  }
  require(++depth_ <= kMaxDepth, "schemas within schemas are over {} deep", kMaxDepth);
  Rule& rule = known_[&schema];
  rule.node = g_.node();
  open_.insert(&schema);
  g_.free_to(rule.node, compiled(schema));
  open_.erase(&schema);
  rule.is_done = true;
  --depth_;
  return rule.node;
}

const OrderedJson& JsonRules::Schema::target(const std::string& reference) const {
  try {
    if (reference.starts_with("#")) {
      std::string path = reference.substr(1);
      return root_.at(OrderedJson::json_pointer(path));
    }
  } catch (const OrderedJson::exception&) {
  }
  fail("\"$ref\" is {}, expected a place within the schema, such as #/$defs/name",
       shown(reference));
}

int32_t JsonRules::Schema::compiled(const OrderedJson& schema) {
  if (schema.is_boolean())  // false: nothing leads on from there
    return schema.get<bool>() ? rules_.any_value() : g_.node();
  require(schema.is_object(), "a schema is {}, expected an object or a boolean",
          schema.type_name());
  static constexpr std::string_view kNotes[] = {
      "title",  "description", "default",  "examples",  "$schema", "$id",    "$comment",
      "format", "deprecated",  "readOnly", "writeOnly", "$defs",   "strict", "definitions"};
  static constexpr std::string_view kTyped[] = {
      "type",      "properties", "required", "additionalProperties",
      "items",     "minItems",   "maxItems", "minLength",
      "maxLength", "pattern"};
  const OrderedJson* whole = nullptr;  // what says all there is to say
  std::string whole_key, typed_key;
  for (const auto& [key, value] : schema.items()) {
    const auto is = [&, &k = key](const auto& list) {
      return std::ranges::find(list, k) != std::end(list);
    };
    if (is(kNotes)) continue;
    if (key == "$ref" || key == "anyOf" || key == "enum" || key == "const") {
      require(whole == nullptr, "\"{}\" beside \"{}\" is not supported", key, whole_key);
      whole = &value;
      whole_key = key;
    } else {
      require(is(kTyped), "{} is not supported", shown(key));
      if (key != "type") typed_key = key;
    }
  }
  const bool is_listed = whole_key == "enum" || whole_key == "const";
  require(whole == nullptr || (typed_key.empty() && (is_listed || !schema.contains("type"))),
          "\"{}\" beside \"{}\" is not supported", typed_key.empty() ? "type" : typed_key,
          whole_key);
  std::vector<int32_t> choices;
  if (whole_key == "$ref") {
    require(whole->is_string(), "\"$ref\" is {}, expected a string", whole->type_name());
    return rule(target(whole->get<std::string>()));
  }
  if (whole_key == "anyOf") {
    require(whole->is_array() && !whole->empty(), "\"anyOf\" must be a list of schemas");
    for (const OrderedJson& one : *whole) choices.push_back(rule(one));
    return g_.any_of(choices);
  }
  const std::vector<std::string> allowed = types(schema);
  if (is_listed) {
    require(whole_key == "const" || whole->is_array(), "\"enum\" must be a list");
    const OrderedJson values = whole_key == "const" ? OrderedJson::array({*whole}) : *whole;
    const auto is_allowed = [&](const OrderedJson& value) {
      return std::ranges::any_of(allowed, [&](const std::string& type) {
        if (type == "integer")
          return value.is_number() && std::trunc(value.get<double>()) == value.get<double>();
        if (type == "number") return value.is_number();
        return type == value.type_name();
      });
    };
    for (const OrderedJson& value : values)
      if (is_allowed(value)) choices.push_back(g_.text(value.dump(), kEnd));
    require(!choices.empty(), "\"{}\" has no value of \"type\"", whole_key);
    return g_.any_of(choices);
  }
  if (!schema.contains("type") && typed_key.empty()) return rules_.any_value();
  for (const std::string& type : allowed) choices.push_back(of_type(schema, type));
  return g_.any_of(choices);
}

// Where a schema does not say, what its other keywords are about; or all.
std::vector<std::string> JsonRules::Schema::types(const OrderedJson& schema) {
  static const std::vector<std::string> kAll = {"null",    "boolean", "object", "array",
                                                "integer", "number",  "string"};
  if (!schema.contains("type")) {
    const auto has = [&](std::initializer_list<const char*> keys) {
      return std::ranges::any_of(keys, [&](const char* key) { return schema.contains(key); });
    };
    if (has({"properties", "required", "additionalProperties"})) return {"object"};
    if (has({"items", "minItems", "maxItems"})) return {"array"};
    if (has({"minLength", "maxLength", "pattern"})) return {"string"};
    return kAll;
  }
  const OrderedJson& type = schema["type"];
  std::vector<std::string> types;
  for (const OrderedJson& one : type.is_array() ? type : OrderedJson::array({type})) {
    require(one.is_string() && std::ranges::find(kAll, one.get<std::string>()) != kAll.end(),
            "\"type\" is {}, expected one of {}",
            one.is_string() ? shown(one.get<std::string>()) : one.type_name(),
            fmt::join(kAll, ", "));
    types.push_back(one.get<std::string>());
  }
  require(!types.empty(), "\"type\" is an empty list");
  return types;
}

int32_t JsonRules::Schema::of_type(const OrderedJson& schema, const std::string& type) {
  if (type == "null") return g_.text("null", kEnd);
  if (type == "boolean") {
    const int32_t both[] = {g_.text("true", kEnd), g_.text("false", kEnd)};
    return g_.any_of(both);
  }
  if (type == "integer") return rules_.number(true);
  if (type == "number") return rules_.number(false);
  // Something is written before another schema is looked at: what is open may come again.
  std::set<const OrderedJson*> open;
  std::swap(open, open_);
  const int32_t made = type == "string"  ? string(schema)
                       : type == "array" ? array(schema)
                                         : object(schema);
  std::swap(open, open_);
  return made;
}

int64_t JsonRules::Schema::count(const OrderedJson& schema, const char* key, int64_t fallback) {
  if (!schema.contains(key)) return fallback;
  return OrderedFields(schema, "the schema").integer(key, 0, kMaxCount);
}

void JsonRules::Schema::check_range(const char* keys, int64_t least, int64_t most) {
  require(most < 0 || least <= most, "{}: the least, {}, is above the most, {}", keys, least, most);
}

int32_t JsonRules::Schema::string(const OrderedJson& schema) {
  const bool is_ranged = schema.contains("minLength") || schema.contains("maxLength");
  if (schema.contains("pattern")) {
    require(!is_ranged, "\"pattern\" beside \"minLength\" or \"maxLength\" is not supported");
    require(schema["pattern"].is_string(), "\"pattern\" is {}, expected a string",
            schema["pattern"].type_name());
    return pattern_rule(g_, schema["pattern"].get_ref<const std::string&>(),
                        rules_.strings().character);
  }
  if (!is_ranged) return rules_.strings().string;
  const int64_t least = count(schema, "minLength", 0), most = count(schema, "maxLength", -1);
  check_range("\"minLength\", \"maxLength\"", least, most);
  return g_.text("\"", g_.repeated(rules_.strings().character, least, most, g_.text("\"", kEnd)));
}

int32_t JsonRules::Schema::array(const OrderedJson& schema) {
  const int64_t least = count(schema, "minItems", 0), most = count(schema, "maxItems", -1);
  check_range("\"minItems\", \"maxItems\"", least, most);
  const int32_t close = g_.text("]", kEnd);
  if (most == 0) return g_.text("[", close);
  const int32_t item = schema.contains("items") ? rule(schema["items"]) : rules_.any_value();
  const int32_t other = g_.text(",", maybe_space(g_, g_.called(item, kEnd)));
  const int32_t first = g_.called(
      item, g_.repeated(other, std::max<int64_t>(0, least - 1), most < 0 ? -1 : most - 1, close));
  if (least > 0) return g_.text("[", first);
  const int32_t inside = g_.node();
  g_.free_to(inside, first);
  g_.free_to(inside, close);
  return g_.text("[", inside);
}

// A key that is none of those taken, without escapes: another spelling would be the same key.
int32_t JsonRules::Schema::other_key(const std::set<std::string>& taken) {
  // A node for every beginning of a key that is taken.
  constexpr size_t kMaxKey = 256;
  for (const std::string& key : taken)
    require(key.size() <= kMaxKey,
            "\"additionalProperties\" beside a property whose name has over {} bytes is not "
            "supported",
            kMaxKey);
  const int32_t rest = g_.node();
  const auto add = [&](int32_t from, const std::set<uint8_t>& but) {
    std::bitset<128> bytes;
    for (uint8_t byte = 0x20; byte < bytes.size(); ++byte)
      bytes[byte] = byte != '"' && byte != '\\' && !but.contains(byte);
    g_.edges(from, bytes, rest);
  };
  add(rest, {});
  g_.multibyte(rest, rest);
  g_.edge(rest, '"', '"', kEnd);
  std::map<std::string, int32_t> nodes;
  for (const std::string& key : taken)
    for (size_t n = 0; n <= key.size(); ++n) nodes.try_emplace(key.substr(0, n), 0);
  nodes.try_emplace("", 0);
  for (auto& [text, node] : nodes) node = g_.node();
  std::map<int32_t, std::set<uint8_t>> used;
  for (const auto& [text, node] : nodes) {
    if (text.empty()) continue;
    const auto byte = static_cast<uint8_t>(text.back());
    const int32_t before = nodes[text.substr(0, text.size() - 1)];
    used[before].insert(byte);
    // A key of other letters than ASCII's is left at its first such letter.
    if (byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\')
      g_.edge(before, byte, byte, node);
  }
  for (const auto& [text, node] : nodes) {
    const std::set<uint8_t>& bytes = used[node];
    add(node, bytes);
    if (std::ranges::all_of(bytes, [](uint8_t byte) { return byte < 0x80; }))
      g_.multibyte(node, rest);
    if (!taken.contains(text)) g_.edge(node, '"', '"', kEnd);
  }
  return g_.text("\"", nodes[""]);
}

int32_t JsonRules::Schema::object(const OrderedJson& schema) {
  struct Property {
    std::string key;
    const OrderedJson* schema;
    bool is_required = false;
  };
  static const OrderedJson kTrue = true;
  const OrderedJson& others =
      schema.contains("additionalProperties") ? schema["additionalProperties"] : kTrue;
  std::vector<Property> properties;
  if (schema.contains("properties")) {
    require(schema["properties"].is_object(), "\"properties\" is {}, expected an object",
            schema["properties"].type_name());
    for (const auto& [key, value] : schema["properties"].items())
      properties.push_back({key, &value});
  }
  if (schema.contains("required")) {
    require(schema["required"].is_array(), "\"required\" is {}, expected a list",
            schema["required"].type_name());
    for (const OrderedJson& key : schema["required"]) {
      require(key.is_string(), "\"required\" has {}, expected strings", key.type_name());
      const auto name = key.get<std::string>();
      auto it = std::ranges::find(properties, name, &Property::key);
      if (it == properties.end()) it = properties.insert(it, {name, &others});
      it->is_required = true;
    }
  }
  std::erase_if(properties, [](const Property& p) { return !p.is_required && *p.schema == false; });

  // What may come once so many properties were looked at: the first entry, or a further one.
  const int32_t close = g_.text("}", kEnd);
  int32_t first = close, further = close;
  const auto entry = [&](int32_t key, int32_t value) {
    return g_.called(key, g_.text(":", maybe_space(g_, value)));
  };
  // Others come only where they are asked for, or there is nothing else.
  const bool has_others =
      others != false && (properties.empty() || schema.contains("additionalProperties"));
  if (has_others) {
    std::set<std::string> taken;
    for (const Property& p : properties) taken.insert(p.key);
    if (schema.contains("properties"))
      for (const auto& [key, value] : schema["properties"].items()) taken.insert(key);
    first = g_.node();
    further = g_.node();
    const int32_t other = entry(other_key(taken), g_.called(rule(others), further));
    g_.free_to(first, other);
    g_.free_to(first, close);
    g_.free_to(further, g_.text(",", maybe_space(g_, other)));
    g_.free_to(further, close);
  }
  for (auto p = properties.rbegin(); p != properties.rend(); ++p) {
    const int32_t key = g_.text(OrderedJson(p->key).dump(), kEnd);
    const int32_t written = entry(key, g_.called(rule(*p->schema), further));
    const int32_t now = g_.node(), later = g_.node();
    g_.free_to(now, written);
    g_.free_to(later, g_.text(",", maybe_space(g_, written)));
    if (!p->is_required) {
      g_.free_to(now, first);
      g_.free_to(later, further);
    }
    first = now;
    further = later;
  }
  return g_.text("{", first);
}

}  // namespace ei::grammar
