#include "apps/server/fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/server/api_error.h"

namespace ei::server {
namespace {

using enum FieldRule::Use;

constexpr unsigned kAnswers = kChat | kCompletions;
constexpr unsigned kTemplates = kChat | kTokenize | kTemplate;
constexpr unsigned kAnthropic = kMessages | kCountTokens;
constexpr unsigned kEveryAnswer = kAnswers | kMessages | kResponses;
constexpr unsigned kAll =
    kEveryAnswer | kTokenize | kDetokenize | kTemplate | kCountTokens | kEmbeddings;

constexpr FieldRule kRules[] = {
    // What OpenAI's API has.
    {"model", kAll, kNoEffect, R"("gpt")", "", "one model is served; the answer names it"},
    {"messages", kTemplates | kAnthropic, kObeyed, R"([{"role":"user","content":"a"}])", "",
     "text parts only"},
    {"prompt", kCompletions | kTokenize, kObeyed, R"("a")", "",
     "text or token ids, one or several"},
    {"max_tokens", kAnswers | kMessages, kObeyed, "2", "", "an answer ends where the context does"},
    {"max_completion_tokens", kChat, kObeyed, "2", "", "the newer name of max_tokens"},
    {"temperature", kEveryAnswer, kObeyed, "0.5", "", ""},
    {"top_p", kEveryAnswer, kObeyed, "0.9", "", ""},
    {"n", kAnswers, kObeyed, "2", "",
     "the prompt is read once; at most 128 answers, of all prompts"},
    {"best_of", kCompletions, kObeyed, "2", "",
     "the n likeliest of so many answers; not with stream"},
    {"seed", kEveryAnswer, kObeyed, "7", "", ""},
    {"stop", kAnswers, kObeyed, R"(["x"])", "", "at most 16 strings"},
    {"stream", kEveryAnswer, kObeyed, "true", "", ""},
    {"stream_options", kAnswers, kObeyed, R"({"include_usage":true})", "",
     "include_usage; with stream only"},
    {"stream_options", kResponses, kNoEffect, R"({"include_obfuscation":false})", "", ""},
    {"echo", kCompletions, kObeyed, "true", "", ""},
    {"logprobs", kAnswers, kObeyed, "true", "", "a boolean for chats, a number for completions"},
    {"top_logprobs", kChat, kObeyed, "2", "", "needs logprobs"},
    {"logit_bias", kAnswers, kObeyed, R"({"5":1})", "", "at most 1,024 tokens"},
    {"presence_penalty", kAnswers, kObeyed, "0.5", "", ""},
    {"frequency_penalty", kAnswers, kObeyed, "0.5", "", ""},
    {"tools", kTemplates, kObeyed, R"([{"type":"function","function":{"name":"f"}}])", "",
     "if the chat template knows tools"},
    {"tool_choice", kTemplates, kObeyed, R"("none")", "",
     "auto, none, required, or a function's name"},
    {"tools", kResponses, kObeyed, R"([{"type":"function","name":"f"}])", "",
     "if the chat template knows tools"},
    {"tool_choice", kResponses, kObeyed, R"("none")", "",
     "auto, none, required, or a function's name"},
    {"tools", kAnthropic, kObeyed, R"([{"name":"f","input_schema":{"type":"object"}}])", "",
     "if the chat template knows tools"},
    {"tool_choice", kAnthropic, kObeyed, R"({"type":"none"})", "",
     "auto, any, tool, none; disable_parallel_tool_use"},
    {"parallel_tool_calls", kChat | kResponses, kObeyed, "false", "", "false: one call at most"},
    {"response_format", kAnswers, kObeyed, R"({"type":"json_object"})", "",
     "text, json_object, json_schema"},
    {"suffix", kCompletions, kUnsupported, R"("x")", R"("")", "no filling in"},
    {"functions", kChat, kUnsupported, R"([{"name":"f"}])", "[]", "use tools"},
    {"function_call", kChat, kUnsupported, R"({"name":"f"})", R"("auto" "none")",
     "use tool_choice"},
    {"modalities", kChat, kUnsupported, R"(["audio"])", R"(["text"])", "text only"},
    {"audio", kChat, kUnsupported, R"({"voice":"a"})", "", "text only"},
    {"prediction", kChat, kUnsupported, R"({"type":"content"})", "", ""},
    {"web_search_options", kChat, kUnsupported, "{}", "", ""},
    {"reasoning_effort", kChat, kUnsupported, R"("high")", "",
     "chat_template_kwargs tells a template"},
    {"verbosity", kChat, kUnsupported, R"("low")", R"("medium")", ""},
    {"store", kChat | kResponses, kUnsupported, "true", "false", "nothing is stored"},
    {"metadata", kEveryAnswer, kNoEffect, R"({"a":"b"})", "", "nothing is stored"},
    {"user", kAnswers | kResponses | kEmbeddings, kNoEffect, R"("u")", "", "tells who asks"},
    {"safety_identifier", kChat | kResponses, kNoEffect, R"("u")", "", "tells who asks"},
    {"prompt_cache_key", kChat | kResponses, kNoEffect, R"("k")", "",
     "equal prompts share what was read in any case"},
    {"prompt_cache_retention", kChat | kResponses, kNoEffect, R"("24h")", "", ""},
    {"service_tier", kChat | kMessages | kResponses, kNoEffect, R"("auto")", "", "there is one"},
    // What /v1/responses has beside.
    {"input", kResponses, kObeyed, R"("a")", "",
     "a text, or items: texts, calls, results, thoughts"},
    {"instructions", kResponses, kObeyed, R"("a")", "", "the system's message"},
    {"max_output_tokens", kResponses, kObeyed, "2", "", ""},
    {"text", kResponses, kObeyed, R"({"format":{"type":"json_object"}})", "",
     "format: text, json_object, json_schema"},
    {"previous_response_id", kResponses, kUnsupported, R"("r")", "", "nothing is stored"},
    {"conversation", kResponses, kUnsupported, R"("c")", "", "nothing is stored"},
    {"background", kResponses, kUnsupported, "true", "false", "nothing is stored"},
    {"prompt", kResponses, kUnsupported, R"({"id":"p"})", "", "nothing is stored"},
    {"include", kResponses, kUnsupported, R"(["message.output_text.logprobs"])",
     R"([] ["reasoning.encrypted_content"])", "thoughts are not encrypted"},
    {"reasoning", kResponses, kUnsupported, R"({"effort":"high"})", "{}",
     "chat_template_kwargs tells a template"},
    {"truncation", kResponses, kUnsupported, R"("auto")", R"("disabled")", "a prompt is never cut"},
    {"top_logprobs", kResponses, kUnsupported, "2", "0", ""},
    {"max_tool_calls", kResponses, kUnsupported, "2", "", ""},
    {"context_management", kResponses | kAnthropic, kUnsupported, R"([{"type":"compaction"}])",
     "[]", "a prompt is never cut"},
    // What /v1/embeddings has beside.
    {"input", kEmbeddings, kObeyed, R"(["a"])", "", "text or token ids, one or several"},
    {"encoding_format", kEmbeddings, kObeyed, R"("base64")", "", "float or base64"},
    {"dimensions", kEmbeddings, kObeyed, "2", "", "so many first numbers, at length 1 again"},
    {"pooling", kEmbeddings, kObeyed, R"("mean")", "", "last or mean: of which tokens"},
    // What /v1/messages has beside.
    {"system", kAnthropic, kObeyed, R"("a")", "", "a text, or blocks of text"},
    {"stop_sequences", kMessages, kObeyed, R"(["x"])", "", "at most 16 strings"},
    {"thinking", kAnthropic, kObeyed, R"({"type":"disabled"})", "",
     "the template's enable_thinking; budget_tokens has no effect"},
    {"output_config", kAnthropic, kObeyed, R"({"format":{"type":"json_schema","schema":{}}})", "",
     "format: json_schema"},
    {"cache_control", kAnthropic, kNoEffect, R"({"type":"ephemeral"})", "",
     "equal beginnings share what was read in any case"},
    {"container", kAnthropic, kUnsupported, R"("c")", "", ""},
    {"mcp_servers", kAnthropic, kUnsupported, R"([{"name":"s"}])", "[]", ""},
    // What other servers of open models have.
    {"top_k", kAnswers | kMessages, kObeyed, "5", "", "-1 and 0: all"},
    {"min_p", kAnswers, kObeyed, "0.1", "", ""},
    {"repetition_penalty", kAnswers, kObeyed, "1.1", "", ""},
    {"min_tokens", kAnswers, kObeyed, "1", "", ""},
    {"ignore_eos", kAnswers, kObeyed, "true", "", ""},
    {"stop_token_ids", kAnswers, kObeyed, "[3]", "", ""},
    {"chat_template_kwargs", kTemplates | kAnthropic | kResponses, kObeyed,
     R"({"enable_thinking":false})", "", "variables of the template"},
    {"add_generation_prompt", kTemplates, kObeyed, "false", "", ""},
    {"continue_final_message", kTemplates, kUnsupported, "true", "false", ""},
    {"add_special_tokens", kCompletions | kTokenize | kEmbeddings, kObeyed, "false", "",
     "whether BOS comes first"},
    {"add_special", kTokenize, kObeyed, "false", "", "the same"},
    {"parse_special", kTokenize, kUnsupported, "false", "true",
     "control tokens in a text are seen"},
    {"with_pieces", kTokenize, kUnsupported, "true", "false", ""},
    {"return_token_strs", kTokenize, kUnsupported, "true", "false", ""},
    {"content", kTokenize, kObeyed, R"("a")", "", "the text"},
    {"text", kTokenize, kObeyed, R"("a")", "", "the text"},
    {"tokens", kDetokenize, kObeyed, "[5]", "", ""},
    {"chat_template", kTemplates, kUnsupported, R"("x")", "", "the model's own is used"},
    {"documents", kTemplates, kUnsupported, R"([{"text":"d"}])", "[]", ""},
    {"skip_special_tokens", kAnswers, kUnsupported, "false", "true", ""},
    {"spaces_between_special_tokens", kAnswers, kUnsupported, "false", "true", ""},
    {"include_stop_str_in_output", kAnswers, kUnsupported, "true", "false", ""},
    {"prompt_logprobs", kAnswers, kUnsupported, "1", "", "echo with logprobs tells them"},
    {"return_token_ids", kAnswers, kUnsupported, "true", "false", ""},
    {"return_tokens_as_token_ids", kAnswers, kUnsupported, "true", "false", ""},
    {"return_tokens", kAnswers, kUnsupported, "true", "false", ""},
    {"truncate_prompt_tokens", kAnswers | kEmbeddings, kUnsupported, "5", "",
     "a prompt is never cut"},
    {"allowed_token_ids", kAnswers, kUnsupported, "[5]", "", ""},
    {"bad_words", kAnswers, kUnsupported, R"(["x"])", "[]", "logit_bias bans tokens"},
    {"use_beam_search", kAnswers, kUnsupported, "true", "false", ""},
    {"length_penalty", kAnswers, kUnsupported, "2", "1", ""},
    {"early_stopping", kAnswers, kUnsupported, "true", "false", ""},
    {"priority", kAnswers, kUnsupported, "1", "0", "requests are served in their order"},
    {"request_id", kAnswers, kNoEffect, R"("r")", "", "the answer's id is the server's"},
    {"cache_salt", kAnswers, kUnsupported, R"("s")", "", ""},
    {"structured_outputs", kAnswers, kUnsupported, R"({"regex":"a"})", "", "use response_format"},
    {"guided_json", kAnswers, kUnsupported, "{}", "", "use response_format"},
    {"guided_regex", kAnswers, kUnsupported, R"("a")", "", "use response_format"},
    {"guided_choice", kAnswers, kUnsupported, R"(["a"])", "", "use response_format"},
    {"guided_grammar", kAnswers, kUnsupported, R"("g")", "", "use response_format"},
    {"grammar", kAnswers, kUnsupported, R"("g")", R"("")", "use response_format"},
    {"json_schema", kAnswers, kUnsupported, "{}", "", "use response_format"},
    {"cache_prompt", kAnswers, kObeyed, "false", "",
     "false: all of the prompt is read, as for a measurement; results are the same"},
    {"id_slot", kAnswers, kUnsupported, "0", "-1", ""},
    {"n_predict", kAnswers, kUnsupported, "2", "", "use max_tokens"},
    {"n_keep", kAnswers, kUnsupported, "5", "0", ""},
    {"n_probs", kAnswers, kUnsupported, "2", "0", "use logprobs"},
    {"min_keep", kAnswers, kUnsupported, "1", "0", ""},
    {"timings_per_token", kAnswers, kUnsupported, "true", "false", "the last chunk has timings"},
    {"post_sampling_probs", kAnswers, kUnsupported, "true", "false", ""},
    {"repeat_penalty", kAnswers, kUnsupported, "1.1", "1", "use repetition_penalty"},
    {"typical_p", kAnswers, kUnsupported, "0.5", "1", ""},
    {"mirostat", kAnswers, kUnsupported, "1", "0", ""},
    {"dynatemp_range", kAnswers, kUnsupported, "0.5", "0", ""},
    {"xtc_probability", kAnswers, kUnsupported, "0.1", "0", ""},
    {"dry_multiplier", kAnswers, kUnsupported, "0.8", "0", ""},
    {"samplers", kAnswers, kUnsupported, R"(["top_k"])", "", "their order is fixed"},
    {"return_progress", kAnswers, kObeyed, "true", "", "with stream only"},
    // Ours.
    {"prefill", kEveryAnswer | kEmbeddings, kObeyed, R"("dense")", "",
     "how the prompt is read: a name of run --prefill"},
    {"decode", kEveryAnswer, kObeyed, R"("snapkv")", "",
     "how its cache is kept: a name of run --decode, but for kvzip and kvzip-plus"},
    {"base_budget", kEveryAnswer | kEmbeddings, kObeyed, "256", "", "not with prefill dense"},
    {"budget", kEveryAnswer, kObeyed, "256", "", "not with decode full"},
    {"timeout_ms", kEveryAnswer | kEmbeddings, kObeyed, "60000", "", ""},
};

bool is_accepted(const FieldRule& rule, const OrderedJson& value) {
  if (value.is_null()) return true;
  std::string_view left = rule.accepted;
  while (!left.empty()) {
    const size_t end = std::min(left.find(' '), left.size());
    if (OrderedJson::parse(left.substr(0, end)) == value) return true;
    left.remove_prefix(std::min(end + 1, left.size()));
  }
  return false;
}

}  // namespace

std::span<const FieldRule> field_rules() { return kRules; }

std::vector<std::string> check_fields(const OrderedJson& request, Endpoint endpoint) {
  std::vector<std::string> unknown;
  for (const auto& item : request.items()) {
    const std::string& name = item.key();
    const auto rule = std::ranges::find_if(kRules, [&](const FieldRule& r) {
      return r.name == name && (r.endpoints & endpoint) != 0;
    });
    if (rule == std::end(kRules)) {
      unknown.push_back(name);
    } else if (rule->use == kUnsupported && !is_accepted(*rule, item.value())) {
      std::string what = fmt::format("'{}' is not supported", name);
      if (!rule->accepted.empty()) what += fmt::format(", but for {}", rule->accepted);
      if (!rule->note.empty()) what += fmt::format(": {}", rule->note);
      throw ApiError(400, "invalid_request_error", what + ".", name);
    }
  }
  return unknown;
}

ApiError renamed(ApiError error, std::initializer_list<Renamed> names) {
  std::string what = error.what();
  for (const auto& [chat, dialect] : names) {
    if (error.param == chat) error.param = dialect;
    for (const char quote : {'\'', '"'}) {
      const std::string from = fmt::format("{0}{1}{0}", quote, chat);
      if (const size_t at = what.find(from); at != what.npos)
        what.replace(at, from.size(), fmt::format("{0}{1}{0}", quote, dialect));
    }
  }
  return {error.status, error.type, what, error.param, error.code};
}

}  // namespace ei::server
