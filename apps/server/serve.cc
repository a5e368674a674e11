#include "apps/server/serve.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <future>
#include <memory>

#include "apps/cli/interrupt.h"
#include "apps/cli/limits.h"
#include "apps/cli/options.h"
#include "apps/cli/ranks.h"
#include "apps/cli/units.h"
#include "apps/server/api.h"
#include "apps/server/http.h"
#include "apps/server/log.h"
#include "ei/engine/make_backend.h"
#include "ei/policy/named.h"

namespace ei::cli {
namespace {

// One key per line; empty lines and those that begin with # are none.
std::vector<std::string> read_keys(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(fmt::format("--api-key-file {}: cannot be opened", path));
  std::vector<std::string> keys;
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty() && line[0] != '#') keys.push_back(line);
  }
  if (keys.empty()) throw Error(fmt::format("--api-key-file {}: holds no key", path));
  return keys;
}

// Whoever reads what the server says may go away, or never have been there; its descriptors must
// not become those of clients.
void ignore_closed_pipes() {
  std::signal(SIGPIPE, SIG_IGN);
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(fd, F_GETFD) == -1) open("/dev/null", O_RDWR);
}

// What requests leave behind goes back to the system. By itself glibc raises both thresholds to the
// largest block that was freed, and keeps as much of it for every thread.
void keep_little_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
}

class Serve {
 public:
  Serve(CLI::App& command, Interrupts& interrupts)
      : interrupts_(interrupts), model_(command), policy_(command, model_.device()) {
    const char* group = "Network";
    const auto size = [](CLI::Option* option, const char* text, const char* in_group) {
      option->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))->option_text(text)->group(in_group);
    };
    command
        .add_option("--host", http_.address, "Address or name to listen on; 0.0.0.0: all networks")
        ->option_text("A [127.0.0.1]")
        ->group(group);
    command.add_option("--port", http_.port, "0: any that is free")
        ->transform(count(0, 65535))
        ->option_text("N [8000]")
        ->group(group);
    command.add_option("--alias", api_.model_name, "The model's name; else its directory's")
        ->option_text("NAME")
        ->group(group);
    command
        .add_option("--api-key", api_.api_keys, "Who has one of these may call; may be repeated")
        ->option_text("KEY ...")
        ->expected(1)
        ->take_all()
        ->group(group);
    command.add_option("--api-key-file", key_file_, "The same, one per line")
        ->option_text("F")
        ->group(group);
    command
        .add_option("--cors-origins", api_.cors_origins,
                    "Origins whose pages may call, separated by commas; *: all")
        ->delimiter(',')
        ->option_text("URL,...")
        ->group(group);
    command
        .add_option("--allowed-hosts", api_.allowed_hosts,
                    "Names this server is reached by, beside localhost and addresses; *: all")
        ->delimiter(',')
        ->option_text("NAME,...")
        ->group(group);
    size(command.add_option("--max-body", http_.limits.body_bytes, "Largest request"),
         "SIZE [64MiB]", group);
    size(command.add_option("--body-memory", http_.body_memory,
                            "For requests that are being read, all together"),
         "SIZE [256MiB]", group);
    command.add_option("--max-connections", http_.max_connections, "Clients at the same time")
        ->transform(count(1, 1 << 20))
        ->option_text("N [1024]")
        ->group(group);
    command.add_option("--io-threads", http_.n_threads, "Threads that speak HTTP")
        ->transform(count(1, 64))
        ->option_text("N [4]")
        ->group(group);
    http_.n_threads = 4;

    group = "Load";
    command
        .add_option("--max-sequences", scheduler_.max_sequences,
                    "Requests read or written at the same time")
        ->transform(count(1, 1024))
        ->option_text("N [16]")
        ->group(group);
    command.add_option("--max-waiting", scheduler_.max_waiting, "Requests that may wait")
        ->transform(count(0, 1 << 20))
        ->option_text("N [256]")
        ->group(group);
    command
        .add_option("--max-waiting-tokens", scheduler_.max_waiting_tokens,
                    "Prompt tokens that may wait")
        ->transform(count(0, int64_t{1} << 40))
        ->option_text("N [4194304]")
        ->group(group);
    size(command.add_option("--kv-memory", kv_bytes_,
                            "For the caches of running requests; else half of what is free"),
         "SIZE", group);
    size(command.add_option("--prefix-memory", prefix_bytes_,
                            "For prompts that may come again, 0: none; else a quarter of it"),
         "SIZE", group);
    size(command.add_option("--prefix-ram", prefix_host_bytes_,
                            "For such prompts in the host's memory, once a GPU's has no room; "
                            "0: none"),
         "SIZE [8GiB]", group);
    command
        .add_option("--prefix-dir", scheduler_.prefix_dir,
                    "Where such prompts are kept in files as well, for the next start")
        ->option_text("DIR")
        ->group(group);
    size(command.add_option("--prefix-disk", prefix_disk_bytes_, "For these files"), "SIZE [16GiB]",
         group);
    command.add_option("--default-max-tokens", max_tokens_, "Longest answer unless a chat says")
        ->transform(count(1, int64_t{1} << 30))
        ->option_text("N [2048]")
        ->group(group);
    command
        .add_option("--request-timeout", request_timeout_s_, "Seconds for a request; 0: no limit")
        ->transform(count(0, 1 << 20))
        ->option_text("N [0]")
        ->group(group);
    command
        .add_option("--ping-interval", ping_interval_s_,
                    "Seconds after which a silent stream says that it is alive")
        ->transform(count(1, 3600))
        ->option_text("N [15]")
        ->group(group);
    command
        .add_option("--drain-timeout", drain_timeout_s_,
                    "Seconds that requests have to finish when the server is stopped")
        ->transform(count(0, 1 << 20))
        ->option_text("N [30]")
        ->group(group);

    group = "Log";
    command.add_flag("--log-json", log_json_, "One JSON object per line")->group(group);
    command.add_flag("--quiet", quiet_, "Warnings only")->group(group);
  }

  int operator()() {
    ignore_closed_pipes();
    keep_little_memory();
    server::set_up_log(log_json_, quiet_);
    const Policies policies = policy_.policies();
    if (policies.decode.voter == Voter::kRepeat)
      throw CLI::ValidationError(
          "--decode",
          fmt::format("{} reads a prompt twice at once, for which other answers would wait; use "
                      "it with run and eval",
                      name_of(policies.decode)));
    if (key_file_)
      for (std::string& key : read_keys(*key_file_)) api_.api_keys.push_back(std::move(key));
    if (api_.model_name.empty()) api_.model_name = model_.model().name();
    api_.model_path = model_.model().path();
    api_.ping_interval = std::chrono::seconds(ping_interval_s_);
    api_.request_timeout = std::chrono::seconds(request_timeout_s_);
    scheduler_.prefill = policies.prefill;
    scheduler_.kv_bytes = static_cast<int64_t>(kv_bytes_.value_or(0));
    if (prefix_bytes_) scheduler_.prefix_bytes = static_cast<int64_t>(*prefix_bytes_);
    if (prefix_host_bytes_)
      scheduler_.prefix_host_bytes = static_cast<int64_t>(*prefix_host_bytes_);
    if (prefix_disk_bytes_)
      scheduler_.prefix_disk_bytes = static_cast<int64_t>(*prefix_disk_bytes_);
    scheduler_.on_warning = [](const std::string& what) {
      server::log_warning("prefix_file", {{"message", what}});
    };

    if (has_ranks() && ranks()->rank() > 0) {  // the first serves, and says when the others go
      const Interrupts::Scope scope(interrupts_);
      ranks()->on_end(end_program);
      Engine engine = model_.load();
      Scheduler::follow(engine, scheduler_);
      return kExitOk;
    }

    // The port is taken and /health answers while the model is loaded.
    Interrupts::Scope scope(interrupts_);
    std::optional<Engine> engine;
    server::Api api(api_);
    server::HttpServer http(http_, api);
    std::promise<std::optional<std::string>> stopped;  // and why, if not by a signal
    std::once_flag once;
    const auto stop = [&](std::optional<std::string> why) {
      std::call_once(once, [&] { stopped.set_value(std::move(why)); });
    };
    if (has_ranks()) ranks()->on_end(stop);
    engine.emplace(model_.load(
        [](const std::string& warning) {
          server::log_event("warning", {{"message", warning}});
        },
        stop));
    api.serve(*engine, scheduler_,
              {.on_gpu = on_gpu(model_.device()),
               .prefill = policies.prefill,
               .decode = policies.decode,
               .chat_max_tokens = max_tokens_,
               .max_json_bytes = http_.limits.body_bytes});
    say_hello(http.port(), *engine, api.scheduler().stats());

    std::stop_callback on_stop(scope.token(), [&] { stop({}); });
    if (const auto why = stopped.get_future().get()) {
      // Whoever asked hears of it; who hangs is not waited for.
      api.scheduler().wait_idle(std::chrono::steady_clock::now() + std::chrono::seconds(2));
      http.stop_listening();
      http.flush(std::chrono::seconds(2));
      end_program(*why);
    }

    // A second signal ends the program at once (Interrupts).
    server::log_event("draining", {{"deadline_s", drain_timeout_s_}});
    api.scheduler().drain();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(drain_timeout_s_);
    const bool idle = api.scheduler().wait_idle(deadline);
    if (!idle) {
      api.scheduler().cancel_all();
      api.scheduler().wait_idle(std::chrono::steady_clock::now() + std::chrono::seconds(30));
    }
    http.stop_listening();
    http.flush(std::chrono::seconds(5));
    server::log_event("stopped", {{"all_answered", idle}});
    return kExitOk;
  }

 private:
  void say_hello(uint16_t port, const Engine& engine, const SchedulerStats& stats) const {
    std::string host = http_.address == "0.0.0.0" ? "127.0.0.1" : http_.address;
    if (host == "::") host = "::1";
    const std::string url = "http://" + server::host_and_port(host, port);
    const ModelInfo info = engine.info();
    const SamplingParams sampling = engine.default_sampling();
    server::log_event("ready", {{"model", api_.model_name},
                                {"device", info.device},
                                {"load_ms", int64_t(info.load_ms)},
                                {"max_context", info.max_context},
                                {"temperature", sampling.temperature},
                                {"kv_memory", human_bytes(stats.kv_bytes_max)},
                                {"prefix_memory", human_bytes(stats.prefix_bytes_max)},
                                {"prefix_ram", human_bytes(stats.prefix_host_bytes_max)},
                                {"kv_bytes_per_token", info.kv_bytes_per_token},
                                {"weights", human_bytes(info.weight_bytes)}});
    const char* key = api_.api_keys.empty() ? "" : " -H \"Authorization: Bearer $KEY\"";
    const bool chat = !info.chat_template.empty();
    const std::string hello = fmt::format(
        "Serving {} at {} (chat page, /v1, /metrics). Try:\n"
        "  curl {}/v1/{} -H 'Content-Type: application/json'{} -d '{}'\n",
        api_.model_name, url, url, chat ? "chat/completions" : "completions", key,
        chat ? R"({"messages":[{"role":"user","content":"Hello"}]})"
             : R"({"prompt":"Once upon a time","max_tokens":64})");
    // Nobody may be there to read it.
    std::fwrite(hello.data(), 1, hello.size(), stdout);
    std::fflush(stdout);
  }

  Interrupts& interrupts_;
  ModelOptions model_;
  PolicyOptions policy_;
  server::HttpOptions http_;
  server::ApiOptions api_;
  SchedulerOptions scheduler_;
  std::optional<std::string> key_file_;
  std::optional<uint64_t> kv_bytes_, prefix_bytes_, prefix_host_bytes_, prefix_disk_bytes_;
  int64_t max_tokens_ = 2048;
  int request_timeout_s_ = 0, drain_timeout_s_ = 30, ping_interval_s_ = 15;
  bool log_json_ = false, quiet_ = false;
};

}  // namespace

Command add_serve(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command = program.add_subcommand("serve", "Answer over HTTP as OpenAI's API does");
  return {command, [serve = std::make_shared<Serve>(*command, interrupts)] { return (*serve)(); },
          /*on_ranks=*/true};
}

}  // namespace ei::cli
