#include "apps/server/api.h"

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/cli/ascii.h"
#include "apps/server/embeddings.h"
#include "apps/server/error_replies.h"
#include "apps/server/log.h"
#include "apps/server/page.h"
#include "ei/engine/token_trie.h"
#include "ei/io/json.h"
#include "ei/policy/named.h"
#include "ei/text/chat_template.h"

namespace ei::server {
namespace {

HttpReply json_reply(const OrderedJson& json) {
  HttpReply reply;
  reply.body = json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  return reply;
}

// Of the chat page: "/", and what it asks for itself.
std::optional<HttpReply> page_file(std::string_view path) {
  static constexpr std::string_view kFolder = "/page/";
  if (path == "/") path = "/page/index.html";
  if (!path.starts_with(kFolder)) return {};
  const auto file = std::ranges::find(kPageFiles, path.substr(kFolder.size()), &PageFile::name);
  if (file == kPageFiles.end()) return {};
  const std::string_view type = path.ends_with(".html")  ? "text/html"
                                : path.ends_with(".css") ? "text/css"
                                : path.ends_with(".svg") ? "image/svg+xml"
                                                         : "text/javascript";
  // Only its own scripts run, and nothing is fetched from elsewhere, whatever an answer says.
  return HttpReply{.body = std::string(file->text),
                   .content_type = fmt::format("{}; charset=utf-8", type),
                   .headers = {{"Cache-Control", "no-cache"},
                               {"Referrer-Policy", "no-referrer"},
                               {"Content-Security-Policy",
                                "default-src 'none'; script-src 'self'; style-src 'self'; "
                                "img-src 'self'; connect-src 'self'; worker-src 'self'; "
                                "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"}}};
}

constexpr int kThreads = 2;          // for reading requests, and as many for writing answers
constexpr size_t kMaxUnread = 1024;  // requests whose turn to be read has not come

// What was parsed of a long body and is gone leaves holes, which the allocator would keep for
// later.
struct Trimmed {
  explicit Trimmed(size_t n) : n_bytes(n) {}
  ~Trimmed() {
    if (n_bytes >= size_t{1} << 20) malloc_trim(0);
  }
  size_t n_bytes;
};

// As long for every token of one length, wherever it differs.
bool same_secret(const std::string& secret, const std::string& given) {
  unsigned differ = secret.size() != given.size();
  for (size_t i = 0; i < given.size(); ++i)
    differ |= static_cast<unsigned char>(given[i]) ^
              static_cast<unsigned char>(secret[i % std::max<size_t>(1, secret.size())]);
  return differ == 0 && !secret.empty();
}

// "[::1]:8000" -> "[::1]"
std::string without_port(const std::string& host) {
  const size_t colon = host.rfind(':');
  if (colon == std::string::npos || host.find(']', colon) != std::string::npos) return host;
  return host.substr(0, colon);
}

bool is_address(const std::string& host) {
  if (host.starts_with('[') && host.ends_with(']')) return true;
  return !host.empty() && host.find_first_not_of("0123456789.") == std::string::npos;
}

// Names that a client made up, fit for a header: printable, and not longer than is useful.
std::string header_text(const std::vector<std::string>& names) {
  constexpr size_t kMostBytes = 256;
  std::string text;
  for (const std::string& name : names) {
    if (!text.empty()) text += ", ";
    for (const char c : name) text += c > ' ' && c < 0x7F ? c : '?';
    if (text.size() > kMostBytes) return text.substr(0, kMostBytes) + "...";
  }
  return text;
}

bool listed(const std::vector<std::string>& list, const std::string& value) {
  return std::ranges::any_of(
      list, [&](const auto& x) { return x == "*" || cli::lower_case(x) == value; });
}

}  // namespace

struct Api::Endpoint {
  std::string_view path;
  std::optional<HttpReply> (Api::*run)(const std::shared_ptr<Exchange>&, Held);
};

// That take a body.
const Api::Endpoint Api::kEndpoints[] = {{"/v1/chat/completions", &Api::chat<parse_chat_request>},
                                         {"/v1/completions", &Api::completion},
                                         {"/v1/embeddings", &Api::embeddings},
                                         {"/v1/messages", &Api::chat<parse_messages_request>},
                                         {"/v1/messages/count_tokens", &Api::count_tokens},
                                         {"/v1/responses", &Api::chat<parse_responses_request>},
                                         {"/tokenize", &Api::tokenize},
                                         {"/detokenize", &Api::detokenize},
                                         {"/apply-template", &Api::apply_template}};

Api::Api(ApiOptions options)
    : options_(std::move(options)),
      metrics_(options_.model_name),
      readers_(kThreads, kMaxUnread),
      renderers_(kThreads, SIZE_MAX) {}
Api::~Api() = default;

void Api::serve(Engine& engine, const SchedulerOptions& options, RequestDefaults defaults) {
  engine_ = &engine;
  info_ = engine.info();
  created_ = std::chrono::duration_cast<std::chrono::seconds>(
                 std::chrono::system_clock::now().time_since_epoch())
                 .count();
  defaults_ = std::move(defaults);
  defaults_.sampling = engine.default_sampling();
  defaults_.max_dimensions = info_.hidden;
  defaults_.tools = !info_.chat_template.empty() && engine.chat_template().knows_tools();
  if (!info_.chat_template.empty()) format_ = engine.chat_template().answer_format();
  grammars_.emplace(make_token_trie(engine), format_.tools);
  const Tokenizer& tokenizer = engine.tokenizer();
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    max_token_bytes_ = std::max(max_token_bytes_, tokenizer.token_bytes(id).size());
  scheduler_ = std::make_unique<Scheduler>(engine, options);
  completions_ = std::make_unique<CompletionContext>(
      CompletionContext{.scheduler = *scheduler_,
                        .tokenizer = tokenizer,
                        .metrics = metrics_,
                        .renderers = renderers_,
                        .model = options_.model_name,
                        .format = format_,
                        .ping_interval = options_.ping_interval,
                        .request_timeout = options_.request_timeout});
  ready_ = true;
}

// Answers with what f returns, or with the error that it throws; not if f answers for itself.
template <class F>
void Api::answer(Exchange& exchange, F f) {
  const HttpRequest& request = exchange.request();
  std::optional<HttpReply> reply;
  try {
    reply = f();
  } catch (const ApiError& error) {
    reply = to_reply(error);
  } catch (const Refusal& refusal) {
    reply = to_reply(refusal, request.path == "/v1/completions"  ? "prompt"
                              : request.path == "/v1/embeddings" ? "input"
                                                                 : "messages");
  } catch (const Error& error) {
    reply = error_reply(400, "invalid_request_error", without_path(error.what()));
  } catch (const std::bad_alloc&) {
    reply = unavailable("There is not enough memory for this request.", 1);
  } catch (const std::exception& error) {
    log_event("request_failed", {{"id", request.id}, {"error", error.what()}});
    reply = error_reply(500, "server_error", "The server failed; its log says why.");
  }
  if (!reply) return;
  metrics_.http_reply(reply->status);
  if (reply->status >= 400 && request.path != "/health") {  // a probe's 503 refuses nobody
    metrics_.refused(reply->reason);
    log_event("request_refused", {{"id", request.id},
                                  {"path", request.path},
                                  {"status", reply->status},
                                  {"reason", reply->reason}});
  }
  if (reply->status >= 400) reply = in_form_of(request.path, std::move(*reply));
  exchange.reply(std::move(*reply));
}

void Api::on_head(Exchange& exchange) {
  answer(exchange, [&] {
    exchange.add_headers(cors(exchange.request()));
    return from_head(exchange.request());
  });
}

void Api::on_request(std::shared_ptr<Exchange> exchange) {
  const auto work = [this, exchange] {
    answer(*exchange, [&] {
      const auto endpoint =
          std::ranges::find(kEndpoints, exchange->request().path, &Endpoint::path);
      Held body = exchange->take_body();
      const Trimmed trimmed(body->size());
      return (this->*endpoint->run)(exchange, std::move(body));
    });
  };
  if (!readers_.post(work))
    answer(*exchange, [] { return unavailable("Too many requests wait to be read.", 1); });
}

void Api::on_refusal(const HttpRefusal& refusal) {
  if (refusal.status > 0) metrics_.http_reply(refusal.status);
  metrics_.refused(refusal.reason);
  log_event("request_refused",
            {{"id", refusal.id}, {"status", refusal.status}, {"reason", refusal.reason}});
}

HttpReply Api::in_form_of(std::string_view path, HttpReply error) const {
  return path.starts_with("/v1/messages") ? messages_error(std::move(error)) : error;
}

// Without the folder of the model, in which its files are named.
std::string Api::without_path(std::string text) const {
  const std::string& path = options_.model_path;
  for (size_t at = 0; !path.empty() && (at = text.find(path, at)) != text.npos;)
    text.erase(at, path.size() + (text[at + path.size()] == '/'));
  return text;
}

// What nobody may do, whatever the endpoint. A page of another site that reaches this server
// through a name of its own, or asks in a visitor's name, is stopped here.
std::optional<HttpReply> Api::refuse(const HttpRequest& request) const {
  const std::string host = without_port(request.host);
  if (!host.empty() && host != "localhost" && !is_address(host) &&
      !listed(options_.allowed_hosts, host))
    return error_reply(403, "permission_error",
                       fmt::format("Host '{}' is not one of this server's; start it with "
                                   "--allowed-hosts {}.",
                                   host, host),
                       "", "unknown_host");
  if (!allowed_origin(request))
    return error_reply(403, "permission_error",
                       "Pages of other origins may not call this server; see --cors-origins.", "",
                       "unknown_origin");
  return {};
}

bool Api::allowed_origin(const HttpRequest& request) const {
  if (request.origin.empty() || request.method == "GET") return true;
  if (listed(options_.cors_origins, request.origin)) return true;
  return request.origin == "http://" + request.host || request.origin == "https://" + request.host;
}

Headers Api::cors(const HttpRequest& request) const {
  if (request.origin.empty() || !listed(options_.cors_origins, request.origin)) return {};
  Headers headers = {
      {"Access-Control-Allow-Origin", request.origin},
      {"Vary", "Origin"},
      {"Access-Control-Expose-Headers", "X-Request-Id, Retry-After, X-Unknown-Fields"}};
  if (request.method != "OPTIONS") return headers;
  headers.emplace_back("Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS");
  headers.emplace_back("Access-Control-Allow-Headers", request.requested_headers.empty()
                                                           ? "Authorization, Content-Type"
                                                           : request.requested_headers);
  headers.emplace_back("Access-Control-Max-Age", "600");
  return headers;
}

bool Api::authorized(const HttpRequest& request) const {
  if (options_.api_keys.empty()) return true;
  static constexpr std::string_view kBearer = "bearer ";
  const std::string& bearer = request.authorization;
  std::string given = request.api_key;
  if (cli::lower_case(bearer.substr(0, kBearer.size())) == kBearer)
    given = bearer.substr(std::min(bearer.find_first_not_of(' ', kBearer.size()), bearer.size()));
  bool ok = false;
  for (const std::string& key : options_.api_keys) ok |= same_secret(key, given);
  return ok;
}

// The answer, unless the body is needed for it.
std::optional<HttpReply> Api::from_head(const HttpRequest& request) const {
  if (auto refusal = refuse(request)) return refusal;
  const std::string& path = request.path;
  const bool get = request.method == "GET" || request.method == "HEAD";
  const auto is = [&](std::initializer_list<std::string_view> names) {
    return std::ranges::find(names, path) != names.end();
  };
  if (get && is({"/health", "/v1/health", "/ping"})) return health();
  if (request.method == "OPTIONS") return HttpReply{.status = 204, .body = ""};
  // The page holds nothing secret, and asks for the key.
  if (get)
    if (auto file = page_file(path)) return file;
  if (!authorized(request)) {
    HttpReply reply = error_reply(401, "authentication_error",
                                  "The API key is missing or wrong; send it as 'Authorization: "
                                  "Bearer KEY' or 'X-Api-Key: KEY'.",
                                  "", "invalid_api_key");
    reply.headers.emplace_back("WWW-Authenticate", "Bearer");
    return reply;
  }
  if (!ready_) return unavailable("The model is being loaded.", 5);
  if (std::ranges::find(kEndpoints, path, &Endpoint::path) != std::end(kEndpoints)) {
    if (request.method == "POST") return {};
    HttpReply reply = error_reply(405, "invalid_request_error", "This endpoint takes POST.", "",
                                  "method_not_allowed");
    reply.headers.emplace_back("Allow", "POST");
    return reply;
  }
  if (get && path == "/metrics")
    return HttpReply{.body = metrics_.render(scheduler_->stats()),
                     .content_type = "text/plain; version=0.0.4; charset=utf-8"};
  const std::string kModels = "/v1/models";
  if (get && path == kModels) return models("");
  if (get && path.starts_with(kModels + "/")) return models(path.substr(kModels.size() + 1));
  if (is({"/v1/rerank", "/v1/images/generations", "/v1/audio/transcriptions", "/v1/moderations"}))
    return error_reply(501, "not_supported_error", fmt::format("{} is not supported.", path));
  return error_reply(404, "not_found_error",
                     fmt::format("There is no {} {}.", request.method, path));
}

HttpReply Api::health() const {
  if (!ready_) return error_reply(503, "unavailable_error", "The model is being loaded.");
  if (scheduler_->draining())
    return error_reply(503, "unavailable_error", "The server is shutting down.");
  return json_reply({{"status", "ok"}});
}

HttpReply Api::models(const std::string& id) const {
  const OrderedJson model = {{"id", options_.model_name},
                             {"object", "model"},
                             {"created", created_},
                             {"owned_by", "entropyinfer"},
                             {"max_model_len", info_.max_context},
                             {"meta",
                              {{"architecture", info_.architecture},
                               {"n_params", info_.n_parameters},
                               {"n_ctx_train", info_.max_context},
                               {"n_ctx", std::min(info_.max_context, info_.longest_context)},
                               {"kv_bytes_per_token", info_.kv_bytes_per_token},
                               {"size", info_.weight_bytes},
                               {"n_vocab", info_.vocab_size},
                               {"device", info_.device},
                               {"chat_template", !info_.chat_template.empty()},
                               {"prefill", name_of(defaults_.prefill)},
                               {"decode", name_of(defaults_.decode)}}}};
  if (id.empty()) return json_reply({{"object", "list"}, {"data", OrderedJson::array({model})}});
  if (id == options_.model_name) return json_reply(model);
  return error_reply(404, "not_found_error", fmt::format("The model '{}' does not exist.", id),
                     "model", "model_not_found");
}

// So many bytes cannot be few enough tokens: not worth tokenizing.
void Api::check_bytes(size_t n_bytes, const char* param) const {
  if (n_bytes / std::max<size_t>(1, max_token_bytes_) <= static_cast<size_t>(info_.max_context))
    return;
  throw ApiError(400, "invalid_request_error",
                 fmt::format("This model's maximum context length is {} tokens. However, your "
                             "prompt has {} bytes of text, at least {} tokens.",
                             info_.max_context, n_bytes, n_bytes / max_token_bytes_),
                 param, "context_length_exceeded");
}

ChatOptions Api::options_of(const Conversation& conversation) {
  return {.variables = conversation.variables,
          .add_generation_prompt = conversation.add_generation_prompt};
}

std::vector<int32_t> Api::encode(const std::string& text, bool add_special_tokens) const {
  return engine_->tokenizer().encode(text, add_special_tokens);
}

std::vector<int32_t> Api::encode(const Conversation& conversation) const {
  return engine_->chat_template().encode(conversation.messages, options_of(conversation));
}

std::vector<std::vector<int32_t>> Api::encode(std::vector<Prompt> prompts, bool add_special_tokens,
                                              const char* param) const {
  std::vector<std::vector<int32_t>> all;
  for (Prompt& prompt : prompts) {
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      check_bytes(text->size(), param);
      prompt = encode(*text, add_special_tokens);
    }
    all.push_back(std::get<std::vector<int32_t>>(std::move(prompt)));
  }
  return all;
}

std::string Api::rendered(const Conversation& conversation) const {
  std::string text;
  for (const TextPiece& piece :
       engine_->chat_template().render(conversation.messages, options_of(conversation)))
    text += piece.text;
  return text;
}

// Names the fields that were not obeyed, as nobody knows them, in the answer's header and the log.
void Api::tell_unknown(Exchange& exchange, const std::vector<std::string>& fields) {
  if (fields.empty()) return;
  const std::string names = header_text(fields);
  exchange.add_headers({{"X-Unknown-Fields", names}});
  log_event("unknown_fields",
            {{"id", exchange.request().id}, {"path", exchange.request().path}, {"fields", names}});
}

std::optional<HttpReply> Api::tokenize(const std::shared_ptr<Exchange>& exchange, Held body) {
  const auto [given, unknown_fields] = parse_text_request(*body, defaults_);
  body.reset();
  tell_unknown(*exchange, unknown_fields);
  const auto* text = std::get_if<Text>(&given);
  const auto ids =
      text ? encode(text->text, text->add_special_tokens) : encode(std::get<Conversation>(given));
  HttpReply reply;
  reply.body = fmt::format(R"({{"tokens":[{}],"count":{},"max_model_len":{}}})",
                           fmt::join(ids, ","), ids.size(), info_.max_context);
  return reply;
}

std::optional<HttpReply> Api::detokenize(const std::shared_ptr<Exchange>& exchange, Held body) {
  const auto [ids, unknown_fields] = parse_tokens_request(*body, defaults_);
  body.reset();
  tell_unknown(*exchange, unknown_fields);
  const int32_t n_ids = engine_->tokenizer().vocab_size();
  for (const int32_t id : ids)
    if (id >= n_ids)
      throw ApiError(400, "invalid_request_error",
                     fmt::format("Token id {} is not in the vocabulary (0 to {}).", id, n_ids - 1),
                     "tokens");
  const std::string text = engine_->detokenize(ids);
  return json_reply({{"content", text}, {"prompt", text}});
}

std::optional<HttpReply> Api::count_tokens(const std::shared_ptr<Exchange>& exchange, Held body) {
  const auto [conversation, unknown_fields] = parse_count_tokens_request(*body, defaults_);
  body.reset();
  tell_unknown(*exchange, unknown_fields);
  return json_reply({{"input_tokens", encode(conversation).size()}});
}

std::optional<HttpReply> Api::apply_template(const std::shared_ptr<Exchange>& exchange, Held body) {
  const auto [conversation, unknown_fields] = parse_conversation_request(*body, defaults_);
  body.reset();
  tell_unknown(*exchange, unknown_fields);
  return json_reply({{"prompt", rendered(conversation)}});
}

template <auto parse>
std::optional<HttpReply> Api::chat(const std::shared_ptr<Exchange>& exchange, Held body) {
  ApiRequest request = parse(*body, defaults_);
  const bool is_long =
      body->size() / std::max<size_t>(1, max_token_bytes_) > static_cast<size_t>(info_.max_context);
  body.reset();
  if (is_long)  // a template may leave much out
    check_bytes(rendered(request.conversation).size(), "messages");
  std::vector<int32_t> prompt = encode(request.conversation);
  request.conversation = {};
  read_parts(prompt, engine_->tokenizer(), format_, request);
  start(exchange, std::move(request), {std::move(prompt)});
  return {};
}

std::optional<HttpReply> Api::completion(const std::shared_ptr<Exchange>& exchange, Held body) {
  ApiRequest request = parse_completion_request(*body, defaults_);
  body.reset();
  auto prompts = encode(std::exchange(request.prompts, {}), request.add_special_tokens, "prompt");
  start(exchange, std::move(request), std::move(prompts));
  return {};
}

std::optional<HttpReply> Api::embeddings(const std::shared_ptr<Exchange>& exchange, Held body) {
  auto [request, unknown_fields] = parse_embeddings_request(*body, defaults_);
  body.reset();
  tell_unknown(*exchange, unknown_fields);
  auto inputs = encode(std::exchange(request.inputs, {}), request.add_special_tokens, "input");
  if (std::ranges::any_of(inputs, &std::vector<int32_t>::empty))
    throw ApiError(400, "invalid_request_error", "A text of 'input' has no tokens.", "input");
  log_event("request", {{"id", exchange->request().id},
                        {"path", exchange->request().path},
                        {"prompt_tokens", inputs[0].size()},
                        {"prompts", inputs.size()}});
  start_embeddings(*completions_, exchange, std::move(request), std::move(inputs));
  return {};
}

void Api::start(const std::shared_ptr<Exchange>& exchange, ApiRequest request,
                std::vector<std::vector<int32_t>> prompts) {
  request.options.grammar = grammars_->of(request.form);
  request.form.schema = request.form.functions = nullptr;
  tell_unknown(*exchange, request.unknown_fields);
  log_event("request", {{"id", exchange->request().id},
                        {"path", exchange->request().path},
                        {"prompt_tokens", prompts[0].size()},
                        {"prompts", prompts.size()},
                        {"n", request.n},
                        {"max_tokens", request.request.max_tokens},
                        {"stream", request.stream}});
  start_completion(*completions_, exchange, std::move(request), std::move(prompts));
}

}  // namespace ei::server
