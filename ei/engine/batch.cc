#include "ei/engine/batch.h"

#include <algorithm>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"

namespace ei {
namespace {

// Does something for one sequence, which ends if it fails.
template <class Action>
void contained(Sequence& sequence, Action&& action) noexcept {
  try {
    action();
  } catch (...) {
    sequence.fail(std::current_exception());
  }
}

}  // namespace

Batch::Batch(Engine::Impl& engine, int64_t n_sequences, int64_t max_rows, int64_t max_logit_rows)
    : engine_(engine),
      step_act_(*engine.backend, engine.model->config(), n_sequences, n_sequences),
      decoder_(*engine.backend, *engine.model, n_sequences),
      sampler_(*engine.backend, engine.n_ids(), n_sequences) {
  const auto n = static_cast<size_t>(n_sequences);
  running_.reserve(n);
  rows_.reserve(n);
  writing_.reserve(n);
  if (max_rows > 0)
    chunk_act_.emplace(*engine.backend, engine.model->config(), max_rows, max_logit_rows);
}

void Batch::execute(const StepPlan& plan) noexcept {
  engine_.backend->pinned([&] { do_execute(plan); });
}

void Batch::do_execute(const StepPlan& plan) noexcept {
  for (Sequence* sequence : plan.compress) contained(*sequence, [&] { sequence->compress(); });
  writing_.clear();
  for (Sequence* sequence : plan.write)
    if (sequence->writing()) writing_.push_back(sequence);
  write(writing_);
  if (Sequence* sequence = plan.read.sequence; sequence != nullptr && sequence->reading()) {
    contained(*sequence, [&] { read(plan.read); });
    if (sequence->finished()) drop(*sequence);
  }
}

bool Batch::begin_chunk(Sequence& sequence, int64_t max_rows) {
  sequence.begin();
  const int64_t rows = sequence.context_.chunk_rows();
  if (!sequence.context_.find_prefix(std::min(max_rows, rows))) return false;
  const int64_t logit_rows = sequence.all_rows() ? Sequence::kScoreRows : 1;
  if (!chunk_act_ || chunk_act_->max_rows() < rows || chunk_act_->max_logit_rows() < logit_rows) {
    const int64_t had = chunk_act_ ? chunk_act_->max_logit_rows() : 0;
    chunk_act_.reset();
    chunk_act_.emplace(*engine_.backend, engine_.model->config(), rows, std::max(had, logit_rows));
  }
  chunk_.emplace(sequence.context_.next_chunk(*chunk_act_, max_rows));
  reading_ = &sequence;
  return true;
}

void Batch::read(const StepPlan::Read& plan) {
  Sequence& sequence = *plan.sequence;
  require(!chunk_ || reading_ == &sequence, "a prompt is read while another's chunk is under way");
  if (!chunk_ && !begin_chunk(sequence, plan.max_rows)) return;
  if (!chunk_->read(plan.n_layers)) return;
  const Chunk chunk = chunk_->chunk();
  chunk_.reset();
  sequence.end_chunk(*chunk_act_, chunk);
  if (sequence.reading()) return;

  const Act logits = engine_.model->logits(*chunk_act_, chunk_act_->rows() - 1, 1);
  const auto begin_answer = [&](Sequence* s) {
    if (s->max_new_ == 0) return s->finish(FinishReason::kLength);
    const int32_t token = draw(logits, {&s, 1})[0];
    if (token == Sample::kNotFinite) sequence.context_.blame_layer(*chunk_act_, chunk);
    s->accept(token, logits);
  };
  for (Sequence* follower : plan.followers)
    contained(*follower, [&] {
      follower->fork(sequence);
      begin_answer(follower);
    });
  begin_answer(&sequence);
}

std::span<const int32_t> Batch::draw(const Act& logits, std::span<Sequence* const> sequences) {
  rows_.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i]->constrain();
    rows_.push_back({&*sequences[i]->sampling_, static_cast<int64_t>(i)});
  }
  return sampler_.draw(logits, rows_);
}

// A batch that fails is as if it had never been, and each of its sequences is tried alone: so the
// one that is to blame is found, and those beside it lose nothing.
void Batch::write(std::span<Sequence* const> sequences) noexcept {
  if (sequences.empty()) return;
  try {
    return try_write(sequences);
  } catch (...) {
    for (Sequence* sequence : sequences) contained(*sequence, [&] { sequence->context_.rewind(); });
    if (sequences.size() == 1 && !sequences[0]->finished())
      return sequences[0]->fail(std::current_exception());
    // Other ranks may have got further: nothing can be tried again.
    if (engine_.backend->ranks().size() > 1) {
      for (Sequence* sequence : sequences) sequence->fail(std::current_exception());
      return;
    }
  }
  for (Sequence* const& sequence : sequences)
    if (!sequence->finished()) write({&sequence, 1});
}

void Batch::try_write(std::span<Sequence* const> sequences) {
  running_.clear();
  for (Sequence* s : sequences) {
    s->context_.reserve_whole();
    running_.push_back({.cache = &s->context_.cache(),
                        .window = &s->context_.window(),
                        .token = s->token_,
                        .whole = s->context_.whole()});
  }
  const Act logits = decoder_.step(step_act_, running_);
  const std::span<const int32_t> tokens = draw(logits, sequences);
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = *sequences[i];
    contained(s, [&] {
      s.context_.wrote(s.token_);
      s.accept(tokens[i], logits.slice(static_cast<int64_t>(i), 1));
    });
  }
}

void Batch::run(Sequence& sequence, const std::stop_token& cancel,
                const std::function<void()>& after_step) {
  StepPlan plan;
  Communicator& ranks = engine_.backend->ranks();
  while (!sequence.finished() && !of_first(ranks, cancel.stop_requested())) {
    plan.compress.assign(sequence.compression_due() ? 1 : 0, &sequence);
    plan.write.assign(sequence.writing() ? 1 : 0, &sequence);
    plan.read.sequence = sequence.reading() ? &sequence : nullptr;
    execute(plan);
    if (sequence.error()) std::rethrow_exception(sequence.error());
    after_step();
  }
  if (sequence.finished()) return;
  sequence.cancel();
  if (sequence.error()) std::rethrow_exception(sequence.error());
  after_step();
}

}  // namespace ei
