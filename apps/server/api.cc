#include "apps/server/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/server/log.h"
#include "apps/server/page.h"
#include "ei/engine/engine_impl.h"
#include "ei/io/json.h"

namespace ei::server {
namespace {

HttpReply json_reply(const OrderedJson& json) {
  HttpReply reply;
  reply.body = json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  return reply;
}

HttpReply to_reply(const ApiError& error) {
  return error_reply(error.status, error.type, error.what(), error.param, error.code);
}

// `param`: the field that the prompt came in.
HttpReply to_reply(const Refusal& refusal, const std::string& param) {
  switch (refusal.kind) {
    case Refusal::Kind::kTooLong: {
      std::vector<std::pair<std::string, int64_t>> numbers;  // by which clients shorten prompts
      if (refusal.n_prompt > 0)
        numbers = {{"n_prompt_tokens", refusal.n_prompt}, {"n_ctx", refusal.n_context}};
      return error_reply(400, "invalid_request_error", refusal.what(), param,
                         "context_length_exceeded", numbers);
    }
    case Refusal::Kind::kTooLarge:
      return error_reply(400, "invalid_request_error", refusal.what(), param, "kv_memory_exceeded");
    case Refusal::Kind::kBusy: {
      HttpReply reply = error_reply(429, "rate_limit_error", refusal.what(), "", "server_busy");
      reply.headers.emplace_back("Retry-After", std::to_string(refusal.retry_after_s));
      return reply;
    }
    case Refusal::Kind::kDraining:
      break;
  }
  return error_reply(503, "unavailable_error", refusal.what());
}

size_t text_bytes(const OrderedJson& messages) {
  size_t n = 0;
  for (const OrderedJson& message : messages) {
    const OrderedJson& content = message["content"];
    if (content.is_string()) n += content.get_ref<const std::string&>().size();
    if (!content.is_array()) continue;
    for (const OrderedJson& part : content) n += part["text"].get_ref<const std::string&>().size();
  }
  return n;
}

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

bool listed(const std::vector<std::string>& list, const std::string& value) {
  return std::ranges::any_of(list, [&](const auto& x) { return x == "*" || x == value; });
}

}  // namespace

Api::Api(ApiOptions options) : options_(std::move(options)), metrics_(options_.model_name) {}
Api::~Api() = default;

void Api::serve(Engine& engine, const SchedulerOptions& options, RequestDefaults defaults) {
  engine_ = &engine;
  info_ = engine.info();
  created_ = std::chrono::duration_cast<std::chrono::seconds>(
                 std::chrono::system_clock::now().time_since_epoch())
                 .count();
  defaults_ = std::move(defaults);
  defaults_.sampling = engine.default_sampling();
  defaults_.tools = engine.impl().chat && engine.impl().chat->knows_tools();
  scheduler_ = std::make_unique<Scheduler>(engine, options);
  completions_ = std::make_unique<CompletionContext>(
      CompletionContext{.scheduler = *scheduler_,
                        .tokenizer = *engine.impl().tokenizer,
                        .metrics = metrics_,
                        .model = options_.model_name,
                        .ping_interval = options_.ping_interval,
                        .request_timeout = options_.request_timeout});
  ready_ = true;
}

void Api::handle(std::shared_ptr<Exchange> exchange) {
  const HttpRequest& request = exchange->request();
  exchange->add_headers(cors(request));
  std::optional<HttpReply> reply;
  try {
    reply = refuse(request);
    if (!reply) reply = route(exchange);
  } catch (const ApiError& error) {
    reply = to_reply(error);
  } catch (const Refusal& refusal) {
    reply = to_reply(refusal, request.path == "/v1/completions" ? "prompt" : "messages");
  } catch (const Error& error) {
    reply = error_reply(400, "invalid_request_error", error.what());
  } catch (const std::bad_alloc&) {
    reply = error_reply(503, "unavailable_error", "There is not enough memory for this request.");
  } catch (const std::exception& error) {
    reply = error_reply(500, "server_error", error.what());
  }
  if (reply->status == 0) return;  // a completion answers for itself
  metrics_.http_reply(reply->status);
  if (reply->status >= 400 && request.path != "/health") {  // a probe's 503 refuses nobody
    metrics_.refused(reply->reason);
    log_event("request_refused", {{"id", request.id},
                                  {"path", request.path},
                                  {"status", reply->status},
                                  {"reason", reply->reason}});
  }
  exchange->reply(std::move(*reply));
}

void Api::refused(const HttpRefusal& refusal) {
  if (refusal.status > 0) metrics_.http_reply(refusal.status);
  metrics_.refused(refusal.reason);
  log_event("request_refused",
            {{"id", refusal.id}, {"status", refusal.status}, {"reason", refusal.reason}});
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
  return {{"Access-Control-Allow-Origin", request.origin},
          {"Vary", "Origin"},
          {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
          {"Access-Control-Allow-Headers", "Authorization, Content-Type"}};
}

bool Api::authorized(const HttpRequest& request) const {
  if (options_.api_keys.empty()) return true;
  static constexpr std::string_view kBearer = "Bearer ";
  if (!request.authorization.starts_with(kBearer)) return false;
  const std::string given = request.authorization.substr(kBearer.size());
  bool ok = false;
  for (const std::string& key : options_.api_keys) ok |= same_secret(key, given);
  return ok;
}

HttpReply Api::route(const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  const std::string& path = request.path;
  const bool get = request.method == "GET" || request.method == "HEAD";
  const auto is = [&](std::initializer_list<std::string_view> names) {
    return std::ranges::find(names, path) != names.end();
  };
  if (get && is({"/health", "/v1/health", "/ping"})) return health();
  if (request.method == "OPTIONS") return {.status = 204, .body = ""};
  // The page holds nothing secret, and asks for the key.
  if (get && path == "/") {
    return {.body = std::string(kPage),
            .content_type = "text/html; charset=utf-8",
            .headers = {{"Content-Security-Policy",
                         "default-src 'none'; style-src 'unsafe-inline'; script-src "
                         "'unsafe-inline'; connect-src 'self'; img-src data:; "
                         "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"}}};
  }
  if (!authorized(request)) {
    HttpReply reply = error_reply(401, "authentication_error",
                                  "The API key is missing or wrong; send it as 'Authorization: "
                                  "Bearer KEY'.",
                                  "", "invalid_api_key");
    reply.headers.emplace_back("WWW-Authenticate", "Bearer");
    return reply;
  }
  if (!ready_) {
    HttpReply reply = error_reply(503, "unavailable_error", "The model is being loaded.");
    reply.headers.emplace_back("Retry-After", "5");
    return reply;
  }
  const std::string kModels = "/v1/models";
  struct Post {
    std::string_view path;
    std::function<HttpReply()> run;
  };
  const auto completion = [&](bool chat) {
    complete(exchange, chat);
    return HttpReply{.status = 0};
  };
  const Post posts[] = {{"/v1/chat/completions", [&] { return completion(true); }},
                        {"/v1/completions", [&] { return completion(false); }},
                        {"/tokenize", [&] { return tokenize(request); }},
                        {"/detokenize", [&] { return detokenize(request); }},
                        {"/apply-template", [&] { return apply_template(request); }}};
  for (const Post& post : posts) {
    if (path != post.path) continue;
    if (request.method == "POST") return post.run();
    HttpReply reply = error_reply(405, "invalid_request_error", "This endpoint takes POST.", "",
                                  "method_not_allowed");
    reply.headers.emplace_back("Allow", "POST");
    return reply;
  }
  if (get && path == "/metrics")
    return {.body = metrics_.render(scheduler_->stats()),
            .content_type = "text/plain; version=0.0.4; charset=utf-8"};
  if (get && path == kModels) return models("");
  if (get && path.starts_with(kModels + "/")) return models(path.substr(kModels.size() + 1));
  if (is({"/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/images/generations",
          "/v1/audio/transcriptions", "/v1/moderations"}))
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
                               {"prefill", defaults_.prefill.is_dense() ? "dense" : "entropy"},
                               {"decode", defaults_.decode.is_full() ? "full" : "latent"}}}};
  if (id.empty()) return json_reply({{"object", "list"}, {"data", OrderedJson::array({model})}});
  if (id == options_.model_name) return json_reply(model);
  return error_reply(404, "not_found_error", fmt::format("The model '{}' does not exist.", id),
                     "model", "model_not_found");
}

std::vector<int32_t> Api::encode(const Conversation& conversation) const {
  const ChatTemplate& chat = engine_->impl().chat_template();
  return chat.encode(conversation.messages, {.variables = conversation.variables});
}

HttpReply Api::tokenize(const HttpRequest& request) const {
  const auto given = parse_text_request(request.body, defaults_);
  const auto* text = std::get_if<std::string>(&given);
  const auto ids = text ? engine_->tokenize(*text) : encode(std::get<Conversation>(given));
  return json_reply({{"tokens", ids}, {"count", ids.size()}, {"max_model_len", info_.max_context}});
}

HttpReply Api::detokenize(const HttpRequest& request) const {
  const std::string text = engine_->detokenize(parse_tokens_request(request.body, defaults_));
  return json_reply({{"content", text}, {"prompt", text}});
}

HttpReply Api::apply_template(const HttpRequest& request) const {
  const auto conversation = parse_conversation_request(request.body, defaults_);
  std::string prompt;
  for (const TextPiece& piece : engine_->impl().chat_template().render(
           conversation.messages, {.variables = conversation.variables}))
    prompt += piece.text;
  return json_reply({{"prompt", prompt}});
}

void Api::complete(const std::shared_ptr<Exchange>& exchange, bool chat) {
  if (scheduler_->draining())
    throw Refusal(Refusal::Kind::kDraining, "The server is shutting down.");
  const std::string& body = exchange->request().body;
  ApiRequest request =
      chat ? parse_chat_request(body, defaults_) : parse_completion_request(body, defaults_);
  // No token is longer than this in any tokenizer: what is over is not worth tokenizing.
  constexpr size_t kMaxBytesPerToken = 128;
  const auto most_bytes = static_cast<size_t>(info_.max_context) * kMaxBytesPerToken;
  const auto check_bytes = [&](size_t n_bytes) {
    if (n_bytes > most_bytes)
      throw Refusal(Refusal::Kind::kTooLong,
                    fmt::format("This model's maximum context length is {} tokens. However, your "
                                "prompt has {} bytes of text.",
                                info_.max_context, n_bytes));
  };
  std::vector<std::vector<int32_t>> prompts;
  if (chat) {
    check_bytes(text_bytes(request.conversation.messages));
    prompts.push_back(encode(request.conversation));
  } else {
    for (Prompt& prompt : request.prompts) {
      if (auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
        prompts.push_back(std::move(*ids));
        continue;
      }
      const auto& text = std::get<std::string>(prompt);
      check_bytes(text.size());
      prompts.push_back(engine_->tokenize(text));
    }
  }
  request.conversation = {};
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
