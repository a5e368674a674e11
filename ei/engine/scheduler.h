#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>

#include "ei/cache/prefix_cache.h"
#include "ei/engine/engine.h"
#include "ei/engine/sequence.h"

namespace ei {

struct SchedulerOptions {
  PrefillPolicy prefill;                 // requests may be of another, but for segment and block
  int64_t max_sequences = 16;            // read or written at the same time
  int64_t max_waiting = 256;             // requests
  int64_t max_waiting_tokens = 4 << 20;  // of their prompts
  int64_t kv_bytes = 0;       // for the caches of running requests; 0: half of what is free
  int64_t prefix_bytes = -1;  // for the prefix cache; -1: a quarter of what is free
  // While a chunk is read, answers go on at the first layer that ends so long after their last
  // step, and no less than that step took. After the chunk there is a step in any case.
  std::chrono::milliseconds step_interval{50};
};

// Why a request was not taken.
class Refusal : public Error {
 public:
  enum class Kind {
    kTooLong,   // does not fit the model's context
    kTooLarge,  // its cache would not fit the memory even alone
    kBusy,      // too much waits already: try again in retry_after_s
    kDraining,  // nothing is taken any more
  };
  Refusal(Kind kind, const std::string& what, int retry_after_s = 0)
      : Error(what), kind(kind), retry_after_s(retry_after_s) {}
  Kind kind;
  int retry_after_s;
  int64_t n_prompt = 0, n_context = 0;  // of kTooLong, in tokens, if they are known
};

struct Outcome {
  Generation generation;
  std::optional<std::string> error;  // what went wrong after the request was taken
  double queue_ms = 0;
  std::string lost_prefix;  // why not more of the prompt was found in the prefix cache
};

// A request and whoever waits for it. The callbacks run on the scheduler's thread and must neither
// block nor throw.
struct Job {
  Request request;  // with tokens
  SequenceOptions options;
  // Of this request alone; they are looked at before every chunk and step.
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
  int64_t prefix_bytes = 0;
  int64_t prefix_queries = 0, prefix_hits = 0;  // prompt tokens asked for and found
  int64_t n_steps = 0, n_step_tokens = 0;       // decode steps and what they wrote
  double read_tps = 0;                          // prompt tokens a second, lately
};

// Runs many requests on one engine with one thread: all answers being written go through each
// decode step together, and between two steps at most one chunk of one prompt is read, of one
// segment while anybody waits for a token, or as many of its layers as the step interval has time
// for. Prompts take turns, first come first served as long as the caches planned fit the memory.
class Scheduler {
 public:
  // Throws Error when there is no memory, or the policy cannot be read in chunks.
  Scheduler(Engine& engine, const SchedulerOptions& options);
  ~Scheduler();  // cancels what is left
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
  struct Waiting {
    Job job;
    Clock::time_point since;
    int64_t bytes = 0;
  };
  struct Active;

  static bool over(const Job& job) {
    return job.cancel.stop_requested() || Clock::now() >= job.deadline;
  }
  void check(const Job& job) const;
  void run(const std::stop_token& stop);
  void admit();
  void end_cancelled();
  void read_next();
  void write_all();
  void end(std::list<Active>::iterator it, std::optional<std::string> error = {});
  void deliver(Active& active);
  void publish();

  Engine::Impl& engine_;
  SchedulerOptions options_;
  // The thread's own.
  PagePool pool_;
  PrefixCache prefixes_;
  Activations act_;       // of the chunk being read
  Activations step_act_;  // of a decode step, which may come between two layers of a chunk
  Decoder decoder_;
  std::list<Active> active_;     // the next to be read first
  double read_tps_ = 0;          // prompt tokens a second, lately
  Clock::time_point next_step_;  // not before, while a chunk is read

  mutable std::mutex mutex_;  // guards all that follows
  std::condition_variable_any changed_;
  std::deque<Waiting> waiting_;
  int64_t waiting_tokens_ = 0;
  bool draining_ = false;
  bool cancel_all_ = false;
  int64_t n_active_ = 0;
  SchedulerStats stats_;

  std::jthread thread_;  // last: stops before anything else goes
};

}  // namespace ei
