#pragma once

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>

#include "ei/cache/prefix_cache.h"
#include "ei/engine/batch.h"
#include "ei/engine/engine.h"
#include "ei/engine/leader.h"
#include "ei/engine/sequence.h"

namespace ei {

inline constexpr int64_t kPrefixHostBytes = int64_t{8} << 30;

struct SchedulerOptions {
  PrefillPolicy prefill;                 // requests may be of another whose pages are no larger
  int64_t max_sequences = 16;            // read or written at the same time
  int64_t max_waiting = 256;             // requests
  int64_t max_waiting_tokens = 4 << 20;  // of their prompts
  int64_t kv_bytes = 0;       // for the caches of running requests; 0: half of what is free
  int64_t prefix_bytes = -1;  // for the prefix cache; -1: a quarter of what is free
  // For pages that leave it, in the memory of a GPU's host, taken at the start; of all ranks
  // together. -1: kPrefixHostBytes, or a quarter of what is free if that is less; on a CPU there is
  // no such memory.
  int64_t prefix_host_bytes = -1;
  // Where its pages are kept in files as well, so many bytes at most; empty: nowhere. What goes
  // wrong with them is said to on_warning, by any thread.
  std::filesystem::path prefix_dir;
  int64_t prefix_disk_bytes = int64_t{16} << 30;
  std::function<void(const std::string&)> on_warning;
  // While a chunk is read, answers go on at the first layer that ends so long after their last
  // step, and no less than that step took. After the chunk there is a step in any case.
  std::chrono::milliseconds step_interval{50};
};

// Why a request was not taken, and the numbers that say so.
class Refusal : public Error {
 public:
  enum class Kind {
    kTooLong,   // does not fit the model's context
    kTooLarge,  // its cache would not fit the memory even alone
    kBusy,      // too much waits already: try again in retry_after_s
    kDraining,  // nothing is taken any more
  };
  explicit Refusal(Kind kind) : Error("the request was refused"), kind(kind) {}
  Kind kind;
  int64_t n_prompt = 0, n_answer = 0;        // kTooLong, kTooLarge: tokens, of the answer at most
  int64_t n_context = 0;                     // kTooLong
  int64_t bytes = 0, bytes_max = 0;          // kTooLarge: of the cache
  int64_t n_waiting = 0, n_waiting_max = 0;  // kBusy: requests
  int64_t n_tokens = 0, n_tokens_max = 0;    // kBusy: of their prompts
  int retry_after_s = 0;                     // kBusy
};

struct Outcome {
  Generation generation;
  std::optional<std::string> error;  // what went wrong after the request was taken
  bool is_asked_for = false;         // it did for what the request asks: NothingLeft
  double queue_ms = 0;
  std::string lost_prefix;  // why not more of the prompt was found in the prefix cache
};

// A request and whoever waits for it. The callbacks run on the scheduler's thread and must not
// block. One that throws ends its request.
struct Job {
  Request request;  // with tokens
  SequenceOptions options;
  // Of this request alone; they are looked at before every step.
  std::stop_token cancel;
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  std::function<void(int64_t done, int64_t total, int64_t cached, double ms)> on_prefill;
  std::function<void(Delta)> on_delta;
  std::function<void(Outcome)> on_end;  // exactly once, last
};

struct SchedulerStats {
  int64_t n_reading = 0, n_writing = 0, n_waiting = 0;
  int64_t n_waiting_tokens = 0;
  int64_t kv_bytes_planned = 0, kv_bytes_max = 0;  // of admitted requests
  int64_t kv_bytes_used = 0;                       // pages in use, the prefix cache's among them
  int64_t prefix_bytes = 0, prefix_host_bytes = 0, prefix_disk_bytes = 0;
  int64_t prefix_bytes_max = 0, prefix_host_bytes_max = 0;  // the second is taken from the start
  int64_t prefix_queries = 0, prefix_hits = 0;              // prompt tokens asked for and found
  int64_t prefix_host_hits = 0;                             // of these, from the host's memory
  int64_t prefix_loaded = 0;                                // and from files
  int64_t n_steps = 0, n_step_tokens = 0;                   // decode steps and what they wrote
  double read_tps = 0;                                      // prompt tokens a second, lately
};

// Runs many requests on one engine with one thread, which decides what every step of a Batch does:
// all answers being written write together, and between two such steps at most one chunk of one
// prompt is read, of one page while anybody waits for a token, or as many of its layers as the
// step interval has time for. Prompts take turns, first come first served as long as the caches
// planned fit the memory; a prompt that another is reading already waits for it and goes on from a
// copy. What fails ends the request that it fails for, and no other. While one lives, sessions of
// an engine of several ranks wait.
class Scheduler {
 public:
  // Throws Error when there is no memory, or the policy cannot be read in chunks. When the engine's
  // ranks end (EngineOptions::tp), so does everything taken, with why, and nothing is taken then.
  Scheduler(Engine& engine, const SchedulerOptions& options);
  ~Scheduler();  // cancels what is left
  // On the other ranks that share the model: does what the scheduler of rank 0 does, of the same
  // options, as long as that lives. Throws Error for whatever fails here, after which the ranks are
  // not in step any more and must all end.
  static void follow(Engine& engine, const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Takes a request, or throws Refusal, or Error for settings out of range. Any thread.
  void submit(Job job);
  // Takes several or none. `accepted` is called before any of their callbacks.
  void submit(std::vector<Job> jobs, const std::function<void()>& accepted = {});

  void drain();       // refuses new requests from now on; those taken go on
  void cancel_all();  // ends everything with what there is
  // Until nothing runs or waits, or the deadline; whether nothing does.
  bool wait_idle(std::chrono::steady_clock::time_point deadline);
  bool draining() const;

  SchedulerStats stats() const;
  // The most that the cache of such a request can take.
  int64_t planned_bytes(const Request& request) const;

 private:
  using Clock = std::chrono::steady_clock;
  std::jthread start_followers(const SchedulerOptions& options) const;
  static SchedulerOptions with_defaults(SchedulerOptions options, const Engine::Impl& engine);
  static int64_t chunk_rows(const SchedulerOptions& options, const Engine::Impl& engine);
  static int64_t page_bytes(const SchedulerOptions& options, const Engine::Impl& engine);
  // Null: none is wanted.
  static std::unique_ptr<PagePool> host_pool(const SchedulerOptions& options, Engine::Impl& engine);
  // Tokens of a request with its answer.
  static int64_t room_for(const Request& request, const Engine::Impl& engine);

  // A request that was taken: one node, which moves from the list of those that wait to the list of
  // those that run, so that neither this nor its end needs memory.
  struct Active;
  using Actives = std::list<Active>;

  void check(const Job& job) const;
  void run(const std::stop_token& stop);
  void step();
  void give_up(const std::exception_ptr& why) noexcept;
  void end_cancelled();
  void admit();
  void decide();
  Actives::iterator next_to_read();
  void find_followers(const Active& leader);
  void deliver(Active& active) noexcept;
  void end(Actives::iterator it) noexcept;
  void publish();

  Engine::Impl& engine_;
  std::jthread followers_;  // on the engine's other ranks of this process
  Leader leader_;
  SchedulerOptions options_;
  std::unique_lock<std::mutex> engine_lock_;  // while what follows is given back
  // The thread's own.
  PagePool pool_;
  std::unique_ptr<PagePool> host_pool_;  // null: none
  std::unique_ptr<PageStore> store_;     // the same
  PrefixCache prefixes_;
  Batch batch_;
  Actives active_;  // the next to be read first
  StepPlan plan_;
  Actives::iterator reader_;  // whose prompt is read; end(): nobody's
  Clock::time_point chunk_begun_;
  int64_t n_computed_ = 0;        // tokens of that prompt, when its chunk began
  double read_tps_ = 0;           // prompt tokens a second, lately
  Clock::time_point next_write_;  // not before, while a chunk is read
  bool wrote_ = false;            // in the last step
  bool chunk_ended_ = false;      // since answers were last written

  mutable std::mutex mutex_;  // guards all that follows
  std::condition_variable_any changed_;
  Actives waiting_;
  int64_t waiting_tokens_ = 0;
  bool draining_ = false;
  bool cancel_all_ = false;
  int64_t n_active_ = 0;
  SchedulerStats stats_;

  std::jthread thread_;  // last: stops before anything else goes
};

}  // namespace ei
